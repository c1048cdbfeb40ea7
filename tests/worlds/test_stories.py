"""Stories of a world: in lists, archived, restored, cloned, measured."""

import uuid
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem
from tests.support.worlds import EXACT_TEXT, World, beat_at, beats_at, create_world, story_at


async def titles(world: World, query: str = "stories") -> list[str]:
    return [story["title"] for story in await world.get(query)]


async def test_created_story_has_all_fields(world: World) -> None:
    response = await world.send("POST", "stories", {"title": "The Lamplighter"})
    assert response.status == 201
    story = await response.json()
    assert uuid.UUID(story.pop("id")).version == 7
    assert story.pop("created_at") == story.pop("updated_at")
    assert story == {
        "world_id": world.body["id"],
        "title": "The Lamplighter",
        "synopsis": None,
        "theme": None,
        "status": "draft",
        "mode": "manual",
        "pov_type": "third",
        "tags": [],
        "archived_at": None,
    }


async def test_created_story_is_at_its_location(world: World) -> None:
    created = await world.send("POST", "stories", {"title": "The Lamplighter"})
    found = await world.send("GET", created.headers["Location"])
    assert await found.json() == await created.json()
    assert created.headers["ETag"] == found.headers["ETag"] == '"1"'


async def test_story_keeps_all_that_was_sent(world: World) -> None:
    sent = {
        "title": "The Lamplighter",
        "synopsis": "",
        "theme": "light",
        "status": "completed",
        "mode": "autonomous",
        "pov_type": "omniscient",
        "tags": ["sea", "a lamp", "sea"],
    }
    story = await world.add_story(**sent)
    found = await world.get(story_at(story))
    assert found == {**found, **sent}


@pytest.mark.parametrize("field", ["title", "synopsis", "theme"])
async def test_text_is_kept_exactly_as_written(world: World, field: str) -> None:
    story = await world.add_story(**{field: EXACT_TEXT})
    assert (await world.get(story_at(story)))[field] == EXACT_TEXT


@pytest.mark.parametrize("when", ["created", "changed"])
async def test_in_progress_is_read_as_active(world: World, when: str) -> None:
    if when == "created":
        story = await world.add_story(status="in_progress")
    else:
        story = await world.change(story_at(await world.add_story()), status="in_progress")
    assert story["status"] == "active"


async def test_change_keeps_omitted_fields(world: World) -> None:
    story = await world.add_story(synopsis="A lamp.", tags=["sea"])
    changed = await world.change(story_at(story), mode="collaborative")
    assert changed["updated_at"] > story["updated_at"]
    assert changed == {**story, "mode": "collaborative", "updated_at": changed["updated_at"]}


async def test_change_makes_a_new_etag(world: World) -> None:
    story = await world.add_story()
    response = await world.send("PUT", story_at(story), {"theme": "dark"})
    assert response.headers["ETag"] == '"2"'
    assert (await world.send("GET", story_at(story))).headers["ETag"] == '"2"'


@pytest.mark.parametrize("change", [{}, {"status": "draft"}, {"tags": []}])
async def test_change_to_what_is_there_changes_nothing(world: World, change: Any) -> None:
    story = await world.add_story()
    response = await world.send("PUT", story_at(story), change)
    assert response.headers["ETag"] == '"1"'
    assert await response.json() == story


async def test_emptied_text_is_stored_as_sent(world: World) -> None:
    story = await world.add_story(synopsis="A lamp.", theme="light")
    changed = await world.change(story_at(story), synopsis="", theme="")
    assert (changed["synopsis"], changed["theme"]) == ("", "")


async def test_null_clears_text(world: World) -> None:
    story = await world.add_story(synopsis="A lamp.", theme="light")
    changed = await world.change(story_at(story), synopsis=None, theme=None)
    assert (changed["synopsis"], changed["theme"]) == (None, None)


async def test_stories_are_listed_latest_change_first(world: World) -> None:
    first, *_ = [await world.add_story(title=title) for title in "abc"]
    await world.change(story_at(first), theme="light")
    assert await titles(world) == ["a", "c", "b"]


async def test_stories_are_filtered_by_tag(world: World) -> None:
    await world.add_story(title="a", tags=["sea", "lamp"])
    await world.add_story(title="b", tags=["seaside"])
    archived = await world.add_story(title="c", tags=["sea"])
    await world.delete(story_at(archived))
    assert await titles(world, "stories?tag=sea") == ["a"]
    assert await titles(world, "stories?tag=sea&include_archived=true") == ["c", "a"]
    assert await titles(world, "stories?tag=SEA") == []


