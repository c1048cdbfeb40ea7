"""Invalid bodies and paths of worlds: refused with a pointer, and nothing changes."""

import json
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers
from tests.support.worlds import (
    NO_ONE,
    WORLDS,
    World,
    beat_at,
    beats_at,
    create_world,
    event_at,
    story_at,
)

LONG = 50_000
# Values that no text takes; those of one that cannot be null include null.
NOT_TEXT = ["1", "true", "[]", "{}", '"\\u0000"', '"\\ud800"', '"a\\udc00b"']
NOT_NUMBERS = ['"1"', "true", "false", "[]", "{}", "null", "1e400", "-1e400"]
NOT_NUMBERS += ["9007199254740993", "-9007199254740993", "0.12345678901234567", "1e16", "9" * 300]
NOT_PLACES = [*NOT_NUMBERS, "-1", "1.5", "1.00000000000000001", "2147483648"]
NOT_IDS = ["1", "null", '""', '"me"', f'"{{{NO_ONE}}}"', f'"urn:uuid:{NO_ONE}"', '"\\u0000"', "[]"]


def too_long(limit: int) -> str:
    return json.dumps("x" * (limit + 1))


def choice(*also: str) -> list[str]:
    return [*NOT_TEXT, "null", '""', '"other"', *also]


def tags() -> list[str]:
    many = json.dumps(["x"] * 21)
    return ['"sea"', "null", "{}", "1", many, json.dumps(["x"] * 1900)]


def ids(limit: int) -> list[str]:
    return ["null", "{}", '"x"', json.dumps([NO_ONE] * 2), json.dumps([NO_ONE] * (limit + 1))]


# Of each kind of row, the fields, and JSON that each refuses.
WRONG: dict[str, dict[str, list[str]]] = {
    "world": {
        "name": [*NOT_TEXT, "null", '""', too_long(255)],
        "description": [*NOT_TEXT, too_long(10_000)],
        "tone": [*NOT_TEXT, too_long(500)],
        "backdrop": [*NOT_TEXT, too_long(LONG)],
        "laws": ["null", "[]", '"x"', "1"],
        "laws/physics": [*NOT_TEXT, too_long(10_000)],
        "laws/surprise": ["null", '"x"'],
        "chronology_mode": choice('"Linear"'),
        "surprise": ["1", "null"],
        "id": [f'"{NO_ONE}"'],
        "user_id": [f'"{NO_ONE}"'],
    },
    "event": {
        "t": NOT_NUMBERS,
        "label_time": [*NOT_TEXT, too_long(255)],
        "type": [*NOT_TEXT, "null", '""', too_long(100)],
        "summary": [*NOT_TEXT, "null", '""', too_long(10_000)],
        "description": [*NOT_TEXT, too_long(LONG)],
        "location": [*NOT_TEXT, too_long(255)],
        "location_id": [each for each in NOT_IDS if each != "null"],
        "tags": tags(),
        "tags/0": [*NOT_TEXT, "null", '""', too_long(100)],
        "caused_by_ids": ids(50),
        "caused_by_ids/0": [*NOT_IDS, f'"{NO_ONE}"'],
        "surprise": ["1"],
        "world_id": [f'"{NO_ONE}"'],
    },
    "story": {
        "title": [*NOT_TEXT, "null", '""', too_long(255)],
        "synopsis": [*NOT_TEXT, too_long(10_000)],
        "theme": [*NOT_TEXT, too_long(255)],
        "status": choice('"In_Progress"'),
        "mode": choice(),
        "pov_type": choice('"second"'),
        "tags": tags(),
        "tags/0": [*NOT_TEXT, "null", '""', too_long(100)],
        "surprise": ["1"],
        "archived_at": ["null"],
    },
    "beat": {
        "order_index": NOT_PLACES,
        "content": [*NOT_TEXT, "null", '""', too_long(LONG)],
        "type": choice('"Scene"'),
        "beat_type": choice('"Scene"'),
        "world_event_id": [each for each in NOT_IDS if each != "null"] + [f'"{NO_ONE}"'],
        "generated_by": choice('"AI"'),
        "summary": [*NOT_TEXT, too_long(10_000)],
        "local_time_label": [*NOT_TEXT, too_long(255)],
        "generation_reasoning": [*NOT_TEXT, too_long(10_000)],
        "surprise": ["1"],
        "story_id": [f'"{NO_ONE}"'],
    },
}


