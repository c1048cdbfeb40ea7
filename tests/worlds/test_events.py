"""Events on the timeline of a world, and what causes them."""

import uuid
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers
from tests.support.worlds import EXACT_TEXT, NO_ONE, World, beat_at, create_world, event_at


def dependency(event: dict[str, Any], cause: dict[str, Any]) -> str:
    return f"{event_at(event)}/dependencies/{cause['id']}"


async def test_created_event_has_all_fields(world: World) -> None:
    sent = {"t": 2145, "type": "major", "summary": "The sun sets."}
    response = await world.send("POST", "events", sent)
    assert response.status == 201
    event = await response.json()
    assert uuid.UUID(event.pop("id")).version == 7
    assert event.pop("created_at") == event.pop("updated_at")
    assert event == {
        "world_id": world.body["id"],
        **sent,
        "label_time": None,
        "description": None,
        "location": None,
        "location_id": None,
        "tags": [],
        "caused_by_ids": [],
    }


async def test_created_event_is_at_its_location(world: World) -> None:
    sent = {"t": 1, "type": "minor", "summary": "A bell."}
    created = await world.send("POST", "events", sent)
    found = await world.send("GET", created.headers["Location"])
    assert await found.json() == await created.json()
    assert created.headers["ETag"] == found.headers["ETag"] == '"1"'


async def test_event_keeps_all_that_was_sent(world: World) -> None:
    cause = await world.add_event()
    sent = {
        "t": -0.5,
        "label_time": "Year 2145",
        "type": "catalyst",
        "summary": "The sun sets.",
        "description": "Slowly.",
        "location": "The harbour",
        "location_id": NO_ONE,
        "tags": ["sun", "dusk", "sun"],
        "caused_by_ids": [cause["id"]],
    }
    event = await world.add_event(**sent)
    found = await world.get(event_at(event))
    assert found == {**found, **sent}


@pytest.mark.parametrize("field", ["label_time", "type", "summary", "description", "location"])
async def test_text_is_kept_exactly_as_written(world: World, field: str) -> None:
    event = await world.add_event(**{field: EXACT_TEXT})
    assert (await world.get(event_at(event)))[field] == EXACT_TEXT


async def test_change_keeps_omitted_fields(world: World) -> None:
    event = await world.add_event(label_time="Year 1", tags=["dusk"])
    changed = await world.change(event_at(event), summary="The sun rises.")
    assert changed["updated_at"] > event["updated_at"]
    assert changed == {**event, "summary": "The sun rises.", "updated_at": changed["updated_at"]}
    assert await world.get(event_at(event)) == changed


async def test_change_makes_a_new_etag(world: World) -> None:
    event = await world.add_event()
    response = await world.send("PUT", event_at(event), {"t": 2})
    assert response.headers["ETag"] == '"2"'
    assert (await world.send("GET", event_at(event))).headers["ETag"] == '"2"'


@pytest.mark.parametrize("change", [{}, {"t": 1}, {"t": 1.0}, {"caused_by_ids": []}, {"tags": []}])
async def test_change_to_what_is_there_changes_nothing(world: World, change: Any) -> None:
    event = await world.add_event()
    response = await world.send("PUT", event_at(event), change)
    assert response.headers["ETag"] == '"1"'
    assert await response.json() == event


async def test_emptied_text_is_stored_as_sent(world: World) -> None:
    event = await world.add_event(label_time="Year 1", location="The harbour")
    changed = await world.change(event_at(event), label_time="", location="", description="")
    assert [changed[name] for name in ("label_time", "location", "description")] == ["", "", ""]


async def test_null_clears_optional_fields(world: World) -> None:
    event = await world.add_event(label_time="Year 1", location_id=NO_ONE)
    changed = await world.change(event_at(event), label_time=None, location_id=None)
    assert (changed["label_time"], changed["location_id"]) == (None, None)


async def test_events_are_listed_in_the_order_of_time(world: World) -> None:
    for t in (3, -1.5, 0, 2**53, 1e-9, -(2**53)):
        await world.add_event(t=t)
    found = [event["t"] for event in await world.get("events")]
    assert found == [-(2**53), -1.5, 0, 1e-9, 3, 2**53]


