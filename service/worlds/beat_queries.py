"""SQL for the beats of a story."""

import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset
from service.worlds.ids import texts
from service.worlds.words import vector

IN_ORDER = Keyset({"order_index": int, "id": uuid.UUID}, descending=False)
BEAT = """
    b.id, b.world_id, b.story_id, b.order_index, b.content, b.type, b.world_event_id,
    b.generated_by, b.summary, b.local_time_label, b.generation_reasoning, b.version, b.created_at,
    b.updated_at
"""
# The words of a beat with these arguments.
WORDS = vector("$2", "concat_ws(' ', $5::text, $11, $12)")
# A beat $3 of the story $2 of the account $1.
OWN_BEAT = """
    from story_beats b join worlds w on w.id = b.world_id
    where b.id = $3 and b.story_id = $2 and w.user_id = $1 and w.deleted_at is null
"""


async def list_beats(
    conn: Connection, story_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return beats in their order, those of a story that is not checked here."""
    order_index, beat_id = after or (None, None)
    return await conn.fetch(
        f"""
        select {BEAT} from story_beats b
        where b.story_id = $1 and ($2::int is null or (b.order_index, b.id) > ($2, $3))
        order by b.order_index, b.id limit $4
        """,  # noqa: S608
        story_id,
        order_index,
        beat_id,
        limit,
    )


async def find_beat(
    conn: Connection, user_id: uuid.UUID, story_id: uuid.UUID, beat_id: uuid.UUID
) -> asyncpg.Record | None:
    return await conn.fetchrow(f"select {BEAT} {OWN_BEAT}", user_id, story_id, beat_id)


async def find_places(conn: Connection, story_id: uuid.UUID) -> dict[uuid.UUID, int]:
    """Return the order of the story's beats, by id."""
    rows = await conn.fetch(
        "select id, order_index from story_beats where story_id = $1 order by order_index", story_id
    )
    return {row["id"]: row["order_index"] for row in rows}


async def find_last_place(conn: Connection, story_id: uuid.UUID) -> int:
    """Return the ``order_index`` of the last beat, or 0 if there is none."""
    last: int = await conn.fetchval(
        "select coalesce(max(order_index), 0) from story_beats where story_id = $1", story_id
    )
    return last


async def make_room(conn: Connection, story_id: uuid.UUID, order_index: int) -> None:
    """Move the beats from this place on by one, if it is taken."""
    await conn.execute(
        """
        update story_beats
        set order_index = order_index + 1, version = version + 1, updated_at = now()
        where story_id = $1 and order_index >= $2
            and exists (select from story_beats where story_id = $1 and order_index = $2)
        """,
        story_id,
        order_index,
    )


async def reorder(conn: Connection, story_id: uuid.UUID, beat_ids: Sequence[uuid.UUID]) -> None:
    """Number the beats from 1 in this order. Those that stay where they are do not change."""
    await conn.execute(
        """
        update story_beats
        set order_index = place, version = version + 1, updated_at = now()
        from unnest($2::text[]::uuid[]) with ordinality as wanted (id, place)
        where story_beats.id = wanted.id and story_id = $1 and order_index <> place
        """,
        story_id,
        texts(beat_ids),
    )


INSERT = f"""
    with inserted as (
        insert into story_beats as b (
            id, world_id, story_id, order_index, content, words, characters, type, world_event_id,
            generated_by, summary, local_time_label, generation_reasoning
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        returning {BEAT}
    ), indexed as (
        insert into beat_words (id, world_id, words) values ($1, $2, {WORDS})
    )
"""  # noqa: S608


async def insert_beat(
    conn: Connection,
    beat_id: uuid.UUID,
    world_id: uuid.UUID,
    story_id: uuid.UUID,
    values: dict[str, Any],
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"{INSERT} select * from inserted",  # noqa: S608
        *_arguments(beat_id, world_id, story_id, values),
    )
    assert row is not None  # noqa: S101
    return row


async def insert_beats(
    conn: Connection,
    world_id: uuid.UUID,
    rows: list[tuple[uuid.UUID, uuid.UUID, dict[str, Any]]],
) -> None:
    """Insert beats, each given as its id, its story's and its values."""
    await conn.executemany(
        f"{INSERT} select id from inserted",  # noqa: S608
        [_arguments(beat_id, world_id, story_id, values) for beat_id, story_id, values in rows],
    )


async def update_beat(
    conn: Connection,
    beat_id: uuid.UUID,
    world_id: uuid.UUID,
    story_id: uuid.UUID,
    values: dict[str, Any],
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"""
        with updated as (
            update story_beats as b set
                order_index = $4, content = $5, words = $6, characters = $7, type = $8,
                world_event_id = $9, generated_by = $10, summary = $11, local_time_label = $12,
                generation_reasoning = $13, version = version + 1, updated_at = now()
            where id = $1 and story_id = $3
            returning {BEAT}
        ), indexed as (
            update beat_words set words = {WORDS} where id = $1
        )
        select * from updated
        """,  # noqa: S608
        *_arguments(beat_id, world_id, story_id, values),
    )
    assert row is not None  # noqa: S101
    return row


def _arguments(
    beat_id: uuid.UUID, world_id: uuid.UUID, story_id: uuid.UUID, values: dict[str, Any]
) -> tuple[object, ...]:
    return (
        beat_id,
        world_id,
        story_id,
        values["order_index"],
        values["content"],
        count_words(values["content"]),
        len(values["content"]),
        values["type"],
        values["world_event_id"],
        values["generated_by"],
        values["summary"],
        values["local_time_label"],
        values["generation_reasoning"],
    )


def count_words(text: str) -> int:
    """Return how many words are between white space."""
    return len(text.split())


async def delete_beat(conn: Connection, beat_id: uuid.UUID) -> None:
    await conn.execute("delete from story_beats where id = $1", beat_id)


async def count_beats(conn: Connection, story_id: uuid.UUID) -> int:
    count: int = await conn.fetchval(
        "select count(*) from story_beats where story_id = $1", story_id
    )
    return count


async def list_sizes(conn: Connection, story_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the ids of the story's beats, in their order, with their sizes in characters."""
    return await conn.fetch(
        "select id, characters from story_beats where story_id = $1 order by order_index", story_id
    )


async def count_most_links(conn: Connection, story_id: uuid.UUID) -> int:
    """Return how many beats are linked to the story's event that has the most of them."""
    count: int = await conn.fetchval(
        """
        select coalesce(max(links), 0) from (
            select count(*) as links from story_beats where world_event_id in (
                select world_event_id from story_beats where story_id = $1
            )
            group by world_event_id
        ) as counts
        """,
        story_id,
    )
    return count


async def clone_beats(
    conn: Connection, clone_id: uuid.UUID, copies: dict[uuid.UUID, uuid.UUID]
) -> None:
    """Copy those beats that ``copies`` names into another story, under their new ids."""
    await conn.execute(
        """
        with copies (original, copy) as (
            select * from unnest($2::text[]::uuid[], $3::text[]::uuid[])
        ),
        cloned as (
            insert into story_beats (
                id, world_id, story_id, order_index, content, words, characters, type,
                world_event_id, generated_by, summary, local_time_label, generation_reasoning
            )
            select copy, world_id, $1, order_index, content, words, characters, type,
                world_event_id, generated_by, summary, local_time_label, generation_reasoning
            from story_beats join copies on original = id
        )
        insert into beat_words (id, world_id, words)
        select copy, world_id, words from beat_words join copies on original = id
        """,
        clone_id,
        texts(copies.keys()),
        texts(copies.values()),
    )
