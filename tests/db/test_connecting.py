"""Opening connections: at start, when they were lost, and on a slow network."""

import asyncio
import contextlib
import dataclasses
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from service.app import create_app
from service.db import connecting
from service.db.connecting import (
    CONNECTOR,
    Connector,
    ask_database,
    connect,
    require_writable,
    wait_for_database,
)
from service.exceptions import StartError
from service.settings import Database, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, register
from tests.support.proxy import proxying
from tests.support.refusing import refusing
from tests.support.waiting import DEADLINE_S, eventually

ME = "/api/v1/users/me"


class Attempts:
    """Attempts to connect that wait for ``gate``, then fail if ``refused`` is set."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.gate = asyncio.Event()
        self.refused = False
        self.started = 0
        self.opened: list[asyncpg.Connection[asyncpg.Record]] = []

    async def attempt(self) -> "asyncpg.Connection[asyncpg.Record]":
        self.started += 1
        await self.gate.wait()
        if self.refused:
            raise ConnectionRefusedError
        conn = await connect(self.database)
        self.opened.append(conn)
        return conn


@pytest.fixture
async def attempts(database: Database) -> Any:
    attempts = Attempts(database)
    yield attempts
    for conn in attempts.opened:
        conn.terminate()


async def give_up(connector: Connector) -> None:
    """Ask for a connection, and give up once it is being opened."""
    caller = asyncio.create_task(connector.connect())
    await eventually(lambda: connector.in_progress)
    caller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await caller


async def test_at_most_three_connections_are_opened_at_a_time(attempts: Attempts) -> None:
    connector = Connector(attempts.attempt)
    callers = [asyncio.create_task(connector.connect()) for _ in range(5)]
    await eventually(lambda: attempts.started == 3)
    assert connector.in_progress == 3
    attempts.gate.set()
    assert len(set(await asyncio.gather(*callers))) == attempts.started == 5


async def test_connection_goes_to_the_next_caller_if_the_first_gives_up(attempts: Attempts) -> None:
    connector = Connector(attempts.attempt)
    for _ in range(3):
        await give_up(connector)
    attempts.gate.set()
    assert await connector.connect() is attempts.opened[0]
    assert attempts.started == 1


async def test_connection_goes_to_the_callers_in_order(attempts: Attempts) -> None:
    connector = Connector(attempts.attempt)
    order: list[int] = []

    async def call(number: int, *, again: bool = False) -> None:
        await connector.connect()
        order.append(number)
        if again:
            await call(number)

    calls = [call(1, again=True), call(2), call(3), call(4)]
    tasks = [asyncio.create_task(one) for one in calls]
    await eventually(lambda: attempts.started == 3)
    attempts.gate.set()
    await asyncio.gather(*tasks)
    assert order == [1, 2, 3, 4, 1]


async def test_connection_lost_before_anyone_took_it_is_not_used(
    attempts: Attempts, conn: Any
) -> None:
    connector = Connector(attempts.attempt)
    await give_up(connector)
    attempts.gate.set()
    await eventually(lambda: attempts.opened and not connector.in_progress)
    await conn.execute(
        "select pg_terminate_backend($1, 10000)", attempts.opened[0].get_server_pid()
    )
    await eventually(attempts.opened[0].is_closed)
    assert await (await connector.connect()).fetchval("select true")


async def test_failure_reaches_the_caller_that_waits(attempts: Attempts) -> None:
    attempts.refused = True
    attempts.gate.set()
    with pytest.raises(ConnectionRefusedError):
        await Connector(attempts.attempt).connect()


async def test_failure_after_the_caller_gave_up_is_forgotten(attempts: Attempts) -> None:
    connector = Connector(attempts.attempt)
    await give_up(connector)
    attempts.refused = True
    attempts.gate.set()
    await eventually(lambda: not connector.in_progress)
    attempts.refused = False
    assert not (await connector.connect()).is_closed()


async def test_dropping_closes_a_connection_that_nobody_took(attempts: Attempts) -> None:
    connector = Connector(attempts.attempt)
    await give_up(connector)
    attempts.gate.set()
    await eventually(lambda: not connector.in_progress)
    connector.drop()
    assert attempts.opened[0].is_closed()


async def test_dropping_starts_again_for_callers_that_wait(attempts: Attempts) -> None:
    """Such as for those that wait for a server that is no longer the primary."""
    connector = Connector(attempts.attempt)
    caller = asyncio.create_task(connector.connect())
    await eventually(lambda: connector.in_progress)
    connector.drop()
    attempts.gate.set()
    assert await caller is attempts.opened[0]
    assert attempts.started == 2


async def test_pool_fills_under_load_if_connecting_takes_longer_than_requests_wait(
    start_app: StartApp, database: Database
) -> None:
    async with proxying(database) as proxy:
        # More than the pool has connections, so that none is free for a task in the background.
        patient = await start_app()
        accounts = [await register(patient) for _ in range(6)]
        client = await start_app(database=proxy.database, db_acquire_timeout_s=0.1)
        served: set[str] = set()

        async def keep_asking(account: Account) -> None:
            while len(served) < len(accounts):
                if await rename(client, account) == 200:
                    served.add(account.profile["id"])

        proxy.delay_s = 0.05
        proxy.reset_all()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(keep_asking(account) for account in accounts))
        proxy.delay_s = 0
        await client.close()


async def rename(client: Client, account: Account) -> int:
    response = await client.patch(ME, headers=account.headers, json={"name": "Grace"})
    return response.status


async def test_connection_of_the_pool_runs_no_statement_before_its_first_use(
    start_app: StartApp, conn: Any
) -> None:
    """Looking up types would take several round trips for each connection."""
    # More than the service's jobs use at once.
    await start_app(db_pool_size=24)
    backends = (
        "select query from pg_stat_activity"
        " where datname = current_database() and application_name = 'shinkei'"
    )
    assert "" in [row["query"] for row in await conn.fetch(backends)]


async def test_host_that_does_not_respond_is_tried_once_and_then_after_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a primary whose machine has failed."""
    # Ports of other tests' hosts, one of which may be this one's.
    monkeypatch.setattr(connecting, "SILENT_HOSTS", set())
    async with proxying(database) as silent:
        silent.flowing.clear()
        hosts = (*silent.database.hosts, *database.hosts)
        for _ in range(2):
            conn = await connect(dataclasses.replace(database, hosts=hosts), timeout_s=2)
            assert await conn.fetchval("select true")
            await conn.close()
        assert silent.connections == 1


