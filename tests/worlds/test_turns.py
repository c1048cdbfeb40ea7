"""Writes in one world take turns: each race runs in its worst order."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import StartApp
from tests.support.factories import register
from tests.support.holding import holding
from tests.support.worlds import World, beat_at, beats_at, create_world, event_at, story_at

MINE = {"If-Match": '"1"'}


async def test_one_of_two_changes_of_a_world_with_the_same_etag_is_made(
    world: World, conn: Any
) -> None:
    async with holding(conn, "select from worlds for update") as start:
        tasks = [await start(world.send("PUT", "", {"name": name}, MINE)) for name in "ab"]
    assert sorted(task.result().status for task in tasks) == [200, 412]


@pytest.mark.parametrize("kind", ["event", "story", "beat"])
async def test_one_of_two_changes_of_a_row_with_the_same_etag_is_made(
    world: World, conn: Any, kind: str
) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat = await world.add_beat(story)
    path, field, table = {
        "event": (event_at(event), "summary", "world_events"),
        "story": (story_at(story), "title", "stories"),
        "beat": (beat_at(beat), "content", "story_beats"),
    }[kind]
    async with holding(conn, f"select from {table} for update") as start:
        tasks = [await start(world.send("PUT", path, {field: text}, MINE)) for text in "ab"]
    assert sorted(task.result().status for task in tasks) == [200, 412]


async def test_one_of_two_deletions_of_a_world_is_recorded(world: World, conn: Any) -> None:
    async with holding(conn, "select from worlds for update") as start:
        tasks = [await start(world.send("DELETE", "")) for _ in range(2)]
    assert sorted(task.result().status for task in tasks) == [204, 404]
    recorded = "select count(*) from audit_events where action = 'world.delete'"
    assert await conn.fetchval(recorded) == 1


async def test_two_causes_that_together_close_a_cycle_are_not_both_added(
    world: World, conn: Any
) -> None:
    """Neither sees the other unless they take turns."""
    one, other = await world.add_event(), await world.add_event()
    paths = [
        f"{event_at(each)}/dependencies/{cause['id']}"
        for each, cause in ((one, other), (other, one))
    ]
    async with holding(conn, "lock table event_causes in share mode") as start:
        tasks = [await start(world.send("POST", path)) for path in paths]
    assert sorted(task.result().status for task in tasks) == [204, 422]
    assert await conn.fetchval("select count(*) from event_causes") == 1


async def test_beats_that_are_appended_at_once_follow_each_other(
    start_app: StartApp,
) -> None:
    client = await start_app(db_pool_size=12)
    world = await create_world(client, await register(client))
    story = await world.add_story()
    beats = await asyncio.gather(*(world.add_beat(story) for _ in range(10)))
    assert sorted(beat["order_index"] for beat in beats) == list(range(1, 11))


async def test_beat_that_is_added_while_others_are_reordered_is_not_lost(
    world: World, conn: Any
) -> None:
    story = await world.add_story()
    one, other = [await world.add_beat(story, content=text) for text in "ab"]
    body = {"beat_ids": [other["id"], one["id"]]}
    async with holding(conn, "select from story_beats for update") as start:
        reordering = await start(world.send("POST", f"{beats_at(story)}/reorder", body))
        adding = await start(world.send("POST", beats_at(story), {"content": "c"}))
    assert (reordering.result().status, adding.result().status) == (200, 201)
    found = await world.get(beats_at(story))
    assert [(each["order_index"], each["content"]) for each in found] == [
        (1, "b"),
        (2, "a"),
        (3, "c"),
    ]


async def test_event_that_is_deleted_is_not_linked_meanwhile(world: World, conn: Any) -> None:
    event, story = await world.add_event(), await world.add_story()
    link = {"content": "x", "world_event_id": event["id"]}
    async with holding(conn, "select from world_events for update") as start:
        deleting = await start(world.send("DELETE", event_at(event)))
        linking = await start(world.send("POST", beats_at(story), link))
    assert (deleting.result().status, linking.result().status) == (204, 422)


async def test_nothing_is_added_to_a_world_that_is_deleted_meanwhile(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(db_pool_size=12)
    world = await create_world(client, await register(client))
    story = await world.add_story()
    async with holding(conn, "select from worlds for update") as start:
        deleting = await start(world.send("DELETE", ""))
        adding = [
            await start(world.send("POST", path, body))
            for path, body in (
                (f"{world.path}/events", {"t": 1, "type": "minor", "summary": "A bell."}),
                (f"{world.path}/stories", {"title": "x"}),
                (beats_at(story), {"content": "x"}),
                (f"{story_at(story)}/clone", None),
            )
        ]
    assert deleting.result().status == 204
    assert {task.result().status for task in adding} == {404}
