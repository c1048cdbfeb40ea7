"""A standby serves lists and exports: which ones, what they show, and what happens if it fails."""

import asyncio
import contextlib
import dataclasses
import random
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.auth.guards import anyone, optionally_signed_in
from service.context import REQUEST_CONTEXT, RequestContext
from service.db import replica
from service.db.connecting import CONNECT_TIMEOUT_S
from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import snapshot
from service.embedded import server as embedded
from service.routes import ROUTES
from service.settings import Settings
from tests.support.clients import FAST, Client, StartApp
from tests.support.factories import Account, register, register_as
from tests.support.logbook import logged
from tests.support.pgbouncer import behind_pgbouncer
from tests.support.probes import make_patient
from tests.support.processes import connect, reserved_port
from tests.support.proxy import Proxy, proxying
from tests.support.replicas import (
    Pair,
    replay_paused,
    replica_of,
    running_pair,
    start_with_replica,
)
from tests.support.standby import start_standby
from tests.support.steps import send, sign_in_again
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.worlds import create_world, ids_of_each

pytestmark = pytest.mark.slow

ME = "/api/v1/users/me"
# Every list and export that the standby serves, as URLs of a world with a story and an event.
SERVED = (
    "/api/v1/users?q={word}",
    "/api/v1/users?q={word}&count=exact",
    "/api/v1/audit-events?action=world.delete",
    "/api/v1/users/me/export",
    "/api/v1/worlds",
    "/api/v1/worlds/{world_id}/export",
    "/api/v1/worlds/{world_id}/events",
    "/api/v1/worlds/{world_id}/events?limit=1000",
    "/api/v1/worlds/{world_id}/events/dependency-graph",
    "/api/v1/worlds/{world_id}/timeline",
    "/api/v1/worlds/{world_id}/intersections",
    "/api/v1/worlds/{world_id}/search?q={word}",
    "/api/v1/worlds/{world_id}/stories",
    "/api/v1/worlds/{world_id}/stories/archived",
    "/api/v1/worlds/{world_id}/stories/tags",
    "/api/v1/stories/{story_id}/beats",
    "/api/v1/events/{event_id}/beats",
)
# One of them, for tests of what they have in common.
WORLDS = "/api/v1/worlds"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Servers for tests that leave them as they were."""
    with running_pair(tmp_path_factory.mktemp("servers")) as pair:
        yield pair


@pytest.fixture
def own_pair(tmp_path: Path) -> Iterator[Pair]:
    """Servers for one test alone."""
    with running_pair(tmp_path / "servers") as pair:
        yield pair


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a busy machine time, so that no read goes to the primary because of that."""
    make_patient(monkeypatch)
    monkeypatch.setattr(replica, "STATEMENT_S", DEADLINE_S)
    monkeypatch.setattr(replica, "SILENT_S", DEADLINE_S)
    monkeypatch.setattr(replica, "CATCH_UP_S", DEADLINE_S)
    monkeypatch.setattr(replica, "LOOK_EVERY_S", 0.02)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which the standby does not catch up."""
    monkeypatch.setattr(replica, "CATCH_UP_S", 0.02)


class Either(tuple[tuple[str, int], ...]):
    """Hosts, of which a proxy takes any for each connection."""

    def __getitem__(self, place: Any) -> Any:
        return random.choice([*self])


class Written(NamedTuple):
    """What a client has written: a word in it, the id of a deleted world, and the ids in URLs."""

    word: str
    deleted: str
    ids: dict[str, str]

    def url(self, template: str) -> str:
        return template.format(word=self.word, **self.ids)

    def is_in(self, shown: str) -> bool:
        return self.word in shown or self.deleted in shown


async def write_all(client: Client, admin: Account) -> Written:
    """Write something new for each list."""
    word = f"w{secrets.token_hex(6)}"
    world = await create_world(client, admin, name=word)
    event = await world.add_event(summary=word, label_time=word)
    for _ in range(2):
        story = await world.add_story(title=word, tags=[word])
        await world.add_beat(story, content=word, world_event_id=event["id"])
    await world.add_story(title=word, status="archived")
    doomed = await create_world(client, admin, name=word)
    await doomed.delete("")
    await register(client, name=word)
    return Written(
        word,
        doomed.body["id"],
        {"world_id": world.body["id"], "story_id": story["id"], "event_id": event["id"]},
    )


async def read(client: Client, account: Account, url: str) -> str:
    response = await client.get(url, headers=account.headers)
    assert response.status == 200, await response.text()
    return await response.text()


@pytest.mark.parametrize("template", SERVED)
async def test_lists_and_exports_are_read_on_the_standby(
    start_app: StartApp, pair: Pair, template: str
) -> None:
    client = await start_with_replica(start_app, pair)
    admin = await register_as(client, "admin")
    written = await write_all(client, admin)
    assert written.is_in(await read(client, admin, written.url(template)))
    counted = replica_of(client)
    assert (counted.reads_there > 0, counted.reads_on_primary) == (True, 0)


@pytest.mark.parametrize("template", SERVED)
async def test_client_sees_what_it_has_written_while_the_standby_lags(
    start_app: StartApp, pair: Pair, template: str, hasty: None
) -> None:
    client = await start_with_replica(start_app, pair)
    admin = await register_as(client, "admin")
    with replay_paused(pair.standby.database):
        written = await write_all(client, admin)
        assert written.is_in(await read(client, admin, written.url(template)))
    assert replica_of(client).reads_there == 0


async def test_statement_of_a_list_runs_on_the_standby(start_app: StartApp, pair: Pair) -> None:
    marked = dataclasses.replace(
        pair.standby.database, options=(("application_name", "a service that lists"),)
    )
    client = await start_with_replica(start_app, pair, replica_database=marked)
    await read(client, await register(client), WORLDS)
    last = "select query from pg_stat_activity where application_name = 'a service that lists'"
    with connect(pair.standby.database) as conn:
        assert any("from worlds" in query for (query,) in conn.execute(last))


async def test_write_in_one_process_is_listed_by_another(start_app: StartApp, pair: Pair) -> None:
    writer = await start_with_replica(start_app, pair)
    reader = await start_with_replica(start_app, pair)
    account = await register(writer)
    for number in range(50):
        await create_world(writer, account, name=f"world {number}")
        assert f"world {number}" in await read(reader, account, WORLDS)
    assert replica_of(reader).reads_there == 50


async def test_writes_of_others_do_not_keep_lists_from_the_standby(
    start_app: StartApp, pair: Pair
) -> None:
    client = await start_with_replica(start_app, pair)
    account, other = await register(client), await register(client)
    done = asyncio.Event()

    async def write_on() -> None:
        while not done.is_set():
            await client.patch(ME, headers=other.headers, json={"name": secrets.token_hex(6)})

    writing = asyncio.create_task(write_on())
    for _ in range(50):
        await read(client, account, WORLDS)
    done.set()
    await writing
    assert replica_of(client).reads_there == 50


async def by_suspension(client: Client, account: Account, admin: Account) -> None:
    path = f"/users/{account.profile['id']}/suspend"
    assert (await send(client, "POST", path, {"reason": "spam"}, by=admin)).status == 200


async def by_sign_out(client: Client, account: Account, admin: Account) -> None:
    assert (await send(client, "POST", "/auth/logout", by=account)).status == 204


async def by_ending_the_session(client: Client, account: Account, admin: Account) -> None:
    elsewhere = await sign_in_again(client, account)
    assert (await send(client, "DELETE", "/users/me/sessions", by=elsewhere)).status == 204


@pytest.mark.parametrize("end", [by_suspension, by_sign_out, by_ending_the_session])
async def test_access_ends_at_once_on_every_route_while_the_standby_lags(
    start_app: StartApp, pair: Pair, end: Any
) -> None:
    client = await start_with_replica(start_app, pair)
    account, admin = await register_as(client, "admin"), await register_as(client, "admin")
    ids = {name: str(uuid.uuid4()) for name in ("session_id", "factor_id")}
    ids["user_id"] = account.profile["id"]
    ids |= await ids_of_each(client, account)
    guarded = [route for route in ROUTES if route.access not in (anyone, optionally_signed_in)]
    with replay_paused(pair.standby.database):
        await end(client, account, admin)
        for route in guarded:
            path = route.path.format(**ids)
            response = await client.request(route.method, path, headers=account.headers, json={})
            assert response.status == 401, path
    counted = replica_of(client)
    assert (counted.in_use, counted.reads_there, counted.reads_on_primary) == (True, 0, 0)


async def test_role_is_taken_away_at_once_while_the_standby_lags(
    start_app: StartApp, pair: Pair
) -> None:
    client = await start_with_replica(start_app, pair)
    account, admin = await register_as(client, "support"), await register_as(client, "admin")
    path = f"/users/{account.profile['id']}"
    with replay_paused(pair.standby.database):
        response = await send(
            client, "PATCH", path, {"role": "user"}, by=admin, headers={"If-Match": "*"}
        )
        assert response.status == 200, await response.text()
        assert (await send(client, "GET", "/users", by=account)).status == 403


async def test_only_lists_and_exports_use_the_standby(start_app: StartApp, pair: Pair) -> None:
    client = await start_with_replica(start_app, pair)
    admin = await register_as(client, "admin")
    ids = {"user_id": admin.profile["id"], **await ids_of_each(client, admin)}
    counted = replica_of(client)
    using = set()
    for route in ROUTES:
        if route.method != "GET":
            continue
        before = counted.reads_there + counted.reads_on_primary
        url = route.path.format(**ids) + ("?q=lamp" if route.path.endswith("/search") else "")
        await read(client, admin, url)
        if counted.reads_there + counted.reads_on_primary > before:
            using.add(route.path)
    assert using == {template.partition("?")[0] for template in SERVED}


async def test_metrics_say_where_lists_were_read(
    settings: Settings, pair: Pair, aiohttp_client: AiohttpClient
) -> None:
    registry = CollectorRegistry()
    changed = dataclasses.replace(
        settings, database=pair.primary.database, replica_database=pair.standby.database
    )
    client: Any = await aiohttp_client(create_app(changed, registry))
    await eventually(lambda: replica_of(client).in_use)
    await read(client, await register(client), WORLDS)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"shinkei_db_replica_{name}", labels)

    await eventually(lambda: value("reads_total", server="replica") == 1)
    assert (value("reads_total", server="primary"), value("in_use")) == (0, 1)


# What happens if the standby fails.


@pytest.fixture
async def address(own_pair: Pair) -> AsyncIterator[Proxy]:
    """An address that leads to the standby."""
    async with proxying(own_pair.standby.database) as proxy:
        yield proxy


def warnings(events: list[dict[str, Any]]) -> list[str]:
    return [each["reason"] for each in events if each["event"] == "replica not used"]


def returns(events: list[dict[str, Any]]) -> int:
    return sum(each["event"] == "replica used again" for each in events)


async def test_service_starts_and_is_ready_without_its_standby(
    start_app: StartApp, pair: Pair
) -> None:
    with reserved_port() as port, logged() as events:
        nowhere = dataclasses.replace(pair.standby.database, hosts=(("127.0.0.1", port),))
        client = await start_app(database=pair.primary.database, replica_database=nowhere)
        await eventually(lambda: warnings(events))
        assert (await client.get("/health/ready")).status == 200
        assert await read(client, await register(client), WORLDS) == "[]"
    assert warnings(events) == ["connection refused"]


async def test_standby_that_stops_and_starts_again(start_app: StartApp, own_pair: Pair) -> None:
    client = await start_with_replica(start_app, own_pair)
    account = await register(client)
    await read(client, account, WORLDS)
    _, port = own_pair.standby.database.hosts[0]
    with logged() as events:
        own_pair.standby.stop()
        for _ in range(3):
            assert await read(client, account, WORLDS) == "[]"
        assert (await client.get("/health/ready")).status == 200
        again = embedded.start(own_pair.directory / "standby", port=port, options=FAST)
        own_pair.standby.process = again.process
        await eventually(lambda: replica_of(client).in_use)
        await read(client, account, WORLDS)
    assert (len(warnings(events)), returns(events)) == (1, 1)
    assert replica_of(client).reads_there == 2
    await client.close()


async def test_silent_standby_costs_one_deadline_and_then_none(
    start_app: StartApp, own_pair: Pair, address: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "STATEMENT_S", 1)
    monkeypatch.setattr(replica, "SILENT_S", 0.5)
    client = await start_with_replica(
        start_app,
        own_pair,
        replica_database=address.database,
        # A share of it would end the read too.
        request_timeout_s=8 * DEADLINE_S,
    )
    account = await register(client)
    replica_of(client).quiet_until = 0
    address.flowing.clear()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    with logged() as events:
        assert await read(client, account, WORLDS) == "[]"
        assert loop.time() - began_at < DEADLINE_S / 2
        connections = address.connections
        for _ in range(20):
            assert await read(client, account, WORLDS) == "[]"
    assert warnings(events) == ["no response"]
    assert replica_of(client).reads_there == 0
    # Only the search has connected meanwhile, three at a time at most.
    searches = 1 + (loop.time() - began_at) // CONNECT_TIMEOUT_S
    assert address.connections <= connections + 3 * searches
    address.flowing.set()
    await eventually(lambda: replica_of(client).in_use)
    await client.close()


async def test_promoted_standby_is_not_used(start_app: StartApp, own_pair: Pair) -> None:
    client = await start_with_replica(start_app, own_pair)
    account = await register(client)
    await read(client, account, WORLDS)
    with connect(own_pair.standby.database) as conn:
        conn.execute("select pg_promote()")
    world = await create_world(client, account)
    with logged() as events:
        assert world.body["id"] in await read(client, account, WORLDS)
    assert warnings(events) == ["it is not a standby"]
    assert replica_of(client).reads_there == 1


async def test_standby_of_the_old_primary_is_not_used(
    start_app: StartApp, own_pair: Pair, tmp_path: Path
) -> None:
    """Its WAL may be longer than that of the new primary, which lacks the end of the old one's."""
    old, standby, directory = own_pair
    new = start_standby(old, directory / "primary", directory / "new")
    try:
        with connect(new.database) as conn:
            conn.execute("select pg_promote()")
        with connect(old.database) as conn, connect(standby.database) as behind:
            conn.execute("create table lost as select generate_series(1, 100000)")
            (written,) = conn.execute("select pg_current_wal_flush_lsn()").fetchone()
            replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
            await eventually(lambda: behind.execute(replayed, (written,)).fetchone()[0])
        with logged() as events:
            client = await start_app(
                database=new.database,
                replica_database=standby.database,
            )
            account = await register(client)
            await eventually(lambda: warnings(events))
            world = await create_world(client, account)
            assert world.body["id"] in await read(client, account, WORLDS)
        assert warnings(events) == ["it does not follow this primary"]
        await client.close()
    finally:
        new.stop()