async def test_events_at_the_same_time_are_listed_as_created(world: World) -> None:
    created = [(await world.add_event(t=7))["id"] for _ in range(5)]
    assert [event["id"] for event in await world.get("events")] == created


async def test_events_with_a_limit_are_an_object_with_their_total(world: World) -> None:
    events = [await world.add_event(t=t) for t in range(3)]
    assert await world.get("events?limit=1000") == {"events": events, "total": 3}
    assert await world.get("events?limit=2") == {"events": events[:2], "total": 3}


async def test_total_counts_what_is_left_after_deletion(world: World) -> None:
    event, _ = await world.add_event(), await world.add_event()
    await world.delete(event_at(event))
    assert (await world.get("events?limit=1"))["total"] == 1


async def test_event_is_also_below_its_world(world: World) -> None:
    event = await world.add_event()
    below = f"events/{event['id']}"
    assert await world.get(below) == event
    changed = await world.change(below, summary="The sun rises.")
    assert changed == await world.get(event_at(event))
    await world.delete(below)
    await assert_problem(await world.send("GET", event_at(event)), 404, "not_found")


async def test_deleted_event_is_gone(world: World) -> None:
    event = await world.add_event()
    await world.delete(event_at(event))
    await assert_problem(await world.send("GET", event_at(event)), 404, "not_found")
    await assert_problem(await world.send("DELETE", event_at(event)), 404, "not_found")
    assert await world.get("events") == []


async def test_deletion_of_an_event_unlinks_its_beats(world: World) -> None:
    event = await world.add_event()
    beat = await world.add_beat(await world.add_story(), world_event_id=event["id"])
    await world.delete(event_at(event))
    found = await world.get(beat_at(beat))
    assert found == {**beat, "world_event_id": None, "updated_at": found["updated_at"]}


async def test_deletion_of_an_event_makes_new_etags_of_its_beats(world: World) -> None:
    """Otherwise, an earlier ETag would match a beat that has changed."""
    event = await world.add_event()
    beat = await world.add_beat(await world.add_story(), world_event_id=event["id"])
    await world.delete(event_at(event))
    assert (await world.send("GET", beat_at(beat))).headers["ETag"] == '"2"'


async def test_deletion_of_an_event_makes_new_etags_of_what_it_caused(world: World) -> None:
    cause = await world.add_event()
    event = await world.add_event(caused_by_ids=[cause["id"]])
    await world.delete(event_at(cause))
    found = await world.send("GET", event_at(event))
    assert (await found.json())["caused_by_ids"] == []
    assert found.headers["ETag"] == '"2"'


async def test_repeated_creation_with_a_key_creates_one_event(world: World) -> None:
    body, headers = {"t": 1, "type": "minor", "summary": "A bell."}, {"Idempotency-Key": "once"}
    first, second = [await world.send("POST", "events", body, headers) for _ in range(2)]
    assert (first.status, await first.json()) == (second.status, await second.json())
    assert len(await world.get("events")) == 1


# Causes.


async def test_cause_is_added_and_removed(world: World) -> None:
    cause, event = await world.add_event(), await world.add_event()
    assert (await world.send("POST", dependency(event, cause))).status == 204
    assert (await world.get(event_at(event)))["caused_by_ids"] == [cause["id"]]
    await world.delete(dependency(event, cause))
    assert (await world.get(event_at(event)))["caused_by_ids"] == []


async def test_cause_that_is_there_changes_nothing(world: World) -> None:
    cause = await world.add_event()
    event = await world.add_event(caused_by_ids=[cause["id"]])
    assert (await world.send("POST", dependency(event, cause))).status == 204
    assert (await world.send("GET", event_at(event))).headers["ETag"] == '"1"'


