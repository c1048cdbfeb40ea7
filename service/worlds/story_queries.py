"""SQL for stories."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset, all_of, page_conditions
from service.worlds.words import vector

LATEST_FIRST = Keyset({"updated_at": datetime.fromisoformat, "id": uuid.UUID}, descending=True)
STORY = """
    s.id, s.world_id, s.title, s.synopsis, s.theme, s.status, s.mode, s.pov_type, s.tags,
    s.archived_at, s.version, s.created_at, s.updated_at
"""
# The words of a story with these arguments.
WORDS = vector("$2", "concat_ws(' ', $3::text, $4, $5, array_to_string($9::text[], ' '))")
# A story $2 of the account $1.
OWN_STORY = """
    from stories s join worlds w on w.id = s.world_id
    where s.id = $2 and w.user_id = $1 and w.deleted_at is null
"""
FILTERS = {
    "world": "world_id = {}",
    "archived": "(archived_at is not null) = {}",
    "tag": "{} = any(tags)",
}


async def list_stories(
    conn: Connection,
    filters: dict[str, Any],
    after: list[object] | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Return stories, latest change first. ``filters`` are values of FILTERS, by name."""
    conditions, arguments = page_conditions(FILTERS, filters, LATEST_FIRST, after)
    return await conn.fetch(
        f"""
        select {STORY} from stories s where {all_of(conditions)}
        order by {LATEST_FIRST.order_by()} limit ${len(arguments) + 1}
        """,  # noqa: S608
        *arguments,
        limit,
    )


async def list_tags(conn: Connection, world_id: uuid.UUID) -> list[str]:
    """Return the tags of the world's stories, without the archived ones, in order."""
    rows = await conn.fetch(
        """
        select distinct unnest(tags) as tag from stories
        where world_id = $1 and archived_at is null
        order by tag
        """,
        world_id,
    )
    return [row["tag"] for row in rows]


async def find_story(
    conn: Connection, user_id: uuid.UUID, story_id: uuid.UUID
) -> asyncpg.Record | None:
    return await conn.fetchrow(f"select {STORY} {OWN_STORY}", user_id, story_id)


async def lock_story(
    conn: Connection, user_id: uuid.UUID, story_id: uuid.UUID
) -> asyncpg.Record | None:
    """Lock the story's world until the transaction ends, and return the story."""
    locked = await conn.fetchval(
        """
        select id from worlds
        where id = (select world_id from stories where id = $2) and user_id = $1
            and deleted_at is null
        for no key update
        """,
        user_id,
        story_id,
    )
    return await find_story(conn, user_id, story_id) if locked else None


async def insert_story(
    conn: Connection, story_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"""
        with inserted as (
            insert into stories as s (
                id, world_id, title, synopsis, theme, status, mode, pov_type, tags, archived_at
            )
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, case when $6 = 'archived' then now() end)
            returning {STORY}
        ), indexed as (
            insert into story_words (id, world_id, words) values ($1, $2, {WORDS})
        )
        select * from inserted
        """,  # noqa: S608
        *_arguments(story_id, world_id, values),
    )
    assert row is not None  # noqa: S101
    return row


async def update_story(
    conn: Connection, story_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> asyncpg.Record:
    row = await conn.fetchrow(
        f"""
        with updated as (
            update stories as s set
                title = $3, synopsis = $4, theme = $5, status = $6, mode = $7, pov_type = $8,
                tags = $9,
                archived_at = case when $6 = 'archived' then coalesce(archived_at, now()) end,
                version = version + 1, updated_at = now()
            where id = $1
            returning {STORY}
        ), indexed as (
            update story_words set words = {WORDS} where id = $1
        )
        select * from updated
        """,  # noqa: S608
        *_arguments(story_id, world_id, values),
    )
    assert row is not None  # noqa: S101
    return row


def _arguments(
    story_id: uuid.UUID, world_id: uuid.UUID, values: dict[str, Any]
) -> tuple[object, ...]:
    names = ("title", "synopsis", "theme", "status", "mode", "pov_type", "tags")
    return (story_id, world_id, *(values[name] for name in names))


async def delete_story(conn: Connection, story_id: uuid.UUID) -> None:
    """Delete the story with its beats."""
    await conn.execute("delete from stories where id = $1", story_id)


async def measure_story(conn: Connection, story_id: uuid.UUID) -> asyncpg.Record:
    """Return the story's statistics: how many beats, of which kinds, and how long."""
    row = await conn.fetchrow(
        """
        with kinds as (
            select type, count(*) as beats from story_beats where story_id = $1 group by type
        )
        select count(*) as beat_count, coalesce(sum(words), 0) as word_count,
            coalesce(sum(characters), 0) as character_count,
            count(*) filter (where generated_by = 'ai') as ai_generated_count,
            count(*) filter (where generated_by = 'user') as user_generated_count,
            count(*) filter (where generated_by = 'collaborative') as collaborative_count,
            max(created_at) as latest_beat_date,
            count(world_event_id) as world_event_links,
            coalesce((select jsonb_object_agg(type, beats) from kinds), '{}')
                as beat_type_distribution
        from story_beats where story_id = $1
        """,
        story_id,
    )
    assert row is not None  # noqa: S101
    return row
