"""Beats of a story, and their order."""

import uuid
from typing import Any

import pytest

from tests.support.factories import assert_problem, pointers
from tests.support.worlds import EXACT_TEXT, NO_ONE, World, beat_at, beats_at

BEAT_TYPES = ("scene", "summary", "note", "log", "memory", "dialogue", "description")


@pytest.fixture
async def story(world: World) -> dict[str, Any]:
    return await world.add_story()


async def add(world: World, story: dict[str, Any], contents: str) -> list[dict[str, Any]]:
    """Append a beat for each letter."""
    return [await world.add_beat(story, content=content) for content in contents]


async def order(world: World, story: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the places and contents of the beats, as listed."""
    return [(beat["order_index"], beat["content"]) for beat in await world.get(beats_at(story))]


async def test_created_beat_has_all_fields(world: World, story: dict[str, Any]) -> None:
    response = await world.send("POST", beats_at(story), {"content": "It was dark."})
    assert response.status == 201
    beat = await response.json()
    assert uuid.UUID(beat.pop("id")).version == 7
    assert beat.pop("created_at") == beat.pop("updated_at")
    assert beat == {
        "story_id": story["id"],
        "order_index": 1,
        "content": "It was dark.",
        "type": "scene",
        "world_event_id": None,
        "generated_by": "user",
        "summary": None,
        "local_time_label": None,
        "generation_reasoning": None,
    }


async def test_created_beat_is_at_its_location(world: World, story: dict[str, Any]) -> None:
    created = await world.send("POST", beats_at(story), {"content": "It was dark."})
    found = await world.send("GET", created.headers["Location"])
    assert await found.json() == await created.json()
    assert created.headers["ETag"] == found.headers["ETag"] == '"1"'


async def test_beat_keeps_all_that_was_sent(world: World, story: dict[str, Any]) -> None:
    event = await world.add_event()
    sent = {
        "order_index": 3,
        "content": "It was dark.",
        "type": "dialogue",
        "world_event_id": event["id"],
        "generated_by": "collaborative",
        "summary": "Dark.",
        "local_time_label": "That night",
        "generation_reasoning": "",
    }
    beat = await world.add_beat(story, **sent)
    found = await world.get(beat_at(beat))
    assert found == {**found, **sent}


@pytest.mark.parametrize("field", ["content", "summary", "local_time_label"])
async def test_text_is_kept_exactly_as_written(
    world: World, story: dict[str, Any], field: str
) -> None:
    beat = await world.add_beat(story, **{field: EXACT_TEXT})
    assert (await world.get(beat_at(beat)))[field] == EXACT_TEXT


async def test_longest_content_of_four_byte_characters_is_kept(
    world: World, story: dict[str, Any]
) -> None:
    """With JSON's escapes, it is 600 kB."""
    content = "🜁" * 50_000
    beat = await world.add_beat(story, content=content)
    assert (await world.get(beat_at(beat)))["content"] == content


@pytest.mark.parametrize("name", ["type", "beat_type"])
async def test_type_may_have_either_name(world: World, story: dict[str, Any], name: str) -> None:
    for value in BEAT_TYPES:
        assert (await world.add_beat(story, **{name: value}))["type"] == value
    beat = await world.add_beat(story)
    assert (await world.change(beat_at(beat), **{name: "log"}))["type"] == "log"


async def test_type_cannot_have_both_names(world: World, story: dict[str, Any]) -> None:
    body = {"content": "x", "type": "log", "beat_type": "log"}
    problem = await assert_problem(
        await world.send("POST", beats_at(story), body), 422, "invalid_fields"
    )
    assert pointers(problem) == {"#/beat_type"}


async def test_change_keeps_omitted_fields(world: World, story: dict[str, Any]) -> None:
    beat = await world.add_beat(story, summary="Dark.", order_index=4)
    changed = await world.change(beat_at(beat), content="It was light.")
    assert changed["updated_at"] > beat["updated_at"]
    assert changed == {**beat, "content": "It was light.", "updated_at": changed["updated_at"]}
    assert await world.get(beat_at(beat)) == changed


async def test_change_makes_a_new_etag(world: World, story: dict[str, Any]) -> None:
    beat = await world.add_beat(story)
    response = await world.send("PUT", beat_at(beat), {"summary": "Dark."})
    assert response.headers["ETag"] == '"2"'
    assert (await world.send("GET", beat_at(beat))).headers["ETag"] == '"2"'


@pytest.mark.parametrize("change", [{}, {"order_index": 1}, {"beat_type": "scene"}])
async def test_change_to_what_is_there_changes_nothing(
    world: World, story: dict[str, Any], change: Any
) -> None:
    beat = await world.add_beat(story)
    response = await world.send("PUT", beat_at(beat), change)
    assert response.headers["ETag"] == '"1"'
    assert await response.json() == beat


async def test_event_is_linked_and_unlinked(world: World, story: dict[str, Any]) -> None:
    event, beat = await world.add_event(), await world.add_beat(story)
    linked = await world.change(beat_at(beat), world_event_id=event["id"])
    assert linked["world_event_id"] == event["id"]
    assert (await world.change(beat_at(beat), world_event_id=None))["world_event_id"] is None


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_unknown_event_is_named(world: World, story: dict[str, Any], method: str) -> None:
    beat = await world.add_beat(story)
    path = beats_at(story) if method == "POST" else beat_at(beat)
    response = await world.send(method, path, {"content": "x", "world_event_id": NO_ONE})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/world_event_id"}
    assert await world.get(beats_at(story)) == [beat]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"generation_reasoning": "Why not."}, "Why not."),
        ({"generation_reasoning": None}, None),
        ({"generation_reasoning": ""}, ""),
        ({}, None),
    ],
)
async def test_reasoning_is_changed_alone(
    world: World, story: dict[str, Any], body: Any, expected: str | None
) -> None:
    beat = await world.add_beat(story, generation_reasoning="Because.", summary="Dark.")
    response = await world.send("PATCH", f"{beat_at(beat)}/reasoning", body)
    changed = await response.json()
    assert (response.status, response.headers["ETag"]) == (200, '"2"')
    expected_beat = {**beat, "generation_reasoning": expected}
    assert changed == {**expected_beat, "updated_at": changed["updated_at"]}


