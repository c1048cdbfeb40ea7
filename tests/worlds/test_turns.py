"""Writes in one world take turns: each race runs in its worst order."""

from typing import Any

import pytest

from tests.support.holding import holding
from tests.support.worlds import World, beat_at, event_at, story_at

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
