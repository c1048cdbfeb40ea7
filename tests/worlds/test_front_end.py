"""The requests of the original's front end, with its bodies and headers, and what it reads of them.

It sends ``Content-Type: application/json`` with every request, and neither ETags nor cookies.
"""

import json
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, register
from tests.support.worlds import NO_ONE


class FrontEnd:
    """Sends requests as the front end does, and reads responses as it does."""

    def __init__(self, client: Client, account: Account) -> None:
        self.client = client
        self.headers = {**account.headers, "Content-Type": "application/json"}

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the body of a successful response, or ``{}`` of one without a body."""
        status, found = await self.try_to(method, path, body)
        assert status < 300, found
        return found

    async def try_to(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        response = await self.client.request(
            method, f"/api/v1{path}", headers=self.headers, data=data
        )
        return response.status, {} if response.status == 204 else await response.json(
            content_type=None
        )


@pytest.fixture
async def front_end(client: Client, account: Account) -> FrontEnd:
    return FrontEnd(client, account)


NEW_WORLD = {
    "name": "Orrery",
    "description": "A city inside a clock.",
    "tone": "wry",
    "backdrop": "Brass.",
    "laws": {"physics": "Light is slow.", "metaphysics": "", "social": "", "forbidden": ""},
    "chronology_mode": "linear",
}


async def new_world(front_end: FrontEnd) -> Any:
    return await front_end.ask("POST", "/worlds/", NEW_WORLD)


async def new_story(front_end: FrontEnd, **values: Any) -> Any:
    world = await new_world(front_end)
    body = {"title": "The Lamplighter", **values}
    return await front_end.ask("POST", f"/worlds/{world['id']}/stories", body)


async def new_event(front_end: FrontEnd, world: Any, **values: Any) -> Any:
    body = {"t": 1, "type": "major", "summary": "The sun sets.", **values}
    return await front_end.ask("POST", f"/worlds/{world['id']}/events", body)


async def test_error_has_its_text_in_detail(front_end: FrontEnd) -> None:
    for method, path, body, status in (
        ("GET", f"/worlds/{NO_ONE}", None, 404),
        ("POST", "/worlds/", {"name": ""}, 422),
        ("POST", "/worlds/import", {"version": "2.0"}, 400),
    ):
        found_status, problem = await front_end.try_to(method, path, body)
        assert found_status == status
        assert isinstance(problem["detail"], str)
        assert problem["detail"]


async def test_worlds_are_an_array_newest_first(front_end: FrontEnd) -> None:
    worlds = [await new_world(front_end) for _ in range(2)]
    assert await front_end.ask("GET", "/worlds/") == worlds[::-1]
    assert await front_end.ask("GET", "/worlds") == worlds[::-1]


async def test_world_has_laws_even_if_none_were_sent(front_end: FrontEnd) -> None:
    world = await front_end.ask("POST", "/worlds/", {"name": "Orrery"})
    found = await front_end.ask("GET", f"/worlds/{world['id']}")
    assert found["laws"] == dict.fromkeys(("physics", "metaphysics", "social", "forbidden"))


async def test_world_is_changed_in_parts(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    changed = await front_end.ask("PUT", f"/worlds/{world['id']}", {"tone": ""})
    assert changed == {**world, "tone": "", "updated_at": changed["updated_at"]}


@pytest.mark.parametrize("forced", ["", "?force=true"])
async def test_deletions_answer_with_an_empty_object(front_end: FrontEnd, forced: str) -> None:
    story = await new_story(front_end)
    event = await new_event(front_end, {"id": story["world_id"]})
    beat = await front_end.ask("POST", f"/stories/{story['id']}/beats", {"content": "x"})
    for path in (
        f"/stories/{story['id']}/beats/{beat['id']}",
        f"/stories/{story['id']}{forced}",
        f"/worlds/{story['world_id']}/events/{event['id']}",
        f"/worlds/{story['world_id']}",
    ):
        assert await front_end.ask("DELETE", path) == {}


async def test_event_from_the_form(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    for kind in ("major", "minor", "background", "catalyst"):
        sent = {
            "t": 2145,
            "label_time": "Year 2145",
            "location": "The harbour",
            "type": kind,
            "summary": "The sun sets.",
            "description": "Slowly.",
        }
        event = await front_end.ask("POST", f"/worlds/{world['id']}/events", sent)
        assert event == {**event, **sent}


async def test_event_without_what_the_form_leaves_out(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    sent = {"t": 2145.5, "type": "major", "summary": "The sun sets."}
    event = await front_end.ask("POST", f"/worlds/{world['id']}/events", sent)
    left_out = ("label_time", "location", "description", "location_id")
    assert [event[name] for name in left_out] == [None] * 4


async def test_event_from_a_suggestion(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    sent = {
        "t": 3,
        "label_time": None,
        "type": "minor",
        "summary": "A bell rings.",
        "tags": ["bell"],
        "location_id": None,
    }
    event = await front_end.ask("POST", f"/worlds/{world['id']}/events", sent)
    assert event == {**event, **sent}


async def test_events_are_an_array_without_a_limit(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    event = await new_event(front_end, world)
    assert await front_end.ask("GET", f"/worlds/{world['id']}/events") == [event]


async def test_events_for_the_picker_are_an_object(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    event = await new_event(front_end, world)
    found = await front_end.ask("GET", f"/worlds/{world['id']}/events?limit=1000")
    assert found == {"events": [event], "total": 1}


async def test_event_is_read_changed_and_deleted_below_its_world(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    event = await new_event(front_end, world)
    path = f"/worlds/{world['id']}/events/{event['id']}"
    assert await front_end.ask("GET", path) == event
    changed = await front_end.ask("PUT", path, {"summary": "The sun rises."})
    assert changed["summary"] == "The sun rises."
    assert await front_end.ask("DELETE", path) == {}
    assert (await front_end.try_to("GET", path))[0] == 404


async def test_beats_of_an_event_have_their_story(front_end: FrontEnd) -> None:
    story = await new_story(front_end)
    event = await new_event(front_end, {"id": story["world_id"]})
    body = {"content": "It was dark.", "world_event_id": event["id"]}
    beat = await front_end.ask("POST", f"/stories/{story['id']}/beats", body)
    assert await front_end.ask("GET", f"/events/{event['id']}/beats") == [{**beat, "story": story}]


async def test_dependencies_are_a_graph(front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    cause, event = [await new_event(front_end, world, label_time=text) for text in "ab"]
    path = f"/events/{event['id']}/dependencies/{cause['id']}"
    graph_path = f"/worlds/{world['id']}/events/dependency-graph"
    assert await front_end.ask("POST", path) == {}
    assert await front_end.ask("GET", graph_path) == {
        "nodes": [
            {
                "id": each["id"],
                "label": each["label_time"],
                "t": 1,
                "type": "major",
                "summary": "The sun sets.",
            }
            for each in (cause, event)
        ],
        "edges": [{"source": cause["id"], "target": event["id"], "type": "causes"}],
        "world_id": world["id"],
    }
    assert await front_end.ask("DELETE", path) == {}
    assert (await front_end.ask("GET", graph_path))["edges"] == []


async def test_story_with_emptied_fields(front_end: FrontEnd) -> None:
    story = await new_story(front_end, synopsis="", theme="", status="in_progress")
    assert (story["synopsis"], story["theme"], story["status"]) == ("", "", "active")


async def test_mode_of_a_story_is_changed_alone(front_end: FrontEnd) -> None:
    story = await new_story(front_end)
    changed = await front_end.ask("PUT", f"/stories/{story['id']}", {"mode": "collaborative"})
    assert changed == {**story, "mode": "collaborative", "updated_at": changed["updated_at"]}


async def test_emptied_fields_of_a_story_are_stored_as_sent(front_end: FrontEnd) -> None:
    story = await new_story(front_end, synopsis="A lamp.", theme="light")
    body = {"title": "Light", "synopsis": "", "theme": "", "status": "in_progress"}
    changed = await front_end.ask("PUT", f"/stories/{story['id']}", body)
    assert changed == {**changed, **body, "status": "active"}


async def test_stories_are_listed_without_archived_ones(front_end: FrontEnd) -> None:
    story = await new_story(front_end, tags=["sea"])
    path = f"/worlds/{story['world_id']}/stories"
    for query in ("", "?include_archived=true", "?tag=sea"):
        assert await front_end.ask("GET", path + query) == [story]
    assert await front_end.ask("DELETE", f"/stories/{story['id']}") == {}
    assert await front_end.ask("GET", path) == []
    (archived,) = await front_end.ask("GET", f"{path}?include_archived=true")
    assert await front_end.ask("GET", f"{path}/archived") == [archived]
    restored = await front_end.ask("POST", f"/stories/{story['id']}/restore")
    assert restored["archived_at"] is None


async def test_tags_are_an_object(front_end: FrontEnd) -> None:
    story = await new_story(front_end, tags=["sea"])
    path = f"/worlds/{story['world_id']}/stories/tags"
    assert await front_end.ask("GET", path) == {"tags": ["sea"]}


async def test_clone_is_called_a_copy(front_end: FrontEnd) -> None:
    story = await new_story(front_end)
    clone = await front_end.ask("POST", f"/stories/{story['id']}/clone")
    assert clone["title"] == "The Lamplighter (Copy)"


async def test_statistics_have_their_members(front_end: FrontEnd) -> None:
    story = await new_story(front_end)
    beat = await front_end.ask("POST", f"/stories/{story['id']}/beats", {"content": "A lamp."})
    assert await front_end.ask("GET", f"/stories/{story['id']}/statistics") == {
        "story_id": story["id"],
        "beat_count": 1,
        "word_count": 2,
        "character_count": 7,
        "ai_generated_count": 0,
        "user_generated_count": 1,
        "collaborative_count": 0,
        "latest_beat_date": beat["created_at"],
        "world_event_links": 0,
        "beat_type_distribution": {"scene": 1},
        "estimated_reading_minutes": 1,
    }


@pytest.mark.parametrize("name", ["type", "beat_type"])
async def test_beats_are_appended_from_1(front_end: FrontEnd, name: str) -> None:
    story = await new_story(front_end)
    kinds = ("scene", "log", "memory", "dialogue", "description", "summary", "note")
    for kind in kinds:
        await front_end.ask("POST", f"/stories/{story['id']}/beats", {"content": "x", name: kind})
    beats = await front_end.ask("GET", f"/stories/{story['id']}/beats")
    assert [(beat["order_index"], beat["type"]) for beat in beats] == [*enumerate(kinds, 1)]


@pytest.mark.parametrize("body", [{"generation_reasoning": "Because."}, {}])
async def test_reasoning_of_a_beat_is_changed(front_end: FrontEnd, body: Any) -> None:
    path = f"/stories/{(await new_story(front_end))['id']}/beats"
    beat = await front_end.ask("POST", path, {"content": "x"})
    changed = await front_end.ask("PATCH", f"{path}/{beat['id']}/reasoning", body)
    assert changed["generation_reasoning"] == body.get("generation_reasoning")


async def test_reorder_answers_with_the_beats(front_end: FrontEnd) -> None:
    path = f"/stories/{(await new_story(front_end))['id']}/beats"
    beats = [await front_end.ask("POST", path, {"content": text}) for text in "abc"]
    body = {"beat_ids": [beat["id"] for beat in beats[::-1]]}
    found = await front_end.ask("POST", f"{path}/reorder", body)
    assert [(beat["order_index"], beat["content"]) for beat in found] == [
        (1, "c"),
        (2, "b"),
        (3, "a"),
    ]


async def test_reorder_with_a_wrong_set_is_a_400(front_end: FrontEnd) -> None:
    path = f"/stories/{(await new_story(front_end))['id']}/beats"
    await front_end.ask("POST", path, {"content": "x"})
    status, problem = await front_end.try_to("POST", f"{path}/reorder", {"beat_ids": []})
    assert (status, bool(problem["detail"])) == (400, True)


async def test_export_is_imported(front_end: FrontEnd) -> None:
    story = await new_story(front_end)
    beat = await front_end.ask("POST", f"/stories/{story['id']}/beats", {"content": "x"})
    event = await new_event(front_end, {"id": story["world_id"]})
    document = await front_end.ask("GET", f"/worlds/{story['world_id']}/export")
    assert set(document) == {"version", "exported_at", "world", "world_events", "stories"}
    assert document["version"] == "1.0"
    assert document["world_events"] == [event]
    assert document["stories"] == [{**story, "story_beats": [beat]}]
    world = await front_end.ask("POST", "/worlds/import", document)
    (imported,) = await front_end.ask("GET", f"/worlds/{world['id']}/stories")
    assert imported["title"] == story["title"]


async def test_document_of_another_version_is_a_400(front_end: FrontEnd) -> None:
    body = {"version": "2.0", "world": {"name": "Orrery"}, "characters": []}
    status, _ = await front_end.try_to("POST", "/worlds/import", body)
    assert status == 400


@pytest.mark.parametrize("body", [None, {}, {"name": "Another"}])
async def test_world_is_duplicated(front_end: FrontEnd, body: Any) -> None:
    world = await new_world(front_end)
    copy = await front_end.ask("POST", f"/worlds/{world['id']}/duplicate", body)
    assert copy["name"] == (body or {}).get("name", "Orrery (Copy)")


async def test_worlds_of_others_are_not_found(client: Client, front_end: FrontEnd) -> None:
    world = await new_world(front_end)
    other = FrontEnd(client, await register(client))
    assert (await other.try_to("GET", f"/worlds/{world['id']}"))[0] == 404
