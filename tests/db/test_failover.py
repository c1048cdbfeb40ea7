"""A database that becomes read-only, and a service that finds one that accepts writes."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.db import failover
from service.db.connecting import CONNECTOR
from service.embedded import server as embedded
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.logbook import logged
from tests.support.probes import make_patient
from tests.support.proxy import Proxy, proxying
from tests.support.servers import running_server
from tests.support.standby import promote, start_standby
from tests.support.waiting import eventually

ME = "/api/v1/users/me"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    make_patient(monkeypatch)


async def make_read_only(conn: Any) -> None:
    """Refuse writes in new sessions, and end the others."""
    await conn.execute(await alter(conn, "set default_transaction_read_only = on"))
    await conn.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


async def make_writable(conn: Any) -> None:
    """Accept writes in new sessions; the others stay read-only."""
    await conn.execute(await alter(conn, "reset default_transaction_read_only"))


async def alter(conn: Any, change: str) -> str:
    return (
        str(await conn.fetchval("select format('alter database %I ', current_database())")) + change
    )


async def rename(client: Client, account: Account) -> int:
    response = await client.patch(ME, headers=account.headers, json={"name": "Grace"})
    return response.status


async def is_renamed(client: Client, account: Account) -> bool:
    return await rename(client, account) == 200


async def is_served(client: Client, account: Account) -> bool:
    return (await client.get(ME, headers=account.headers)).status == 200


async def readiness(client: Client) -> tuple[int, dict[str, Any]]:
    response = await client.get("/health/ready")
    body = await response.json(content_type=None)
    return response.status, body["checks"]["database:writes"][0]


async def is_ready(client: Client) -> bool:
    return (await readiness(client))[0] == 200


async def test_read_only_database_serves_reads_and_refuses_writes(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await make_read_only(conn)
    change = await client.patch(ME, headers=account.headers, json={"name": "Grace"})
    await assert_problem(change, 503, "database_unavailable")
    me = await client.get(ME, headers=account.headers)
    assert await me.json() == account.profile


async def test_service_with_a_read_only_database_is_not_ready(client: Client, conn: Any) -> None:
    await make_read_only(conn)
    assert await readiness(client) == (
        503,
        {
            "componentType": "datastore",
            "status": "fail",
            "output": "the database is read-only",
        },
    )
    await make_writable(conn)
    await eventually(lambda: is_ready(client))


async def test_service_starts_with_a_read_only_database_and_says_so(
    start_app: StartApp, conn: Any
) -> None:
    account = await register(await start_app())
    await make_read_only(conn)
    with logged() as events:
        client = await start_app()
    assert [event for event in events if event["event"].startswith("the database is read-only")]
    assert await is_served(client, account)


async def test_migrations_wait_at_start_until_the_database_accepts_writes(
    start_app: StartApp, conn: Any
) -> None:
    await conn.execute("delete from _yoyo_migration where migration_id like '0002%'")
    await make_read_only(conn)
    with logged() as events:
        starting = asyncio.ensure_future(start_app(migrate_on_start=True))
        await eventually(lambda: events)
        await make_writable(conn)
        client = await starting
    await eventually(lambda: is_ready(client))


async def test_connections_that_stay_read_only_are_replaced(client: Client, conn: Any) -> None:
    account = await register(client)
    await make_read_only(conn)
    assert await rename(client, account) == 503
    await leave_connection(client)
    await make_writable(conn)
    with logged() as events:
        await eventually(lambda: is_renamed(client, account))
    warnings = [event for event in events if event["event"].startswith("pool expired")]
    assert [event["level"] for event in warnings] == ["warning"]


async def leave_connection(client: Client) -> None:
    """Have the pool's connector open a connection that nobody takes, as a request that gives up."""
    assert client.app is not None
    connector = client.app[CONNECTOR]
    caller = asyncio.create_task(connector.connect())
    await asyncio.sleep(0)
    caller.cancel()
    await eventually(lambda: not connector.in_progress)


async def test_refused_writes_open_no_storm_of_connections(
    start_app: StartApp, database: Any, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "LOOK_EVERY_S", 3600)
    async with proxying(database) as proxy:
        client = await start_app(database=proxy.database)
        account = await register(client)
        await make_read_only(conn)

        async def reads_on_all_connections() -> bool:
            await asyncio.gather(*(client.get(ME, headers=account.headers) for _ in range(9)))
            backends = "select count(*) from pg_stat_activity where datname = current_database()"
            # The pool's, and the test's own.
            return bool(await conn.fetchval(backends) >= 4 + 1)

        await eventually(reads_on_all_connections)
        before = proxy.connections
        for _ in range(20):
            assert await rename(client, account) == 503
        assert proxy.connections <= before + 1
        await client.close()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[embedded.Server]:
    (tmp_path / "primary").mkdir()
    with running_server(tmp_path / "primary") as server:
        yield server


@pytest.fixture
def standby(primary: embedded.Server, tmp_path: Path) -> Iterator[embedded.Server]:
    server = start_standby(primary, tmp_path / "primary", tmp_path / "standby")
    yield server
    server.stop()


@pytest.fixture
async def address(primary: embedded.Server) -> AsyncIterator[Proxy]:
    """An address that leads to the primary, over a network with round trips of 100 ms."""
    async with proxying(primary.database, delay_s=0.05) as proxy:
        yield proxy


@pytest.mark.slow
async def test_address_that_leads_to_a_standby_and_back(
    start_app: StartApp, address: Proxy, primary: embedded.Server, standby: embedded.Server
) -> None:
    client = await start_app(database=address.database)
    account = await register(client)
    address.target = standby.database
    address.reset_all()
    await eventually(lambda: is_served(client, account))
    assert await rename(client, account) == 503
    assert (await readiness(client))[0] == 503
    # The connections to the standby stay open.
    address.target = primary.database
    await eventually(lambda: is_renamed(client, account))
    await eventually(lambda: is_ready(client))
    await client.close()


@pytest.mark.slow
async def test_standby_is_promoted_while_the_old_primary_keeps_its_connections(
    start_app: StartApp, address: Proxy, primary: embedded.Server, standby: embedded.Server
) -> None:
    hosts = (address.database.hosts[0], standby.database.hosts[0])
    options = (("sslmode", "disable"), ("target_session_attrs", "read-write"))
    client = await start_app(
        database=dataclasses.replace(address.database, hosts=hosts, options=options)
    )
    account = await register(client)
    before = await (await client.get(ME, headers=account.headers)).json()
    await asyncio.to_thread(promote, standby, primary)
    assert (await readiness(client))[0] == 503
    await eventually(lambda: is_renamed(client, account))
    await eventually(lambda: is_ready(client))
    me = await (await client.get(ME, headers=account.headers)).json()
    assert (me["id"], me["name"]) == (before["id"], "Grace")
    await client.close()
