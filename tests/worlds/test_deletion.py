"""Deleted worlds: gone at once for their owners, and from the database in slices."""

import asyncio
import random
from typing import Any

import pytest

from service import purge
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.holding import holding
from tests.support.jobs import run_jobs
from tests.support.logbook import logged
from tests.support.steps import delete_account, send
from tests.support.world_rows import TABLES, count_rows, worlds_with_wrong_counts
from tests.support.worlds import World, create_world

NOTHING = dict.fromkeys(TABLES, 0)
# Notes how many rows each transaction deletes.
COUNT_DELETIONS = """
    create unlogged table if not exists deletions (transaction xid8, kind text);
    create or replace function count_deletions() returns trigger language plpgsql as $$
    begin
        insert into deletions select pg_current_xact_id(), tg_table_name from deleted_rows;
        return null;
    end
    $$;
    create trigger count_deletions after delete on {table} referencing old table as deleted_rows
        for each statement execute function count_deletions();
"""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make slices small enough for a test to need several."""
    monkeypatch.setattr(purge, "WORLD_ROWS_AT_ONCE", 10)


async def fill(conn: Any, world: World, count: int = 25) -> None:
    """Add rows of each kind: events that cause each other, and beats linked to them."""
    await conn.execute(
        f"""
        with added_events as (
            insert into world_events (id, world_id, t, type, summary, tags)
            select gen_random_uuid(), $1, n, 'minor', '', '{{}}' from generate_series(1, {count}) n
            returning id, t
        ), causes as (
            insert into event_causes (world_id, event_id, cause_id)
            select $1, one.id, other.id from added_events one join added_events other
                on other.t = one.t - 1
        ), added_stories as (
            insert into stories (id, world_id, title, status, mode, pov_type, tags)
            select gen_random_uuid(), $1, '', 'draft', 'manual', 'third', '{{}}'
            from generate_series(1, {count})
            returning id
        )
        insert into story_beats (
            id, world_id, story_id, order_index, content, words, characters, type, world_event_id,
            generated_by
        )
        select gen_random_uuid(), $1, added_stories.id, 1, '', 0, 0, 'scene', added_events.id,
            'user'
        from added_stories, added_events where t = 1
        """,
        world.body["id"],
    )


async def delete_world(world: World) -> None:
    response = await world.client.delete(world.path, headers=world.headers)
    assert response.status == 204, await response.text()


async def test_deleted_world_is_gone_at_once_for_its_owner(
    client: Client, account: Account, world: World
) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat = await world.add_beat(story)
    await delete_world(world)
    for path in (
        f"/worlds/{world.body['id']}",
        f"/worlds/{world.body['id']}/events",
        f"/worlds/{world.body['id']}/export",
        f"/worlds/{world.body['id']}/timeline",
        f"/events/{event['id']}",
        f"/stories/{story['id']}",
        f"/stories/{story['id']}/beats",
        f"/stories/{story['id']}/beats/{beat['id']}",
    ):
        await assert_problem(await send(client, "GET", path, by=account), 404, "not_found")
    assert await (await send(client, "GET", "/worlds", by=account)).json() == []


async def test_deleted_world_is_deleted_by_a_job(
    client: Client, start_app: StartApp, conn: Any, world: World
) -> None:
    await delete_world(world)
    await run_jobs(client, start_app, "select not exists (select from worlds)")
    assert await count_rows(conn) == NOTHING


async def test_rows_of_a_deleted_world_are_deleted_in_slices(
    client: Client, conn: Any, world: World
) -> None:
    await fill(conn, world)
    for table in TABLES[1:]:
        await conn.execute(COUNT_DELETIONS.format(table=table))
    await delete_world(world)
    assert client.app is not None
    await purge.delete_worlds(client.app)
    assert await count_rows(conn) == NOTHING
    rows = await conn.fetch("select count(*) from deletions group by transaction")
    counts = [row["count"] for row in rows]
    assert (max(counts), sum(counts)) == (10, 25 + 24 + 25 + 25)


async def test_only_deleted_worlds_lose_rows(
    client: Client, conn: Any, account: Account, world: World
) -> None:
    other = await create_world(client, account)
    await fill(conn, world)
    await fill(conn, other)
    before = await count_rows(conn)
    await delete_world(world)
    assert client.app is not None
    await purge.delete_worlds(client.app)
    assert await count_rows(conn) == {table: count // 2 for table, count in before.items()}


async def test_world_that_cannot_be_deleted_yet_does_not_hold_up_others(
    client: Client, conn: Any, account: Account, world: World
) -> None:
    other = await create_world(client, account)
    for each in (world, other):
        await fill(conn, each)
        await delete_world(each)
    await conn.execute(
        f"""
        create function fail() returns trigger language plpgsql as $$
        begin raise exception 'failed' using errcode = 'query_canceled'; end $$;
        create trigger fail before delete on stories for each row
            when (old.world_id = '{world.body["id"]}') execute function fail();
        """
    )
    assert client.app is not None
    with logged() as events:
        await purge.delete_worlds(client.app)
    left = await conn.fetch("select id::text from worlds")
    assert [row["id"] for row in left] == [world.body["id"]]
    assert [e["world_id"] for e in events if e["event"] == "world skipped"] == [world.body["id"]]


async def test_other_worlds_can_be_changed_while_one_is_deleted(
    client: Client, conn: Any, account: Account, world: World
) -> None:
    other = await create_world(client, account)
    await fill(conn, world)
    await delete_world(world)
    assert client.app is not None
    # A slice is in progress.
    async with holding(conn, "delete from story_beats where world_id = $1", world.body["id"]):
        await other.add_beat(
            await other.add_story(), world_event_id=(await other.add_event())["id"]
        )


async def make_due(client: Client, conn: Any, account: Account) -> None:
    assert (await delete_account(client, account, account.password)).status == 202
    await conn.execute("update users set purge_at = now() where id = $1", account.profile["id"])


async def test_worlds_of_a_purged_account_are_deleted(
    client: Client, conn: Any, account: Account, world: World
) -> None:
    stays = await create_world(client, await register(client))
    deleted = await create_world(client, account)
    for each in (world, deleted, stays):
        await fill(conn, each)
    await delete_world(deleted)
    await make_due(client, conn, account)
    assert client.app is not None
    await purge.purge_accounts(client.app)
    left = await conn.fetch("select id::text from worlds")
    assert [row["id"] for row in left] == [stays.body["id"]]
    assert await conn.fetchval("select count(*) from users") == 1


async def test_job_waits_for_another_replica_that_deletes_the_same_world(
    client: Client, conn: Any, world: World
) -> None:
    """A job that went on instead would try to delete an account that still has worlds."""
    await fill(conn, world)
    await delete_world(world)
    assert client.app is not None
    before = await count_rows(conn)
    lock = "select from worlds where id = $1 for update"
    async with holding(conn, lock, world.body["id"]) as start:
        await start(purge.delete_worlds(client.app))
        assert await count_rows(conn) == before
    assert await count_rows(conn) == NOTHING


async def test_counts_are_those_of_the_rows_after_any_changes(
    client: Client, conn: Any, account: Account
) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    worlds = [(await create_world(client, account)).body["id"]]
    path = f"/worlds/{worlds[0]}/stories"
    story = await (await send(client, "POST", path, {"title": "x"}, by=account)).json()
    created: dict[str, list[str]] = {"events": [], "stories": [story["id"]], "beats": []}

    async def change() -> None:
        """Create or delete something at random. What is deleted already is a 404."""
        world = dice.choice(worlds)
        story, event = (dice.choice(created[kind] or [None]) for kind in ("stories", "events"))
        beat = dice.choice(created["beats"] or [None])
        changes = {
            "events": (
                "POST",
                f"/worlds/{world}/events",
                {"t": 1, "type": "minor", "summary": "x"},
            ),
            "stories": ("POST", f"/worlds/{world}/stories", {"title": "x"}),
            "beats": ("POST", f"/stories/{story}/beats", {"content": "x"}),
            "clone": ("POST", f"/stories/{story}/clone", None),
            "duplicate": ("POST", f"/worlds/{world}/duplicate", None),
            "archive": ("DELETE", f"/stories/{story}", None),
            "delete story": ("DELETE", f"/stories/{story}?force=true", None),
            "delete event": ("DELETE", f"/events/{event}", None),
            "delete beat": ("DELETE", f"{beat}", None),
        }
        weights = (4, 3, 8, 2, 1, 1, 1, 1, 2)
        (name,) = dice.choices(list(changes), weights)
        method, path, body = changes[name]
        if "None" in path:
            return
        response = await send(client, method, path, body, by=account)
        # An account has one transfer at a time.
        expected = (201, 409) if name == "duplicate" else (201, 204, 404)
        assert response.status in expected, (seed, name, await response.text())
        if response.status != 201:
            return
        row = await response.json()
        if name == "duplicate":
            worlds.append(row["id"])
        elif name == "beats":
            created["beats"].append(f"/stories/{story}/beats/{row['id']}")
        else:
            created["stories" if name == "clone" else name].append(row["id"])

    for _ in range(15):
        await asyncio.gather(*(change() for _ in range(4)))
    assert await worlds_with_wrong_counts(conn) == [], seed
    assert created["beats"], seed
