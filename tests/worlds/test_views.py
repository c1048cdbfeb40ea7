"""Views of a world: the timeline, where stories meet, beats of an event, and search."""

from typing import Any

import pytest
from yarl import URL

from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, pointers, register
from tests.support.worlds import EVENTS, World, create_world, story_at


async def search(world: World, q: str, **params: Any) -> Any:
    return await world.get(str(URL(f"{world.path}/search").with_query(q=q, **params)))


async def found(world: World, q: str) -> list[tuple[str, str]]:
    """Return kinds and ids of the results, best first."""
    return [(each["kind"], each["id"]) for each in (await search(world, q))["results"]]


# The timeline.


async def test_timeline_has_events_in_order_with_what_tells_of_them(world: World) -> None:
    late, early = await world.add_event(t=2), await world.add_event(t=1)
    one, other = [await world.add_story(title=title) for title in ("One", "Other")]
    first = await world.add_beat(one, world_event_id=early["id"], local_time_label="Dawn")
    second = await world.add_beat(one, world_event_id=early["id"], type="log")
    third = await world.add_beat(other, world_event_id=early["id"])
    await world.add_beat(other)
    names = ("id", "story_id", "order_index", "type", "local_time_label")
    assert await world.get("timeline") == [
        {
            "event": early,
            "stories": [
                {"id": one["id"], "title": "One"},
                {"id": other["id"], "title": "Other"},
            ],
            "beats": [{name: beat[name] for name in names} for beat in (first, second, third)],
        },
        {"event": late, "stories": [], "beats": []},
    ]


async def test_timeline_leaves_out_archived_stories(world: World) -> None:
    event, story = await world.add_event(), await world.add_story()
    await world.add_beat(story, world_event_id=event["id"])
    await world.delete(story_at(story))
    assert await world.get("timeline") == [{"event": event, "stories": [], "beats": []}]


# Intersections.


async def test_stories_meet_at_the_events_they_share(world: World) -> None:
    late, early = await world.add_event(t=2, label_time="Noon"), await world.add_event(t=1)
    alone = await world.add_event(t=3)
    one, other, third = [await world.add_story(title=title) for title in "abc"]
    for event in (late, early):
        for story in (one, other):
            await world.add_beat(story, world_event_id=event["id"])
    await world.add_beat(one, world_event_id=early["id"])
    await world.add_beat(third, world_event_id=early["id"])
    await world.add_beat(one, world_event_id=alone["id"])
    at = {
        event["id"]: {name: event[name] for name in ("id", "t", "label_time")}
        for event in (late, early)
    }
    a, b, c = [{"id": story["id"], "title": story["title"]} for story in (one, other, third)]
    assert await world.get("intersections") == [
        {"stories": [a, b], "events": [at[early["id"]], at[late["id"]]]},
        {"stories": [a, c], "events": [at[early["id"]]]},
        {"stories": [b, c], "events": [at[early["id"]]]},
    ]


@pytest.mark.parametrize("archived", [0, 1])
async def test_archived_stories_do_not_meet(world: World, archived: int) -> None:
    event = await world.add_event()
    stories = [await world.add_story() for _ in range(2)]
    for story in stories:
        await world.add_beat(story, world_event_id=event["id"])
    await world.delete(story_at(stories[archived]))
    assert await world.get("intersections") == []


# Beats of an event.


async def test_beats_of_an_event_have_their_stories(world: World) -> None:
    event = await world.add_event()
    one, other = [await world.add_story(title=title) for title in ("One", "Other")]
    third = await world.add_beat(other, world_event_id=event["id"])
    first = await world.add_beat(one, world_event_id=event["id"])
    second = await world.add_beat(one, world_event_id=event["id"])
    await world.add_beat(one)
    assert await world.get(f"{EVENTS}/{event['id']}/beats") == [
        {**first, "story": one},
        {**second, "story": one},
        {**third, "story": other},
    ]


async def test_beats_of_an_event_leave_out_archived_stories(world: World) -> None:
    event, story = await world.add_event(), await world.add_story()
    await world.add_beat(story, world_event_id=event["id"])
    await world.delete(story_at(story))
    assert await world.get(f"{EVENTS}/{event['id']}/beats") == []


# Search.


async def test_search_finds_every_kind_of_row(world: World) -> None:
    event = await world.add_event(summary="A lantern falls.")
    story = await world.add_story(title="Lantern")
    beat = await world.add_beat(story, content="The lantern burned.")
    results = (await search(world, "lantern"))["results"]
    assert {(each["kind"], each["id"], each["story_id"]) for each in results} == {
        ("event", event["id"], None),
        ("story", story["id"], story["id"]),
        ("beat", beat["id"], story["id"]),
    }


@pytest.mark.parametrize(
    ("kind", "field"),
    [("event", field) for field in ("label_time", "summary", "description", "location", "tags")]
    + [("story", field) for field in ("title", "synopsis", "theme", "tags")]
    + [("beat", field) for field in ("content", "summary", "local_time_label")],
)
async def test_search_looks_at_all_texts(world: World, kind: str, field: str) -> None:
    text: Any = ["a quasar"] if field == "tags" else "a quasar"
    story = await world.add_story(**({field: text} if kind == "story" else {}))
    event = await world.add_event(**({field: text} if kind == "event" else {}))
    beat = await world.add_beat(story, **({field: text} if kind == "beat" else {}))
    wanted = {"story": story, "event": event, "beat": beat}[kind]
    (result,) = (await search(world, "quasar"))["results"]
    assert (result["kind"], result["id"]) == (kind, wanted["id"])
    assert {"text": "quasar", "match": True} in result["snippet"]