async def test_removing_a_cause_that_is_not_there_changes_nothing(world: World) -> None:
    one, other = await world.add_event(), await world.add_event()
    await world.delete(dependency(one, other))
    assert (await world.send("GET", event_at(one))).headers["ETag"] == '"1"'


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_change_of_causes_makes_a_new_etag(world: World, method: str) -> None:
    cause = await world.add_event()
    before = [] if method == "POST" else [cause["id"]]
    event = await world.add_event(caused_by_ids=before)
    assert (await world.send(method, dependency(event, cause))).status == 204
    assert (await world.send("GET", event_at(event))).headers["ETag"] == '"2"'


async def test_causes_keep_their_order_when_their_times_change(world: World) -> None:
    first, second = await world.add_event(t=2), await world.add_event(t=1)
    event = await world.add_event(t=3, caused_by_ids=[second["id"], first["id"]])
    assert event["caused_by_ids"] == [first["id"], second["id"]]
    await world.send("PUT", event_at(second), {"t": 4})
    again = await world.get(event_at(event))
    assert again["caused_by_ids"] == [first["id"], second["id"]]


async def test_causes_are_replaced_by_a_change(world: World) -> None:
    causes = [await world.add_event(t=t) for t in range(3)]
    event = await world.add_event(caused_by_ids=[each["id"] for each in causes[:2]])
    wanted = [each["id"] for each in causes[1:]]
    changed = await world.change(event_at(event), caused_by_ids=wanted)
    assert changed["caused_by_ids"] == wanted


async def test_event_cannot_cause_itself(world: World) -> None:
    event = await world.add_event()
    response = await world.send("POST", dependency(event, event))
    await assert_problem(response, 422, "causes_cycle")


async def test_cause_that_closes_a_cycle_is_refused(world: World) -> None:
    first = await world.add_event()
    second = await world.add_event(caused_by_ids=[first["id"]])
    third = await world.add_event(caused_by_ids=[second["id"]])
    response = await world.send("POST", dependency(first, third))
    await assert_problem(response, 422, "causes_cycle")
    assert (await world.get(event_at(first)))["caused_by_ids"] == []


async def test_change_that_closes_a_cycle_changes_nothing(world: World) -> None:
    first = await world.add_event()
    second = await world.add_event(caused_by_ids=[first["id"]])
    change = {"summary": "Another.", "caused_by_ids": [second["id"]]}
    response = await world.send("PUT", event_at(first), change)
    await assert_problem(response, 422, "causes_cycle")
    assert await world.get(event_at(first)) == first


async def test_change_may_turn_a_cause_around(world: World) -> None:
    """Once the first cause is gone, the other direction closes no cycle."""
    one = await world.add_event()
    other = await world.add_event(caused_by_ids=[one["id"]])
    await world.change(event_at(other), caused_by_ids=[])
    await world.change(event_at(one), caused_by_ids=[other["id"]])


async def test_unknown_cause_is_named(world: World) -> None:
    cause = await world.add_event()
    body = {"t": 1, "type": "minor", "summary": "A.", "caused_by_ids": [cause["id"], NO_ONE]}
    response = await world.send("POST", "events", body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert problem["errors"][0]["code"] == "not_found"
    assert pointers(problem) == {"#/caused_by_ids/1"}
    assert len(await world.get("events")) == 1


async def test_graph_has_the_events_and_what_causes_what(
    client: Client, account: Account, world: World
) -> None:
    labelled = await world.add_event(t=1, label_time="Year 1")
    event = await world.add_event(t=2.5, caused_by_ids=[labelled["id"]])
    elsewhere = await create_world(client, account)
    cause = await elsewhere.add_event()
    await elsewhere.add_event(caused_by_ids=[cause["id"]])
    names = ("id", "t", "type", "summary")
    assert await world.get("events/dependency-graph") == {
        "world_id": world.body["id"],
        "nodes": [
            {**{name: labelled[name] for name in names}, "label": "Year 1"},
            {**{name: event[name] for name in names}, "label": "2.5"},
        ],
        "edges": [{"source": labelled["id"], "target": event["id"], "type": "causes"}],
    }


async def test_graph_of_an_empty_world_is_empty(world: World) -> None:
    expected = {"world_id": world.body["id"], "nodes": [], "edges": []}
    assert await world.get("events/dependency-graph") == expected
