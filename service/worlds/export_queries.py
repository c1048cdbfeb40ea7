"""SQL that reads a whole world, in the order of its document."""

import uuid
from collections.abc import AsyncIterator

import asyncpg

from service.db.connection import Connection
from service.worlds.beat_queries import BEAT
from service.worlds.event_queries import EVENT
from service.worlds.story_queries import STORY

# Rows that are fetched at once. Each may have some pages of text.
PREFETCH = 100


def walk_events(conn: Connection, world_id: uuid.UUID) -> AsyncIterator[asyncpg.Record]:
    """Iterate over the events of the world, in a transaction."""
    return aiter(
        conn.cursor(
            f"select {EVENT} from world_events e where world_id = $1 order by t, id",  # noqa: S608
            world_id,
            prefetch=PREFETCH,
        )
    )


async def list_all_stories(conn: Connection, world_id: uuid.UUID) -> list[asyncpg.Record]:
    return await conn.fetch(
        f"select {STORY} from stories s where world_id = $1 order by id",  # noqa: S608
        world_id,
    )


def walk_beats(conn: Connection, story_id: uuid.UUID) -> AsyncIterator[asyncpg.Record]:
    """Iterate over the beats of the story, in a transaction."""
    return aiter(
        conn.cursor(
            f"select {BEAT} from story_beats b where story_id = $1 order by order_index",  # noqa: S608
            story_id,
            prefetch=PREFETCH,
        )
    )