async def test_deleted_beat_is_gone(world: World, story: dict[str, Any]) -> None:
    beat = await world.add_beat(story)
    await world.delete(beat_at(beat))
    await assert_problem(await world.send("GET", beat_at(beat)), 404, "not_found")
    assert await world.get(beats_at(story)) == []


async def test_repeated_creation_with_a_key_creates_one_beat(
    world: World, story: dict[str, Any]
) -> None:
    body, headers = {"content": "It was dark."}, {"Idempotency-Key": "once"}
    first, second = [await world.send("POST", beats_at(story), body, headers) for _ in range(2)]
    assert (first.status, await first.json()) == (second.status, await second.json())
    assert len(await world.get(beats_at(story))) == 1


# Order.


async def test_beats_are_appended_from_1(world: World, story: dict[str, Any]) -> None:
    await add(world, story, "abc")
    assert await order(world, story) == [(1, "a"), (2, "b"), (3, "c")]


async def test_beat_is_appended_after_the_last_place(world: World, story: dict[str, Any]) -> None:
    await world.add_beat(story, content="a", order_index=10)
    await add(world, story, "b")
    assert await order(world, story) == [(10, "a"), (11, "b")]


async def test_inserted_beat_moves_others_on(world: World, story: dict[str, Any]) -> None:
    await add(world, story, "abc")
    await world.add_beat(story, content="x", order_index=2)
    assert await order(world, story) == [(1, "a"), (2, "x"), (3, "b"), (4, "c")]


async def test_beat_in_a_free_place_moves_no_other(world: World, story: dict[str, Any]) -> None:
    _, b, _ = await add(world, story, "abc")
    await world.delete(beat_at(b))
    await world.add_beat(story, content="x", order_index=2)
    assert await order(world, story) == [(1, "a"), (2, "x"), (3, "c")]