async def test_list_has_only_stories_of_the_world(
    client: Client, account: Account, world: World
) -> None:
    await (await create_world(client, account)).add_story()
    assert await world.get("stories") == []


async def test_tags_are_listed_once_and_in_order(world: World) -> None:
    await world.add_story(tags=["sea", "lamp"])
    await world.add_story(tags=["lamp", "brass"])
    archived = await world.add_story(tags=["ash"])
    await world.delete(story_at(archived))
    assert await world.get("stories/tags") == {"tags": ["brass", "lamp", "sea"]}


async def test_world_without_stories_has_no_tags(world: World) -> None:
    assert await world.get("stories/tags") == {"tags": []}


# Archived stories.


async def test_deletion_archives_the_story(world: World) -> None:
    story = await world.add_story()
    beat = await world.add_beat(story)
    await world.delete(story_at(story))
    archived = await world.get(story_at(story))
    assert archived["status"] == "archived"
    assert archived["archived_at"] == archived["updated_at"] > story["updated_at"]
    assert await world.get(beats_at(story)) == [beat]


async def test_archived_story_is_only_in_the_lists_that_ask_for_it(world: World) -> None:
    story = await world.add_story()
    await world.delete(story_at(story))
    for query, count in (
        ("stories", 0),
        ("stories?include_archived=false", 0),
        ("stories?include_archived=true", 1),
        ("stories/archived", 1),
    ):
        assert len(await world.get(query)) == count


async def test_story_that_is_not_archived_is_not_in_the_archive(world: World) -> None:
    await world.add_story()
    assert await world.get("stories/archived") == []


async def test_deletion_of_an_archived_story_changes_nothing(world: World) -> None:
    story = await world.add_story()
    await world.delete(story_at(story))
    archived = await world.get(story_at(story))
    await world.delete(story_at(story))
    assert await world.get(story_at(story)) == archived


async def test_status_archived_archives_the_story(world: World) -> None:
    story = await world.add_story()
    archived = await world.change(story_at(story), status="archived")
    assert archived["archived_at"] is not None
    draft = await world.change(story_at(story), status="draft")
    assert draft["archived_at"] is None


async def test_story_created_as_archived_is_archived(world: World) -> None:
    assert (await world.add_story(status="archived"))["archived_at"] is not None


async def test_change_of_an_archived_story_keeps_when_it_was_archived(world: World) -> None:
    story = await world.add_story(status="archived")
    changed = await world.change(story_at(story), theme="dust")
    assert changed["archived_at"] == story["archived_at"]


async def test_restored_story_is_a_draft(world: World) -> None:
    story = await world.add_story(status="completed")
    await world.delete(story_at(story))
    response = await world.send("POST", f"{story_at(story)}/restore")
    restored = await response.json()
    assert (response.status, response.headers["ETag"]) == (200, '"3"')
    assert (restored["status"], restored["archived_at"]) == ("draft", None)
    assert await world.get("stories") == [restored]


async def test_restoring_a_story_that_is_not_archived_changes_nothing(world: World) -> None:
    story = await world.add_story(status="active")
    response = await world.send("POST", f"{story_at(story)}/restore")
    assert await response.json() == story


@pytest.mark.parametrize("archived", [False, True])
async def test_forced_deletion_deletes_the_story_with_its_beats(
    world: World, archived: bool, conn: Any
) -> None:
    story = await world.add_story()
    beat = await world.add_beat(story)
    if archived:
        await world.delete(story_at(story))
    await world.delete(f"{story_at(story)}?force=true")
    for path in (story_at(story), beats_at(story), beat_at(beat)):
        await assert_problem(await world.send("GET", path), 404, "not_found")
    assert await world.get("stories?include_archived=true") == []
    assert await conn.fetchval("select count(*) from story_beats") == 0


async def test_deletion_that_is_not_forced_archives(world: World) -> None:
    story = await world.add_story()
    await world.delete(f"{story_at(story)}?force=false")
    assert (await world.get(story_at(story)))["status"] == "archived"


# Copies.