async def test_search_follows_a_changed_text(world: World) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat = await world.add_beat(story)
    await world.change(f"{EVENTS}/{event['id']}", summary="quasar")
    await world.change(story_at(story), theme="quasar")
    await world.change(f"{story_at(story)}/beats/{beat['id']}", content="quasar")
    assert (await search(world, "quasar"))["total"] == 3
    assert (await search(world, "dark"))["total"] == 0


async def test_search_ranks_the_best_match_first(world: World) -> None:
    poor = await world.add_event(summary="A lamp among many other things of a long sentence.")
    best = await world.add_event(summary="lamp lamp lamp")
    assert await found(world, "lamp") == [("event", best["id"]), ("event", poor["id"])]


async def test_search_takes_phrases_alternatives_and_exclusions(world: World) -> None:
    one = await world.add_event(summary="red lamp")
    other = await world.add_event(summary="lamp red")
    third = await world.add_event(summary="green")
    for q, expected in (
        ("red lamp", {one["id"], other["id"]}),
        ('"red lamp"', {one["id"]}),
        ('"red lamp" or green', {one["id"], third["id"]}),
        ("red -green", {one["id"], other["id"]}),
        ("RED GREEN", set()),
    ):
        assert {each for _, each in await found(world, q)} == expected, q


async def test_search_counts_matches_beyond_its_limit(world: World) -> None:
    for _ in range(3):
        await world.add_event(summary="lamp")
    result = await search(world, "lamp", limit=2)
    assert (result["total"], len(result["results"])) == (3, 2)


async def test_snippet_is_a_part_of_a_long_text(world: World) -> None:
    story = await world.add_story()
    text = "far " * 5000 + "the <b>lamp</b> & a \u202elight " + "away " * 3000
    await world.add_beat(story, content=text)
    (result,) = (await search(world, "lamp"))["results"]
    snippet = result["snippet"]
    assert sum(len(piece["text"]) for piece in snippet) < 500
    assert [piece["text"] for piece in snippet if piece["match"]] == ["lamp"]


async def test_words_are_those_of_the_text_search_of_the_world(
    client: Client, account: Account
) -> None:
    for text_search, total in (("simple", 0), ("english", 1)):
        world = await create_world(client, account, text_search=text_search)
        await world.add_event(summary="The lamps were burning.")
        assert (await search(world, "burn lamp"))["total"] == total


async def test_search_leaves_out_archived_stories_and_their_beats(world: World) -> None:
    story = await world.add_story(title="quasar")
    await world.add_beat(story, content="quasar")
    await world.delete(story_at(story))
    assert await search(world, "quasar") == {"total": 0, "results": []}


async def test_search_finds_nothing_of_another_world(
    client: Client, account: Account, world: World
) -> None:
    other = await create_world(client, account)
    await other.add_beat(await other.add_story(title="quasar"), content="quasar")
    await other.add_event(summary="quasar")
    assert await search(world, "quasar") == {"total": 0, "results": []}


async def test_search_finds_text_in_any_script(world: World) -> None:
    event = await world.add_event(summary="Ὀδυσσεὺς שלום مرحبا Лампа")
    for q in ("ὀδυσσεὺς", "שלום", "مرحبا", "ЛАМПА"):
        assert await found(world, q) == [("event", event["id"])], q


@pytest.mark.parametrize("q", ["'", '"', "-", "!&|():*<->", "\\", "a:*", "%00x"[1:], "🜁"])
async def test_search_takes_any_characters(world: World, q: str) -> None:
    assert (await search(world, q))["total"] == 0


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("", "?/q"),
        ("q=", "?/q"),
        ("q=" + "x" * 201, "?/q"),
        ("q=a%00", "?/q"),
        ("q=a&limit=0", "?/limit"),
        ("q=a&limit=51", "?/limit"),
        ("q=a&cursor=a", "?/cursor"),
    ],
)
async def test_invalid_parameters_of_a_search_are_named(
    world: World, query: str, pointer: str
) -> None:
    url = URL(f"{world.path}/search?{query}", encoded=True)
    response = await world.client.get(url, headers=world.headers)
    assert pointers(await assert_problem(response, 422, "invalid_fields")) == {pointer}


async def test_search_that_times_out_is_reported_as_too_broad(
    postgresql_cancels: None, start_app: StartApp, conn: Any
) -> None:
    patient = await start_app()
    world = await create_world(patient, await register(patient))
    await world.add_event(summary="lamp")
    await conn.execute(
        """
        create function is_read() returns boolean stable language plpgsql as $$
        begin
            if current_query() like '%websearch_to_tsquery%' then
                perform pg_sleep(60);
            end if;
            return true;
        end $$;
        alter table world_events rename to stored_events;
        create view world_events as select * from stored_events where is_read();
        """
    )
    client = await start_app(db_command_timeout_s=1)
    response = await world._replace(client=client).send("GET", "search?q=lamp")
    await assert_problem(response, 422, "search_too_broad")