async def test_host_that_closes_the_connection_leads_on_to_the_next(database: Database) -> None:
    """Such as a proxy without a server behind it."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as gone:
        closing = gone.sockets[0].getsockname()
        without_tls = dataclasses.replace(database, options=(("sslmode", "disable"),))
        both = dataclasses.replace(without_tls, hosts=(closing, *database.hosts))
        conn = await connect(both)
        assert await conn.fetchval("select true")
        await conn.close()
        with pytest.raises(StartError, match="the server closed the connection"):
            await wait_for_database(dataclasses.replace(without_tls, hosts=(closing,)), 0.1)


async def test_database_that_does_not_answer_is_not_waited_for_without_end(
    database: Database,
) -> None:
    with pytest.raises(StartError, match=r"no response \(tried for 0.1 s"):
        await ask_database(database, 0.1, lambda conn: conn.execute("select pg_sleep(600)"))


@pytest.mark.usefixtures("no_invalid_names")
def test_host_name_that_does_not_exist_is_reported() -> None:
    database = Database(hosts=(("nowhere.invalid", 5432),), name="n", user="u")
    reason = r"nowhere.invalid:5432, .*: the host name cannot be resolved \(tried for 0.1 s"
    with pytest.raises(StartError, match=reason):
        # Not in uvloop, which has a resolver of its own.
        asyncio.run(wait_for_database(database, 0.1))


async def test_question_is_asked_again_if_the_server_closes_the_connection(
    database: Database,
) -> None:
    questions = ["select pg_terminate_backend(pg_backend_pid())::text", "select 'here'"]
    answer = await ask_database(database, DEADLINE_S, lambda conn: conn.fetchval(questions.pop(0)))
    assert (answer, questions) == ("here", [])


async def test_pool_waits_at_start_for_connections_that_others_hold(
    start_app: StartApp, role: Database, conn: Any
) -> None:
    await conn.execute(f"alter role {role.user} connection limit 2")
    starting = asyncio.ensure_future(start_app(database=role))

    async def at_limit() -> bool:
        open_now = "select count(*) from pg_stat_activity where usename = $1"
        return bool(await conn.fetchval(open_now, role.user) == 2)

    await eventually(at_limit)
    await conn.execute(f"alter role {role.user} connection limit -1")
    client = await starting
    assert (await client.get("/health/live")).status == 200
    await client.close()


async def test_pool_that_cannot_open_in_time_is_reported_in_one_line(
    settings: Settings, role: Database, conn: Any
) -> None:
    await conn.execute(f"alter role {role.user} connection limit 2")
    changed = dataclasses.replace(settings, database=role, db_connect_timeout_s=0.3)
    runner = web.AppRunner(create_app(changed))
    reason = r"the server has no connections left \(tried for 0.3 s, DB_CONNECT_TIMEOUT_S\)$"
    with pytest.raises(StartError, match=reason):
        await runner.setup()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("sqlstate", "may_pass"),
    [
        ("08P01", True),  # PgBouncer
        ("53200", True),
        ("53300", True),
        ("57P01", True),
        ("57P03", True),
        ("28P01", False),
        ("3D000", False),
        ("XX000", False),
    ],
)
async def test_waiting_goes_on_after_errors_that_may_pass(
    database: Database, sqlstate: str, may_pass: bool
) -> None:
    with refusing(sqlstate) as port:
        refused = dataclasses.replace(database, hosts=(("127.0.0.1", port),))
        with pytest.raises(StartError) as raised:
            await wait_for_database(refused, 0.1)
    assert ("(tried for 0.1 s" in str(raised.value)) == may_pass


async def test_connection_that_nobody_took_is_closed_when_the_service_stops(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app()
    assert client.app is not None
    connector = client.app[CONNECTOR]
    caller = asyncio.create_task(connector.connect())
    await asyncio.sleep(0)
    caller.cancel()
    await eventually(lambda: not connector.in_progress)
    await client.close()

    async def all_are_closed() -> bool:
        query = (
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        return bool(await conn.fetchval(query) == 0)

    await eventually(all_are_closed)


async def test_wait_for_a_database_that_accepts_writes(
    database: Database, role: Database, conn: Any
) -> None:
    await conn.execute(f"alter role {role.user} set default_transaction_read_only = on")
    with pytest.raises(StartError, match=r"it is read-only \(tried for 0.1 s"):
        await ask_database(role, 0.1, require_writable)
    await conn.execute(f"alter role {role.user} reset default_transaction_read_only")
    await ask_database(role, DEADLINE_S, require_writable)
