"""How much PostgreSQL reads to show one world among many."""

import uuid
from typing import Any

import pytest

from service.db.pool import _set_codecs
from service.worlds import view_queries
from tests.support.plans import explain_both, nodes, rows_read
from tests.support.worlds import World

WORLDS, STORIES, BEATS, EVENTS = 40, 4, 60, 30
# The first of the worlds, and those of all others, have the same rows. Of the beats of a story, each
# fifth tells of an event, and one in thirty has the rare word.
SEED = f"""
    insert into worlds (id, user_id, name, laws, chronology_mode, text_search)
    select md5('w' || w)::uuid, $1, '', '{{}}', 'linear', 'simple' from generate_series(1, {WORLDS}) w;
"""
ROWS = f"""
    with events as (
        insert into world_events (id, world_id, t, type, summary, tags, search)
        select md5('e' || w || '-' || e)::uuid, md5('w' || w)::uuid, e, 'minor', 'lamp', '{{}}', 'lamp'
        from generate_series(1, {WORLDS}) w, generate_series(1, {EVENTS}) e
    ), stories as (
        insert into stories (id, world_id, title, status, mode, pov_type, tags, search)
        select md5('s' || w || '-' || s)::uuid, md5('w' || w)::uuid, '', 'draft', 'manual', 'third',
            '{{}}', ''
        from generate_series(1, {WORLDS}) w, generate_series(1, {STORIES}) s
    )
    insert into story_beats (
        id, world_id, story_id, order_index, content, words, type, world_event_id, generated_by, search
    )
    select gen_random_uuid(), md5('w' || w)::uuid, md5('s' || w || '-' || s)::uuid, b, text, 1, 'scene',
        case when b % 5 = 0 then md5('e' || w || '-' || b % {EVENTS} + 1)::uuid end, 'user',
        to_tsvector('simple', text)
    from generate_series(1, {WORLDS}) w, generate_series(1, {STORIES}) s,
        generate_series(1, {BEATS}) b,
        lateral (select case when b % 30 = 0 then 'lamp astrolabe' else 'lamp' end) as texts (text)
"""
ALL_BEATS = STORIES * BEATS


class Recorder:
    """A connection that keeps a statement instead of executing it."""

    statement: tuple[Any, ...] = ()

    async def fetch(self, *statement: Any) -> list[Any]:
        self.statement = statement
        return []


def most_beats_read(plan: dict[str, Any]) -> int:
    """Return how many beats the scan of the plan read that read most."""
    scans = [node for node in nodes(plan) if node.get("Relation Name") == "story_beats"]
    return max(rows for scan in scans for rows in rows_read({**scan, "Plans": []}))


@pytest.fixture
async def world_id(conn: Any, world: World) -> uuid.UUID:
    """The id of a world beside many others."""
    await _set_codecs(conn)
    await conn.execute(SEED.replace("$1", f"'{world.body['user_id']}'"))
    await conn.execute(ROWS)
    await conn.execute("vacuum analyze worlds, world_events, stories, story_beats")
    chosen: uuid.UUID = await conn.fetchval("select md5('w7')::uuid")
    return chosen


@pytest.mark.parametrize(
    ("word", "matches"), [("astrolabe", STORIES * BEATS // 30), ("lamp", ALL_BEATS + EVENTS)]
)
async def test_search_finds_the_words_of_one_world_in_an_index(
    conn: Any, world_id: uuid.UUID, word: str, matches: int
) -> None:
    recorder: Any = Recorder()
    await view_queries.search(recorder, world_id, "simple", word, 20)
    for plan in await explain_both(conn, recorder.statement):
        indexes = {node.get("Index Name") for node in nodes(plan)}
        assert "story_beats_search_idx" in indexes
        assert most_beats_read(plan) <= matches