async def test_clone_is_a_copy_with_its_own_beats(world: World) -> None:
    event = await world.add_event()
    story = await world.add_story(
        title="Light", synopsis="A lamp.", tags=["sea"], mode="autonomous"
    )
    beats = [
        await world.add_beat(story, content="One.", world_event_id=event["id"], type="memory"),
        await world.add_beat(story, content="Two.", order_index=7, generated_by="ai"),
    ]
    response = await world.send("POST", f"{story_at(story)}/clone")
    assert (response.status, response.headers["ETag"]) == (201, '"1"')
    clone = await response.json()
    assert response.headers["Location"] == story_at(clone)
    own = ("id", "created_at", "updated_at")
    assert without(clone, *own) == {**without(story, *own), "title": "Light (Copy)"}
    copies = await world.get(beats_at(clone))
    assert [without(each, *own, "story_id") for each in copies] == [
        without(each, *own, "story_id") for each in beats
    ]
    assert not {each["id"] for each in copies} & {each["id"] for each in beats}
    assert await world.get(beats_at(story)) == beats


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


async def test_clone_of_the_longest_title_is_cut_to_fit(world: World) -> None:
    story = await world.add_story(title="é" * 255)
    clone = await (await world.send("POST", f"{story_at(story)}/clone")).json()
    assert clone["title"] == "é" * 248 + " (Copy)"


async def test_clone_of_an_archived_story_is_a_draft(world: World) -> None:
    story = await world.add_story(status="archived")
    clone = await (await world.send("POST", f"{story_at(story)}/clone")).json()
    assert (clone["status"], clone["archived_at"]) == ("draft", None)


async def test_clone_is_found_by_its_words(world: World) -> None:
    story = await world.add_story(title="Lighthouse")
    await world.send("POST", f"{story_at(story)}/clone")
    assert (await world.get("search?q=lighthouse"))["total"] == 2
    assert (await world.get("search?q=copy"))["total"] == 1


@pytest.mark.parametrize("action", ["stories", "clone"])
async def test_repeated_creation_with_a_key_creates_one_story(world: World, action: str) -> None:
    path, body, before = "stories", {"title": "The Lamplighter"}, 0
    if action == "clone":
        path, body, before = f"{story_at(await world.add_story())}/clone", {}, 1
    headers = {"Idempotency-Key": "once"}
    first, second = [await world.send("POST", path, body or None, headers) for _ in range(2)]
    assert (first.status, await first.json()) == (second.status, await second.json())
    assert len(await world.get("stories")) == before + 1


# Statistics.


async def test_statistics_of_a_story_without_beats_are_zero(world: World) -> None:
    story = await world.add_story()
    assert await world.get(f"{story_at(story)}/statistics") == {
        "story_id": story["id"],
        "beat_count": 0,
        "word_count": 0,
        "character_count": 0,
        "ai_generated_count": 0,
        "user_generated_count": 0,
        "collaborative_count": 0,
        "latest_beat_date": None,
        "world_event_links": 0,
        "beat_type_distribution": {},
        "estimated_reading_minutes": 0,
    }


async def test_statistics_count_beats_words_and_characters(world: World) -> None:
    event, story = await world.add_event(), await world.add_story()
    await world.add_beat(story, content="A lamp,\r\n  a sea.", world_event_id=event["id"])
    await world.add_beat(story, content="👩‍🚀 é", type="memory", generated_by="ai")
    last = await world.add_beat(
        story, content="End.", type="memory", generated_by="collaborative", order_index=1
    )
    await world.add_beat(await world.add_story(), content="another story")
    assert await world.get(f"{story_at(story)}/statistics") == {
        "story_id": story["id"],
        "beat_count": 3,
        "word_count": 4 + 2 + 1,
        "character_count": 17 + 5 + 4,
        "ai_generated_count": 1,
        "user_generated_count": 1,
        "collaborative_count": 1,
        "latest_beat_date": last["created_at"],
        "world_event_links": 1,
        "beat_type_distribution": {"scene": 1, "memory": 2},
        "estimated_reading_minutes": 1,
    }


async def test_statistics_follow_a_changed_text(world: World) -> None:
    story = await world.add_story()
    beat = await world.add_beat(story, content="one two three")
    await world.change(beat_at(beat), content="word " * 1000)
    found = await world.get(f"{story_at(story)}/statistics")
    assert (found["word_count"], found["estimated_reading_minutes"]) == (1000, 4)