class Target:
    """Where a kind of row is created and changed, and what a valid body has."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.create: dict[str, tuple[str, dict[str, Any]]] = {}
        self.change: dict[str, str] = {}

    async def add_rows(self) -> None:
        world = self.world
        event, story = await world.add_event(), await world.add_story()
        beat = await world.add_beat(story)
        self.create = {
            "world": (WORLDS, {"name": "Orrery"}),
            "event": (f"{world.path}/events", {"t": 1, "type": "minor", "summary": "A bell."}),
            "story": (f"{world.path}/stories", {"title": "Light"}),
            "beat": (beats_at(story), {"content": "It was dark."}),
        }
        self.change = {
            "world": world.path,
            "event": event_at(event),
            "story": story_at(story),
            "beat": beat_at(beat),
        }


def body_with(valid: dict[str, Any], field: str, wrong: str) -> str:
    """Return a JSON object of valid members and one that is wrong, at the pointer."""
    name, _, inner = field.partition("/")
    value = f"[{wrong}]" if inner == "0" else f'{{"{inner}": {wrong}}}' if inner else wrong
    rest = "".join(f", {json.dumps(k)}: {json.dumps(v)}" for k, v in valid.items() if k != name)
    return f'{{"{name}": {value}{rest}}}'


@pytest.fixture
async def target(world: World) -> Target:
    target = Target(world)
    await target.add_rows()
    return target


@pytest.mark.parametrize("kind", WRONG)
async def test_wrong_values_are_named_and_change_nothing(
    target: Target, conn: Any, kind: str
) -> None:
    create, valid = target.create[kind]
    headers = {**target.world.headers, "Content-Type": "application/json"}
    before = await state(conn)
    for field, values in WRONG[kind].items():
        for wrong in values:
            for method, path in (("POST", create), ("PUT", target.change[kind])):
                data = body_with(valid if method == "POST" else {}, field, wrong)
                response = await target.world.client.request(
                    method, path, headers=headers, data=data
                )
                assert response.status == 422, (method, path, data[:100], response.status)
                problem = await assert_problem(response, 422, "invalid_fields")
                assert pointers(problem) == {f"#/{field}"}, data[:100]
    assert await state(conn) == before


async def state(conn: Any) -> Any:
    return await conn.fetch(
        "select (select jsonb_agg(worlds) from worlds),"
        " (select jsonb_agg(world_events) from world_events),"
        " (select jsonb_agg(event_causes) from event_causes),"
        " (select jsonb_agg(stories) from stories),"
        " (select jsonb_agg(story_beats) from story_beats)"
    )


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("-0.0", 0), ("-0", 0), ("9007199254740992", 2**53), ("1.50", 1.5), ("1e2", 100)],
)
async def test_numbers_at_the_limits_are_taken(target: Target, sent: str, stored: float) -> None:
    path, valid = target.create["event"]
    response = await target.world.client.post(
        path,
        headers={**target.world.headers, "Content-Type": "application/json"},
        data=body_with(valid, "t", sent),
    )
    event = await response.json()
    assert response.status == 201, event
    assert str(event["t"]) == str(float(stored))


@pytest.mark.parametrize("place", [0, 1.0, 2**31 - 1])
async def test_places_at_the_limits_are_taken(target: Target, place: float) -> None:
    path, valid = target.create["beat"]
    beat = await target.world.post(path, {**valid, "order_index": place})
    assert beat["order_index"] == place


async def test_beats_are_numbered_anew_if_the_last_possible_place_is_taken(
    target: Target,
) -> None:
    path, valid = target.create["beat"]
    for body in ({**valid, "order_index": 2**31 - 1}, valid):
        await target.world.post(path, body)
    assert [beat["order_index"] for beat in await target.world.get(path)] == [1, 2, 3]


async def test_beat_is_put_before_the_same_beat_if_all_are_numbered_anew(target: Target) -> None:
    path, valid = target.create["beat"]
    for place in (10, 20, 2**31 - 1):
        await target.world.post(path, {**valid, "content": str(place), "order_index": place})
    await target.world.post(path, {**valid, "content": "new", "order_index": 20})
    beats = await target.world.get(path)
    assert [beat["content"] for beat in beats if beat["content"] in ("new", "20")] == ["new", "20"]


@pytest.mark.parametrize("beat_ids", [*ids(5000)[:3], '["x"]', "[1]", "[null]", '["\\u0000"]'])
async def test_wrong_beat_ids_are_named(target: Target, beat_ids: str) -> None:
    path, _ = target.create["beat"]
    headers = {**target.world.headers, "Content-Type": "application/json"}
    data = f'{{"beat_ids": {beat_ids}}}'
    response = await target.world.client.post(f"{path}/reorder", headers=headers, data=data)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) <= {"#/beat_ids", "#/beat_ids/0"}


async def test_too_many_beat_ids_are_refused(target: Target) -> None:
    path, _ = target.create["beat"]
    response = await target.world.send("POST", f"{path}/reorder", {"beat_ids": [NO_ONE] * 5001})
    await assert_problem(response, 422, "invalid_fields")
    response = await target.world.send("POST", f"{path}/reorder", {"beat_ids": [NO_ONE] * 6000})
    await assert_problem(response, 413, "content_too_large")


@pytest.mark.parametrize("body", ['{"generation_reasoning": 1}', '{"content": "x"}', "[]"])
async def test_wrong_reasoning_is_refused(target: Target, body: str) -> None:
    headers = {**target.world.headers, "Content-Type": "application/json"}
    path = f"{target.change['beat']}/reasoning"
    response = await target.world.client.patch(path, headers=headers, data=body)
    await assert_problem(response, 422, "invalid_fields")


@pytest.mark.parametrize("query", ["force=1", "force=True", "force=", "surprise=1"])
async def test_deletion_with_a_wrong_parameter_changes_nothing(target: Target, query: str) -> None:
    path = target.change["story"]
    response = await target.world.send("DELETE", f"{path}?{query}")
    await assert_problem(response, 422, "invalid_fields")
    assert (await target.world.get(path))["status"] == "draft"


@pytest.mark.parametrize("wrong", ["me", "1", NO_ONE[:-1], f"{{{NO_ONE}}}", "%00", NO_ONE + "0"])
async def test_malformed_id_in_a_path_is_not_found(world: World, wrong: str) -> None:
    for path in (
        f"{WORLDS}/{wrong}",
        f"{WORLDS}/{wrong}/events",
        f"{world.path}/events/{wrong}",
        f"/api/v1/events/{wrong}",
        f"/api/v1/stories/{wrong}",
        f"/api/v1/stories/{NO_ONE}/beats/{wrong}",
    ):
        assert (await world.send("GET", path)).status == 404, path


async def test_id_in_a_path_may_be_in_capitals(world: World) -> None:
    assert await world.get(f"{WORLDS}/{world.body['id'].upper()}") == world.body


# Ids of another world of the same owner.


@pytest.fixture
async def other(client: Client, account: Account) -> World:
    return await create_world(client, account)


async def test_paths_do_not_mix_rows_of_two_worlds(world: World, other: World, conn: Any) -> None:
    event, story = await world.add_event(), await world.add_story()
    elsewhere, theirs = await other.add_event(), await other.add_story()
    beat = await other.add_beat(theirs)
    before = await state(conn)
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", f"{world.path}/events/{elsewhere['id']}", None),
        ("PUT", f"{world.path}/events/{elsewhere['id']}", {"t": 9}),
        ("DELETE", f"{world.path}/events/{elsewhere['id']}", None),
        ("POST", f"{event_at(event)}/dependencies/{elsewhere['id']}", None),
        ("DELETE", f"{event_at(event)}/dependencies/{elsewhere['id']}", None),
        ("GET", f"{beats_at(story)}/{beat['id']}", None),
        ("PUT", f"{beats_at(story)}/{beat['id']}", {"content": "mine"}),
        ("PATCH", f"{beats_at(story)}/{beat['id']}/reasoning", {}),
        ("DELETE", f"{beats_at(story)}/{beat['id']}", None),
    ]
    for method, path, body in requests:
        await assert_problem(await world.send(method, path, body), 404, "not_found")
    assert await state(conn) == before


async def test_bodies_do_not_mix_rows_of_two_worlds(world: World, other: World, conn: Any) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat, elsewhere = await world.add_beat(story), await other.add_event()
    before = await state(conn)
    causes, link = {"caused_by_ids": [elsewhere["id"]]}, {"world_event_id": elsewhere["id"]}
    new_event = {"t": 1, "type": "minor", "summary": "A bell.", **causes}
    requests: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", f"{world.path}/events", new_event, "#/caused_by_ids/0"),
        ("PUT", event_at(event), causes, "#/caused_by_ids/0"),
        ("POST", beats_at(story), {"content": "x", **link}, "#/world_event_id"),
        ("PUT", beat_at(beat), link, "#/world_event_id"),
    ]
    for method, path, body, pointer in requests:
        problem = await assert_problem(await world.send(method, path, body), 422, "invalid_fields")
        assert pointers(problem) == {pointer}
    assert await state(conn) == before