async def test_statement_in_the_way_of_replay_runs_again_on_the_primary(
    start_app: StartApp, own_pair: Pair
) -> None:
    client = await start_with_replica(start_app, own_pair)
    assert client.app is not None
    with connect(own_pair.primary.database) as conn, connect(own_pair.standby.database) as other:
        other.execute("alter system set max_standby_streaming_delay = 0")
        other.execute("select pg_reload_conf()")
        conn.execute("create table changing as select 1 as a")

        async def sleep_on_the_standby(conn: Connection) -> bool:
            seconds = "case when pg_is_in_recovery() then 600 else 0 end"
            standby: bool = await conn.fetchval(
                f"select pg_is_in_recovery() from changing, pg_sleep({seconds}) limit 1"
            )
            return standby

        REQUEST_CONTEXT.set(RequestContext(""))
        reading = asyncio.create_task(read_replica(client.app, sleep_on_the_standby))
        asleep = "select 1 from pg_stat_activity where wait_event = 'PgSleep'"
        await eventually(lambda: other.execute(asleep).fetchone())
        conn.execute("alter table changing add column b int")
        assert await reading is False
    assert replica_of(client).in_use


async def test_slow_statement_runs_again_on_the_primary_and_leaves_the_standby_in_use(
    start_app: StartApp, pair: Pair
) -> None:
    client = await start_with_replica(start_app, pair)
    assert client.app is not None

    async def wait_on_the_standby(conn: Connection) -> bool:
        async with snapshot(conn):
            await conn.execute("set local statement_timeout = 100")
            seconds = "case when pg_is_in_recovery() then 600 else 0 end"
            standby: bool = await conn.fetchval(
                f"select pg_is_in_recovery() from pg_sleep({seconds})"
            )
        return standby

    REQUEST_CONTEXT.set(RequestContext(""))
    assert await read_replica(client.app, wait_on_the_standby) is False
    assert replica_of(client).in_use


