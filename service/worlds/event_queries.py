"""SQL for events, and for what causes them."""

import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset
from service.worlds.ids import texts
from service.worlds.words import vector

IN_TIME = Keyset({"t": float, "id": uuid.UUID}, descending=False)
EVENT = """
    e.id, e.world_id, e.t, e.label_time, e.type, e.summary, e.description, e.location,
    e.location_id, e.tags, e.version, e.created_at, e.updated_at,
    array(
        select cause_id::text from event_causes where event_id = e.id order by cause_id
    ) as caused_by_ids
"""
# Pairs that one statement inserts.
CAUSES_AT_ONCE = 5_000
# The words of an event with these arguments.
WORDS = vector("$2", "concat_ws(' ', $5::text, $6, $7, $8, array_to_string($10::text[], ' '))")
# An event $2 of the account $1.
OWN_EVENT = """
    from world_events e join worlds w on w.id = e.world_id
    where e.id = $2 and w.user_id = $1 and w.deleted_at is null
"""


async def list_events(
    conn: Connection, world_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return events in the order of their time, those of a world that is not checked here."""
    t, event_id = after or (None, None)
    return await conn.fetch(
        f"""
        select {EVENT} from world_events e
        where e.world_id = $1 and ($2::float8 is null or (e.t, e.id) > ($2, $3))
        order by e.t, e.id limit $4
        """,  # noqa: S608
        world_id,
        t,
        event_id,
        limit,
    )


async def count_events(conn: Connection, world_id: uuid.UUID) -> int:
    count: int = await conn.fetchval("select events from worlds where id = $1", world_id)
    return count


async def find_event(
    conn: Connection, user_id: uuid.UUID, event_id: uuid.UUID
) -> asyncpg.Record | None:
    return await conn.fetchrow(f"select {EVENT} {OWN_EVENT}", user_id, event_id)


async def lock_event(
    conn: Connection, user_id: uuid.UUID, event_id: uuid.UUID
) -> asyncpg.Record | None:
    """Lock the event's world until the transaction ends, and return the event."""
    locked = await conn.fetchval(
        """
        select id from worlds
        where id = (select world_id from world_events where id = $2) and user_id = $1
            and deleted_at is null
        for no key update
        """,
        user_id,
        event_id,
    )
    return await find_event(conn, user_id, event_id) if locked else None


INSERT = f"""
    with inserted as (
        insert into world_events (
            id, world_id, t, type, label_time, summary, description, location, location_id, tags
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    )
    insert into event_words (id, world_id, words) values ($1, $2, {WORDS})
"""  # noqa: S608


async def insert_event(
    conn: Connection, event_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> None:
    await conn.execute(INSERT, *_arguments(event_id, world_id, values))


async def insert_events(
    conn: Connection, world_id: uuid.UUID, rows: list[tuple[uuid.UUID, dict[str, Any]]]
) -> None:
    await conn.executemany(
        INSERT, [_arguments(event_id, world_id, values) for event_id, values in rows]
    )


async def update_event(
    conn: Connection, event_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> None:
    await conn.execute(
        f"""
        with updated as (
            update world_events set
                t = $3, type = $4, label_time = $5, summary = $6, description = $7, location = $8,
                location_id = $9, tags = $10, version = version + 1, updated_at = now()
            where id = $1 and world_id = $2
        )
        update event_words set words = {WORDS} where id = $1
        """,  # noqa: S608
        *_arguments(event_id, world_id, values),
    )


def _arguments(
    event_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> tuple[object, ...]:
    names = ("t", "type", "label_time", "summary", "description", "location", "location_id", "tags")
    return (event_id, world_id, *(values[name] for name in names))


async def delete_event(conn: Connection, event_id: uuid.UUID) -> None:
    """Delete the event. Its beats lose their link to it, and what it caused a cause.

    Both change with that, so that no earlier ETag of theirs matches.
    """
    await conn.execute(
        """
        update story_beats
        set world_event_id = null, version = version + 1, updated_at = now()
        where world_event_id = $1
        """,
        event_id,
    )
    await conn.execute(
        """
        update world_events set version = version + 1, updated_at = now()
        where id in (select event_id from event_causes where cause_id = $1)
        """,
        event_id,
    )
    await conn.execute("delete from world_events where id = $1", event_id)


async def touch_event(conn: Connection, event_id: uuid.UUID) -> None:
    await conn.execute(
        "update world_events set version = version + 1, updated_at = now() where id = $1", event_id
    )


async def find_missing_events(
    conn: Connection, world_id: uuid.UUID, event_ids: Sequence[uuid.UUID]
) -> set[uuid.UUID]:
    """Return those of the ids that no event of the world has."""
    rows = await conn.fetch(
        "select id from world_events where world_id = $1 and id = any($2::text[]::uuid[])",
        world_id,
        texts(event_ids),
    )
    return set(event_ids) - {row["id"] for row in rows}


async def leads_to(conn: Connection, event_id: uuid.UUID, cause_ids: Sequence[uuid.UUID]) -> bool:
    """Return whether the event is one of the causes, or among what they are caused by."""
    found: bool = await conn.fetchval(
        """
        with recursive earlier (id) as (
            select unnest($2::text[]::uuid[])
            union
            select event_causes.cause_id from event_causes join earlier on event_id = earlier.id
        )
        select exists (select from earlier where id = $1)
        """,
        event_id,
        texts(cause_ids),
    )
    return found


async def set_causes(
    conn: Connection, world_id: uuid.UUID, event_id: uuid.UUID, cause_ids: Sequence[uuid.UUID]
) -> None:
    await conn.execute(
        "delete from event_causes where event_id = $1 and cause_id <> all($2::text[]::uuid[])",
        event_id,
        texts(cause_ids),
    )
    await conn.execute(
        """
        insert into event_causes (world_id, event_id, cause_id)
        select $1, $2, unnest($3::text[]::uuid[])
        on conflict on constraint event_causes_pkey do nothing
        """,
        world_id,
        event_id,
        texts(cause_ids),
    )


async def insert_causes(
    conn: Connection, world_id: uuid.UUID, edges: Sequence[tuple[uuid.UUID, uuid.UUID]]
) -> None:
    """Insert pairs of an event and a cause of it."""
    for start in range(0, len(edges), CAUSES_AT_ONCE):
        few = edges[start : start + CAUSES_AT_ONCE]
        await conn.execute(
            """
            insert into event_causes (world_id, event_id, cause_id)
            select $1, unnest($2::text[]::uuid[]), unnest($3::text[]::uuid[])
            """,
            world_id,
            texts(event_id for event_id, _ in few),
            texts(cause_id for _, cause_id in few),
        )


async def count_links(conn: Connection, event_id: uuid.UUID) -> int:
    """Return how many beats are linked to the event."""
    count: int = await conn.fetchval(
        "select count(*) from story_beats where world_event_id = $1", event_id
    )
    return count