@pytest.mark.parametrize("create", [True, False])
async def test_beat_may_be_put_in_place_0(
    world: World, story: dict[str, Any], create: bool
) -> None:
    await add(world, story, "a")
    if create:
        await world.add_beat(story, content="x", order_index=0)
    else:
        (x,) = await add(world, story, "x")
        await world.change(beat_at(x), order_index=0)
    assert await order(world, story) == [(0, "x"), (1, "a")]


async def test_moved_beat_moves_others_on(world: World, story: dict[str, Any]) -> None:
    *_, d = await add(world, story, "abcd")
    await world.change(beat_at(d), order_index=2)
    assert await order(world, story) == [(1, "a"), (2, "d"), (3, "b"), (4, "c")]


async def test_moved_beats_get_new_etags(world: World, story: dict[str, Any]) -> None:
    a, b = await add(world, story, "ab")
    await world.add_beat(story, content="x", order_index=2)
    tags = [(await world.send("GET", beat_at(beat))).headers["ETag"] for beat in (a, b)]
    assert tags == ['"1"', '"2"']


async def test_reorder_numbers_the_beats_from_1(world: World, story: dict[str, Any]) -> None:
    a, b, c = await add(world, story, "abc")
    await world.change(beat_at(c), order_index=9)
    body = {"beat_ids": [beat["id"] for beat in (c, a, b)]}
    response = await world.send("POST", f"{beats_at(story)}/reorder", body)
    assert response.status == 200
    assert await order(world, story) == [(1, "c"), (2, "a"), (3, "b")]
    assert await response.json() == await world.get(beats_at(story))


async def test_reorder_changes_only_beats_that_move(world: World, story: dict[str, Any]) -> None:
    a, b, c = await add(world, story, "abc")
    body = {"beat_ids": [beat["id"] for beat in (a, c, b)]}
    assert (await world.send("POST", f"{beats_at(story)}/reorder", body)).status == 200
    tags = [(await world.send("GET", beat_at(beat))).headers["ETag"] for beat in (a, b, c)]
    assert tags == ['"1"', '"2"', '"2"']


async def test_reorder_of_a_story_without_beats_is_empty(
    world: World, story: dict[str, Any]
) -> None:
    response = await world.send("POST", f"{beats_at(story)}/reorder", {"beat_ids": []})
    assert (response.status, await response.json()) == (200, [])


@pytest.mark.parametrize("fault", ["none", "missing", "twice", "unknown", "of another story"])
async def test_reorder_with_a_wrong_set_changes_nothing(
    world: World, story: dict[str, Any], fault: str
) -> None:
    a, b, c = await add(world, story, "abc")
    other = await world.add_beat(await world.add_story())
    ids = {
        "none": [],
        "missing": [b["id"], a["id"]],
        "twice": [c["id"], b["id"], a["id"], a["id"]],
        "unknown": [c["id"], b["id"], NO_ONE],
        "of another story": [c["id"], b["id"], a["id"], other["id"]],
    }
    response = await world.send("POST", f"{beats_at(story)}/reorder", {"beat_ids": ids[fault]})
    await assert_problem(response, 400, "wrong_beats")
    assert await world.get(beats_at(story)) == [a, b, c]


async def test_all_beats_of_a_long_story_are_reordered_at_once(
    world: World, story: dict[str, Any], conn: Any
) -> None:
    await conn.execute(
        """
        insert into story_beats (
            id, world_id, story_id, order_index, content, words, characters, type, generated_by
        )
        select gen_random_uuid(), $1, $2, n, 'x', 1, 1, 'scene', 'user'
        from generate_series(1, 3000) n
        """,
        world.body["id"],
        story["id"],
    )
    rows = await conn.fetch("select id from story_beats order by order_index desc")
    body = {"beat_ids": [str(row["id"]) for row in rows]}
    response = await world.send("POST", f"{beats_at(story)}/reorder", body)
    assert [beat["id"] for beat in await response.json()] == body["beat_ids"][:1000]
    assert await conn.fetch("select id from story_beats order by order_index") == rows
