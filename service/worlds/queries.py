"""SQL for worlds.

Whoever writes in a world locks it first, with ``lock_world``, ``count_in``, or the function that
locks the world of an event or story. So the writes in a world take turns, and rules across its rows
hold.
"""

import uuid
from typing import Any

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset

NEWEST_FIRST = Keyset({"id": uuid.UUID}, descending=True)
WORLD = """
    worlds.id, worlds.user_id, worlds.name, worlds.description, worlds.tone, worlds.backdrop,
    worlds.laws, worlds.chronology_mode, worlds.text_search, worlds.version, worlds.created_at,
    worlds.updated_at
"""


async def list_worlds(
    conn: Connection, user_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    return await conn.fetch(
        f"""
        select {WORLD} from worlds
        where user_id = $1 and deleted_at is null and ($2::uuid is null or id < $2)
        order by id desc limit $3
        """,  # noqa: S608
        user_id,
        after[0] if after else None,
        limit,
    )


async def find_world(
    conn: Connection, user_id: uuid.UUID, world_id: uuid.UUID
) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        select {WORLD} from worlds where id = $2 and user_id = $1 and deleted_at is null
        """,  # noqa: S608
        user_id,
        world_id,
    )


async def lock_world(
    conn: Connection, user_id: uuid.UUID, world_id: uuid.UUID
) -> asyncpg.Record | None:
    """Return the world, locked until the transaction ends."""
    return await conn.fetchrow(
        f"""
        select {WORLD} from worlds where id = $2 and user_id = $1 and deleted_at is null
        for no key update
        """,  # noqa: S608
        user_id,
        world_id,
    )


async def count_in(
    conn: Connection,
    user_id: uuid.UUID,
    world_id: uuid.UUID,
    *,
    stories: int = 0,
    events: int = 0,
    beats: int = 0,
) -> asyncpg.Record | None:
    """Lock the world, and change how many rows it has."""
    return await conn.fetchrow(
        """
        update worlds
        set stories = stories + $3, events = events + $4, beats = beats + $5
        where id = $2 and user_id = $1 and deleted_at is null
        returning id, stories, events, beats
        """,
        user_id,
        world_id,
        stories,
        events,
        beats,
    )


async def count_rows(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record:
    """Return how many worlds, stories and beats the account has.

    Until the transaction ends, others that count the rows of the account wait, so that requests at
    the same time do not exceed a limit together.
    """
    await conn.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"worlds {user_id}")
    row = await conn.fetchrow(
        """
        select count(*) as worlds, coalesce(sum(stories), 0) as stories,
            coalesce(sum(beats), 0) as beats
        from worlds where user_id = $1 and deleted_at is null
        """,
        user_id,
    )
    assert row is not None  # noqa: S101
    return row


async def insert_world(
    conn: Connection, world_id: uuid.UUID, user_id: uuid.UUID, values: dict[str, Any]
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"""
        insert into worlds (
            id, user_id, name, description, tone, backdrop, laws, chronology_mode, text_search
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        returning {WORLD}
        """,  # noqa: S608
        world_id,
        user_id,
        values["name"],
        values["description"],
        values["tone"],
        values["backdrop"],
        values["laws"],
        values["chronology_mode"],
        values["text_search"],
    )
    assert row is not None  # noqa: S101
    return row


async def update_world(
    conn: Connection, world_id: uuid.UUID, values: dict[str, Any]
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"""
        update worlds set
            name = $2, description = $3, tone = $4, backdrop = $5, laws = $6, chronology_mode = $7,
            version = version + 1, updated_at = now()
        where id = $1
        returning {WORLD}
        """,  # noqa: S608
        world_id,
        values["name"],
        values["description"],
        values["tone"],
        values["backdrop"],
        values["laws"],
        values["chronology_mode"],
    )
    assert row is not None  # noqa: S101
    return row


async def mark_deleted(conn: Connection, world_id: uuid.UUID) -> None:
    """Delete the world for its owner; ``delete_slice`` deletes its rows."""
    await conn.execute("update worlds set deleted_at = now() where id = $1", world_id)


async def list_deleted(conn: Connection, limit: int) -> list[uuid.UUID]:
    rows = await conn.fetch(
        "select id from worlds where deleted_at is not null order by deleted_at limit $1", limit
    )
    return [row["id"] for row in rows]


async def mark_all_deleted(conn: Connection, user_id: uuid.UUID) -> list[uuid.UUID]:
    """Delete all worlds of the account, and return their ids, with those deleted before."""
    rows = await conn.fetch(
        """
        update worlds set deleted_at = coalesce(deleted_at, now()) where user_id = $1
        returning id
        """,
        user_id,
    )
    return [row["id"] for row in rows]


async def delete_slice(conn: Connection, world_id: uuid.UUID, limit: int) -> bool:
    """Delete up to ``limit`` rows of a deleted world, then the world. Return whether any is left.

    Waits while another replica deletes a slice of it.
    """
    found = await conn.fetchval(
        "select id from worlds where id = $1 and deleted_at is not null for update", world_id
    )
    if found is None:
        return False
    # In this order, a row takes only its words with it. The later tables have far fewer rows.
    for table in ("story_beats", "stories", "event_causes", "world_events"):
        deleted = await conn.fetch(
            f"""
            delete from {table} where ctid = any(array(
                select ctid from {table} where world_id = $1 limit $2
            ))
            returning world_id
            """,  # noqa: S608
            world_id,
            limit,
        )
        if deleted:
            return True
    await conn.execute("delete from worlds where id = $1", world_id)
    return False
