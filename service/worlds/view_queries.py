"""SQL for views of a world: the timeline, where stories meet, what causes what, and search."""

import uuid
from collections.abc import Sequence

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset
from service.worlds.beat_queries import BEAT
from service.worlds.ids import texts
from service.worlds.story_queries import STORY
from service.worlds.words import bare

# By the story, then the order in it.
IN_STORIES = Keyset({"story_id": uuid.UUID, "order_index": int, "id": uuid.UUID}, descending=False)
BY_PAIR = Keyset({"one_id": uuid.UUID, "other_id": uuid.UUID}, descending=False)
# What a search looks at: the table of each kind, that of its words, its text, and its story.
SOURCES = {
    "event": (
        "world_events",
        "event_words",
        "concat_ws(' ', label_time, summary, description, location, array_to_string(tags, ' '))",
        "null::uuid",
    ),
    "story": (
        "stories",
        "story_words",
        "concat_ws(' ', title, synopsis, theme, array_to_string(tags, ' '))",
        "stories.id",
    ),
    "beat": (
        "story_beats",
        "beat_words",
        "concat_ws(' ', content, summary, local_time_label)",
        "story_id",
    ),
}


async def list_beats_of_event(
    conn: Connection, event_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return the beats linked to the event, except those of archived stories."""
    return await conn.fetch(
        f"""
        select {BEAT} from story_beats b join stories s on s.id = b.story_id
        where b.world_event_id = $1 and s.archived_at is null
            and ($2::uuid is null or (b.story_id, b.order_index, b.id) > ($2, $3::int, $4::uuid))
        order by b.story_id, b.order_index, b.id limit $5
        """,  # noqa: S608
        event_id,
        *(after or (None, None, None)),
        limit,
    )


async def list_stories_by_id(
    conn: Connection, story_ids: Sequence[uuid.UUID]
) -> list[asyncpg.Record]:
    return await conn.fetch(
        f"select {STORY} from stories s where id = any($1::text[]::uuid[])",  # noqa: S608
        texts(story_ids),
    )


async def list_links(conn: Connection, event_ids: Sequence[uuid.UUID]) -> list[asyncpg.Record]:
    """Return the beats linked to these events, without their texts, by story."""
    return await conn.fetch(
        """
        select b.world_event_id, b.id, b.story_id, b.order_index, b.type, b.local_time_label,
            s.title
        from story_beats b join stories s on s.id = b.story_id
        where b.world_event_id = any($1::text[]::uuid[]) and s.archived_at is null
        order by b.story_id, b.order_index
        """,
        texts(event_ids),
    )


async def list_meetings(
    conn: Connection, world_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return pairs of stories that share events, with the ids of these.

    The other stories are looked up for one story after the other, until the page is full.
    """
    return await conn.fetch(
        """
        select one.id as one_id, one.title as one_title, other.id as other_id,
            other.title as other_title, met.event_ids
        from stories one cross join lateral (
            select linked.story_id, array_agg(distinct linked.world_event_id)::text[] as event_ids
            from (
                select distinct world_event_id from story_beats
                where story_id = one.id and world_event_id is not null
            ) mine
                join story_beats linked on linked.world_event_id = mine.world_event_id
                    and linked.story_id > one.id
            group by linked.story_id
        ) met join stories other on other.id = met.story_id
        where one.world_id = $1 and one.archived_at is null and other.archived_at is null
            and ($2::uuid is null or (one.id >= $2 and (one.id, other.id) > ($2, $3::uuid)))
        order by one.id, other.id limit $4
        """,
        world_id,
        *(after or (None, None)),
        limit,
    )


async def list_event_labels(
    conn: Connection, event_ids: Sequence[uuid.UUID]
) -> list[asyncpg.Record]:
    """Return when these events are, in that order."""
    return await conn.fetch(
        """
        select id, t, label_time from world_events where id = any($1::text[]::uuid[])
        order by t, id
        """,
        texts(event_ids),
    )


async def list_nodes(
    conn: Connection, world_id: uuid.UUID, after: uuid.UUID | None, limit: int
) -> list[asyncpg.Record]:
    return await conn.fetch(
        """
        select id, coalesce(label_time, t::text) as label, t, type, summary from world_events
        where world_id = $1 and ($2::uuid is null or id > $2)
        order by id limit $3
        """,
        world_id,
        after,
        limit,
    )


async def list_edges(
    conn: Connection,
    world_id: uuid.UUID,
    after: tuple[uuid.UUID, uuid.UUID] | None,
    limit: int,
) -> list[asyncpg.Record]:
    return await conn.fetch(
        """
        select event_id, cause_id from event_causes
        where world_id = $1 and ($2::uuid is null or (event_id, cause_id) > ($2, $3::uuid))
        order by event_id, cause_id limit $4
        """,
        world_id,
        *(after or (None, None)),
        limit,
    )


async def search(
    conn: Connection, world_id: uuid.UUID, text_search: str, words: str, limit: int
) -> list[asyncpg.Record]:
    """Return what best matches the words, best first, each with the count of all that match.

    Stories that are archived, and their beats, are left out.
    """
    found = " union all ".join(
        f"""
        select '{kind}' as kind, {table}.id, {story_id} as story_id,
            ts_rank({index}.words, query) as rank
        from {index} join {table} using (id),
            websearch_to_tsquery($2::text::regconfig, $3) query
        where {index}.world_id = $1 and {index}.words @@ query
        """  # noqa: S608
        for kind, (table, index, _, story_id) in SOURCES.items()
    )
    return await conn.fetch(
        f"""
        with found as ({found})
        select kind, found.id, story_id, rank, count(*) over () as total
        from found left join stories s on s.world_id = $1 and s.id = story_id
        where s.archived_at is null
        order by rank desc, found.id limit $4
        """,  # noqa: S608
        world_id,
        text_search,
        words,
        limit,
    )


async def list_matches(
    conn: Connection, kind: str, ids: Sequence[uuid.UUID], text_search: str, words: str, mark: str
) -> list[asyncpg.Record]:
    """Return the texts of these rows: as they are, and with marks around the words that match.

    In the marked text, spaces are in place of punctuation.
    """
    table, _, text, _ = SOURCES[kind]
    return await conn.fetch(
        f"""
        select id, {text} as text, ts_headline(
            $2::text::regconfig, {bare(text)}, websearch_to_tsquery($2::text::regconfig, $3),
            format('HighlightAll=true,StartSel=%1$s,StopSel=%1$s', $4::text)
        ) as marked
        from {table} where id = any($1::text[]::uuid[])
        """,  # noqa: S608
        texts(ids),
        text_search,
        words,
        mark,
    )
