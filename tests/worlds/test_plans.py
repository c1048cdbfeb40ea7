"""How much PostgreSQL reads to show one world among many."""

import uuid
from typing import Any

import pytest

from service.db.pool import _set_codecs
from service.worlds import view_queries
from tests.support.clients import Client
from tests.support.factories import Account
from tests.support.plans import explain_both, nodes, rows_read
from tests.support.waiting import eventually
from tests.support.worlds import WORLDS as WORLDS_PATH
from tests.support.worlds import World

# The plans of PostgreSQL's sessions depend on what these have done before.
pytestmark = pytest.mark.usefixtures("own_application")

WORLDS, STORIES, BEATS, EVENTS = 40, 4, 60, 30
# The first of the worlds, and those of all others, have the same rows. Of the beats of a story, each
# fifth is linked to an event, and one in thirty has the rare word.
SEED = f"""
    insert into worlds (id, user_id, name, laws, chronology_mode, text_search)
    select md5('w' || w)::uuid, $1, '', '{{}}', 'linear', 'simple' from generate_series(1, {WORLDS}) w;
"""
ROWS = f"""
    with added_events as (
        insert into world_events (id, world_id, t, type, summary, tags)
        select md5('e' || w || '-' || e)::uuid, md5('w' || w)::uuid, e, 'minor', 'lamp', '{{}}'
        from generate_series(1, {WORLDS}) w, generate_series(1, {EVENTS}) e
        returning id, world_id, summary
    ), event_words as (
        insert into event_words (id, world_id, words)
        select id, world_id, to_tsvector('simple', summary) from added_events
    ), added_stories as (
        insert into stories (id, world_id, title, status, mode, pov_type, tags)
        select md5('s' || w || '-' || s)::uuid, md5('w' || w)::uuid, '', 'draft', 'manual', 'third',
            '{{}}'
        from generate_series(1, {WORLDS}) w, generate_series(1, {STORIES}) s
    ), added_beats as (
        insert into story_beats (
            id, world_id, story_id, order_index, content, words, characters, type, world_event_id,
            generated_by
        )
        select gen_random_uuid(), md5('w' || w)::uuid, md5('s' || w || '-' || s)::uuid, b, text, 1, 4,
            'scene', case when b % 5 = 0 then md5('e' || w || '-' || b % {EVENTS} + 1)::uuid end,
            'user'
        from generate_series(1, {WORLDS}) w, generate_series(1, {STORIES}) s,
            generate_series(1, {BEATS}) b,
            lateral (select case when b % 30 = 0 then 'lamp astrolabe' else 'lamp' end) as texts (text)
        returning id, world_id, content
    )
    insert into beat_words (id, world_id, words)
    select id, world_id, to_tsvector('simple', content) from added_beats
"""
ALL_BEATS = STORIES * BEATS


class Recorder:
    """A connection that keeps a statement instead of executing it."""

    statement: tuple[Any, ...] = ()

    async def fetch(self, *statement: Any) -> list[Any]:
        self.statement = statement
        return []


def most_beats_read(plan: dict[str, Any]) -> int:
    """Return how many beats, or words of beats, the scan of the plan read that read most."""
    tables = ("story_beats", "beat_words")
    scans = [node for node in nodes(plan) if node.get("Relation Name") in tables]
    return max(rows for scan in scans for rows in rows_read({**scan, "Plans": []}))


@pytest.fixture
async def world_id(conn: Any, world: World) -> uuid.UUID:
    """The id of a world beside many others."""
    await _set_codecs(conn)
    await conn.execute(SEED.replace("$1", f"'{world.body['user_id']}'"))
    await conn.execute(ROWS)
    await conn.execute("vacuum analyze")
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
        assert "beat_words_idx" in indexes
        assert most_beats_read(plan) <= matches


async def test_import_reads_no_table_again_and_again(
    conn: Any, client: Client, account: Account
) -> None:
    """PostgreSQL plans the checks of foreign keys once for a session, here for empty tables."""
    await conn.execute("vacuum analyze")
    beats = [{"content": "lamp"}] * 300
    document = {
        "version": "1.0",
        "world": {"name": "Orrery"},
        "stories": [{"title": "One", "story_beats": beats}],
    }
    url = f"{WORLDS_PATH}/import"
    response = await client.post(url, headers=account.headers, json=document)
    assert response.status == 201
    read = "select n_tup_ins, seq_tup_read from pg_stat_user_tables where relname = 'story_beats'"

    async def counted() -> Any:
        row = await conn.fetchrow(read)
        return row if row["n_tup_ins"] == len(beats) else None

    assert (await eventually(counted))["seq_tup_read"] < len(beats)
