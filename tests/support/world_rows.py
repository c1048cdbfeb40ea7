"""The rows of worlds in the database."""

from typing import Any

TABLES = (
    *("worlds", "world_events", "event_causes", "stories", "story_beats"),
    *("event_words", "story_words", "beat_words"),
)


async def count_rows(conn: Any) -> dict[str, int]:
    """Return how many rows each table of worlds has."""
    return {table: await conn.fetchval(f"select count(*) from {table}") for table in TABLES}


async def worlds_with_wrong_counts(conn: Any) -> list[Any]:
    """Return the worlds whose counts are not those of their rows."""
    rows: list[Any] = await conn.fetch(
        """
        select id, stories, events, beats, counted.*
        from worlds, lateral (
            select (select count(*) from stories where world_id = worlds.id),
                (select count(*) from world_events where world_id = worlds.id),
                (select count(*) from story_beats where world_id = worlds.id)
        ) as counted (stories_there, events_there, beats_there)
        where (stories, events, beats) is distinct from (stories_there, events_there, beats_there)
        """
    )
    return rows