async def test_standby_behind_pgbouncer(start_app: StartApp, pair: Pair) -> None:
    with behind_pgbouncer(pair.standby.database) as through:
        client = await start_with_replica(start_app, pair, replica_database=through)
        admin = await register_as(client, "admin")
        written = await write_all(client, admin)
        for template in SERVED:
            assert written.is_in(await read(client, admin, written.url(template)))
        assert replica_of(client).reads_on_primary == 0
        await client.close()


async def test_pgbouncer_before_two_standbys_of_which_one_lags(
    start_app: StartApp, own_pair: Pair, hasty: None
) -> None:
    """It may lead to the one that lags after the other has been asked how far it is."""
    primary, standby, directory = own_pair
    lagging = start_standby(primary, directory / "primary", directory / "lagging")
    hosts = Either((standby.database.hosts[0], lagging.database.hosts[0]))
    try:
        async with proxying(dataclasses.replace(standby.database, hosts=hosts)) as proxy:
            with contextlib.ExitStack() as stack:
                bouncing = behind_pgbouncer(proxy.database, server_lifetime=0)
                # Its start waits for the proxy, which runs in this thread.
                through = await asyncio.to_thread(stack.enter_context, bouncing)
                stack.enter_context(replay_paused(lagging.database))
                client = await start_with_replica(start_app, own_pair, replica_database=through)
                account = await register(client)
                for _ in range(10):
                    world = await create_world(client, account)
                    await eventually(lambda: replica_of(client).in_use)
                    assert world.body["id"] in await read(client, account, WORLDS)
                await client.close()
    finally:
        lagging.stop()
