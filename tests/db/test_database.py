"""Reads and writes when the database fails, blocks, changes or sits behind PgBouncer."""

import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.db.connection import POOL, POOL_WAITING, WRITES, Connection
from service.db.pool import _decode_timestamp, _encode_timestamp
from service.db.transactions import read, write
from service.doctor.database import check_database
from service.exceptions import DatabaseUnavailable, StartError
from service.settings import Database, Settings
from tests.support.clients import ROOT, Client, StartApp, pool_of
from tests.support.factories import assert_problem, register, register_as
from tests.support.locks import WAITING
from tests.support.logbook import logged
from tests.support.pgbouncer import behind_pgbouncer
from tests.support.probes import make_patient
from tests.support.processes import connect, environment, reserved_port, run_command
from tests.support.proxy import proxy_to
from tests.support.waiting import eventually

ME = "/api/v1/users/me"


async def test_read_survives_a_lost_connection(client: Client, conn: Any) -> None:
    account = await register(client)
    for _ in range(5):
        await conn.execute(
            # Waits until the backends are gone.
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        response = await client.get(ME, headers=account.headers)
        assert response.status == 200, await response.text()


@pytest.mark.asvs("16.5.3")
async def test_write_that_loses_its_connection_is_a_503_and_changes_nothing(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await conn.execute(
        "create function die() returns trigger language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$;"
        "create trigger die after update on users for each row execute function die()"
    )
    response = await client.patch(ME, headers=account.headers, json={"name": "lost"})
    await assert_problem(response, 503, "database_unavailable")
    await conn.execute("drop trigger die on users")
    me = await client.get(ME, headers=account.headers)
    assert await me.json() == account.profile


async def test_requests_are_refused_while_the_pool_is_exhausted(
    start_app: StartApp,
) -> None:
    account = await register(await start_app())
    client = await start_app(db_acquire_timeout_s=0.3)
    pool = pool_of(client)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    responses = await asyncio.gather(*(client.get(ME, headers=account.headers) for _ in range(50)))
    for response in responses:
        await assert_problem(response, 503, "database_unavailable")
    for conn in held:
        await pool.release(conn)
    assert (await client.get(ME, headers=account.headers)).status == 200


async def test_transactions_without_a_connection_release_their_slot(start_app: StartApp) -> None:
    client = await start_app(db_acquire_timeout_s=0.1)
    assert client.app is not None
    pool = pool_of(client)

    async def nothing(conn: Connection) -> None:
        pass

    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    for refused in await asyncio.gather(
        *(write(client.app, nothing) for _ in range(9)), return_exceptions=True
    ):
        assert isinstance(refused, DatabaseUnavailable)
    for conn in held:
        await pool.release(conn)
    await assert_slots_are_free(client)


async def test_transactions_waiting_for_a_row_do_not_delay_reads(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as many changes by one user, or sign-ins counted for one IP."""
    make_patient(monkeypatch)
    client = await start_app()
    assert client.app is not None
    waiting = client.app[POOL_WAITING]
    account = await register(client)
    async with conn.transaction():
        await conn.execute("select from users for update")
        changes = [
            asyncio.create_task(client.patch(ME, headers=account.headers, json={"name": str(n)}))
            for n in range(2 * pool_of(client).get_max_size())
        ]
        await eventually(lambda: waiting.count >= 4)
        response = await client.get(ME, headers=account.headers)
        assert await response.json() == account.profile
        health = await (await client.get("/health")).json()
        assert health["checks"]["pool:utilization"][0]["status"] == "warn"
        # A cancelled transaction passes its slot on.
        for change in changes[-3:]:
            change.cancel()
    assert [(await change).status for change in changes[:-3]] == [200] * len(changes[:-3])
    await assert_slots_are_free(client)


async def assert_slots_are_free(client: Client) -> None:
    """Assert that as many transactions may run as in a fresh pool of 4 connections."""
    assert client.app is not None
    slots = client.app[WRITES]
    for _ in range(3):
        await slots.acquire()
    assert slots.locked()
    for _ in range(3):
        slots.release()


async def test_locked_table_is_a_503_and_other_routes_still_work(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patient(monkeypatch)
    account = await register(await start_app())
    client = await start_app(db_lock_timeout_s=0.2)
    async with conn.transaction():
        await conn.execute("lock table users in access exclusive mode")
        response = await client.get(ME, headers=account.headers)
        await assert_problem(response, 503, "database_unavailable")
        assert (await client.get("/health")).status == 200
    assert (await client.get(ME, headers=account.headers)).status == 200


async def test_slow_request_is_a_503(start_app: StartApp, conn: Any) -> None:
    # Register on another application: a hash alone may exceed this timeout on a busy machine.
    account = await register(await start_app())
    client = await start_app(request_timeout_s=1)
    async with conn.transaction():
        await conn.execute("lock table users in access exclusive mode")
        response = await client.get(ME, headers=account.headers)
        await assert_problem(response, 503, "timeout")
    assert (await client.get(ME, headers=account.headers)).status == 200


@pytest.mark.slow
async def test_write_on_a_silent_connection_times_out(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    """No ROLLBACK is sent, because the server would never answer it."""
    assert settings.database is not None
    async with proxy_to(settings.database) as (database, flowing):
        client = await start_app(
            database=database,
            # Long enough to start waiting for the row.
            request_timeout_s=3,
        )
        account = await register(await start_app())
        async with conn.transaction():
            await conn.execute("select from users for update")
            change = client.patch(ME, headers=account.headers, json={"name": "silent"})
            response = asyncio.create_task(change)
            await eventually(lambda: conn.fetchval(WAITING))
            flowing.clear()
            await assert_problem(await response, 503, "timeout")
        flowing.set()
        await client.close()
        assert await conn.fetchval("select name from users") == account.profile["name"]


@pytest.mark.parametrize(
    "change",
    [
        "alter table users add column surplus text",
        "alter table users alter column name type varchar(300)",
        "alter table users alter column version type numeric",
    ],
)
async def test_cached_plans_recover_from_a_schema_change(
    client: Client, conn: Any, change: str
) -> None:
    account = await register(client)
    for name in ("before", "after"):
        responses = await asyncio.gather(
            *(client.patch(ME, headers=account.headers, json={"name": name}) for _ in range(8)),
            *(client.get(ME, headers=account.headers) for _ in range(8)),
        )
        assert {response.status for response in responses} == {200}
        if name == "before":
            await conn.execute(change)


async def _add(conn: Connection, tries: list[int], stop_after: int, sqlstate: str) -> int:
    tries.append(1)
    await conn.execute("insert into signing_keys (id, encrypted_key) values ('once', '')")
    if len(tries) < stop_after:
        await conn.execute(f"do $$ begin raise exception using errcode = '{sqlstate}'; end $$")
    return len(tries)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_transaction_that_loses_a_race_is_retried_whole(
    client: Client, conn: Any, sqlstate: str
) -> None:
    assert client.app is not None
    assert await write(client.app, _add, [], 3, sqlstate) == 3
    assert await conn.fetchval("select count(*) from signing_keys where id = 'once'") == 1
    await conn.execute("delete from signing_keys where id = 'once'")
    tries: list[int] = []
    with pytest.raises(DatabaseUnavailable):
        await write(client.app, _add, tries, 99, sqlstate)
    assert len(tries) == 3
    assert await conn.fetchval("select count(*) from signing_keys where id = 'once'") == 0


async def test_read_is_tried_at_most_twice(client: Client) -> None:
    tries = []

    async def die(conn: Connection) -> None:
        tries.append(1)
        await conn.execute("select pg_terminate_backend(pg_backend_pid())")

    assert client.app is not None
    with pytest.raises(DatabaseUnavailable):
        await read(client.app, die)
    assert len(tries) == 2


@pytest.mark.parametrize(
    "change",
    [
        "alter table sessions rename to elsewhere",
        "alter table users rename column name to elsewhere",
        # The server rejects no value here: asyncpg cannot send text as a number.
        "drop index users_search_idx; alter table users alter name drop default,"
        " alter name type integer using 0",
    ],
)
async def test_statement_that_does_not_fit_the_schema_is_a_500(
    client: Client, conn: Any, change: str
) -> None:
    account = await register(client)
    await conn.execute(change)
    response = await client.patch(ME, headers=account.headers, json={"name": "Grace"})
    problem = await assert_problem(response, 500, "internal_error")
    assert "elsewhere" not in str(problem)


async def test_missing_privilege_is_a_500(start_app: StartApp, conn: Any, role: Database) -> None:
    client = await start_app(database=role)
    account = await register(client)
    await conn.execute(f"revoke select on sessions from {role.user}")
    response = await client.get(ME, headers=account.headers)
    await assert_problem(response, 500, "internal_error")
    await conn.execute(f"grant select on sessions to {role.user}")
    assert (await client.get(ME, headers=account.headers)).status == 200
    await client.close()


async def test_wrong_statement_is_logged_with_its_message_and_traceback(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await conn.execute("alter table users rename column name to elsewhere")
    with logged() as events:
        assert (await client.get(ME, headers=account.headers)).status == 500
    (event,) = [event for event in events if event["event"] == "unexpected error"]
    assert "UndefinedColumnError: SQLSTATE 42703, column users.name does not" in event["exception"]
    assert "in find_signed_in" in event["exception"]


async def _pass_too_few(conn: Connection) -> None:
    await conn.execute("select $1::int, $2::int", 1)


async def _select_two_rows_as_one(conn: Connection) -> None:
    await conn.execute("select (select generate_series(1, 2))")


async def _lock_a_count(conn: Connection) -> None:
    await conn.execute("select count(*) from users for update")


@pytest.mark.parametrize("run", [read, write])
@pytest.mark.parametrize("wrong", [_pass_too_few, _select_two_rows_as_one, _lock_a_count])
async def test_wrong_statement_is_not_mistaken_for_an_outage(
    client: Client, run: Any, wrong: Any
) -> None:
    assert client.app is not None
    with pytest.raises(Exception, match=r"2 arguments|more than one row|FOR UPDATE") as raised:
        await run(client.app, wrong)
    assert not isinstance(raised.value, DatabaseUnavailable)
    await assert_slots_are_free(client)


async def test_role_that_may_no_longer_connect_is_a_503(
    start_app: StartApp, conn: Any, role: Database
) -> None:
    client = await start_app(database=role)
    account = await register(client)
    await conn.execute(f'revoke connect on database "{role.name}" from public')
    await conn.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = $1",
        role.user,
    )
    response = await client.get(ME, headers=account.headers)
    await assert_problem(response, 503, "database_unavailable")
    await client.close()


@pytest.mark.asvs("16.5.1")
async def test_internal_errors_are_a_500_without_details(
    client: Client, conn: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    account = await register(client)
    await conn.execute("alter table users add constraint surprise check (name <> 'secret name')")
    response = await client.patch(ME, headers=account.headers, json={"name": "secret name"})
    problem = await assert_problem(response, 500, "internal_error")
    assert "surprise" not in str(problem)


async def test_values_rejected_only_by_the_database_are_a_422(client: Client, conn: Any) -> None:
    account = await register(client)
    await conn.execute(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise exception using errcode = '22003'; end $$;"
        "create trigger refuse before update on users for each row execute function refuse()"
    )
    response = await client.patch(ME, headers=account.headers, json={"name": "x"})
    await assert_problem(response, 422, "invalid_value")


async def test_pool_closes_in_time_while_connections_are_held(settings: Settings) -> None:
    app = create_app(dataclasses.replace(settings, db_close_timeout_s=0.2))
    runner = web.AppRunner(app)
    await runner.setup()
    held = await app[POOL].acquire()
    await runner.cleanup()
    with pytest.raises(asyncpg.InterfaceError):
        await held.fetchval("select 1")


async def test_requests_leave_no_state_in_postgresql_sessions(
    client: Client, settings: Settings
) -> None:
    """Nothing resets a connection returned to the pool, so there must be nothing to reset.

    Nor does asyncpg look up types during a request: it knows all of them from the start.
    """
    pool = pool_of(client)
    statements: list[str] = []
    for held in [await pool.acquire() for _ in range(pool.get_max_size())]:
        held.add_query_logger(lambda logged: statements.append(logged.query))
        await pool.release(held)
    administrator = await register_as(client, "admin", email="root@example.com")
    variables = {
        "SHINKEI_URL": str(client.make_url("")).rstrip("/"),
        "DATA_DIR": str(settings.data_dir),
        "ADMIN_EMAIL": administrator.profile["email"],
        "ADMIN_PASSWORD": administrator.password,
    }
    command = (sys.executable, str(ROOT / "examples" / "walk.py"))
    walk = await asyncio.to_thread(run_command, *command, env=environment(**variables))
    assert walk.returncode == 0, walk.stdout + walk.stderr
    assert walk.stdout.splitlines()[-1] == "done"
    assert any("uuid[]" in statement for statement in statements)
    assert not any("typeinfo_tree" in statement for statement in statements)
    for held in [await pool.acquire() for _ in range(pool.get_max_size())]:
        left_behind = await held.fetch(
            """
            -- asyncpg turns jit off and restores it when it looks up types
            select name from pg_settings where source = 'session' and name <> 'jit'
            union all select 'an advisory lock' from pg_locks
                where locktype = 'advisory' and pid = pg_backend_pid()
            union all select relname::text from pg_class where relnamespace = pg_my_temp_schema()
            union all select pg_listening_channels()
            union all select name from pg_cursors where name <> ''
            """
        )
        assert [row["name"] for row in left_behind] == []
        await pool.release(held)


@pytest.fixture
def pgbouncer(database: Database) -> Iterator[Database]:
    with behind_pgbouncer(database) as through:
        yield through


async def test_application_works_behind_pgbouncer(start_app: StartApp, pgbouncer: Database) -> None:
    client = await start_app(database=pgbouncer)
    account = await register(client)
    for name in ("Ada", "Grace"):
        response = await client.patch(ME, headers=account.headers, json={"name": name})
        assert response.status == 200
    responses = await asyncio.gather(*(client.get(ME, headers=account.headers) for _ in range(40)))
    assert {(response.status, (await response.json())["name"]) for response in responses} == {
        (200, "Grace")
    }


async def test_no_connection_leaves_a_named_statement_to_the_next_in_pgbouncer(
    start_app: StartApp, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those at start, of the pool, of the probes and of doctor share PgBouncer's one session."""
    make_patient(monkeypatch)
    with behind_pgbouncer(database, default_pool_size=1) as through:
        client = await start_app(database=through)
        assert (await client.get("/health")).status == 200
        await client.close()
        await check_database(dataclasses.replace(settings, database=through), {})
        with connect(through) as session:
            assert session.execute("select name from pg_prepared_statements").fetchall() == []


async def test_pgbouncer_mode_names_no_prepared_statements(
    start_app: StartApp, database: Database
) -> None:
    client = await start_app(database=dataclasses.replace(database, pgbouncer=True))
    account = await register(client)
    assert (await client.get(ME, headers=account.headers)).status == 200
    async with pool_of(client).acquire() as conn:
        assert await conn.fetchval("select count(*) from pg_prepared_statements") == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong secret"}, "the server rejected the user or password"),
        ({"name": "nonexistent"}, "the database does not exist"),
        ({"options": (("sslmode", "verify-full"),)}, ""),
        (
            {"options": (("target_session_attrs", "standby"),)},
            "no server matches target_session_attrs (tried for 0.3 s",
        ),
    ],
)
async def test_unreachable_database_is_reported_in_one_line(
    settings: Settings, change: dict[str, Any], reason: str
) -> None:
    await check_reason(settings, change, reason)


async def test_refused_connection_is_reported_in_one_line(settings: Settings) -> None:
    with reserved_port() as port:
        change = {"hosts": (("127.0.0.1", port),)}
        await check_reason(settings, change, "connection refused (tried for 0.3 s")


async def check_reason(settings: Settings, change: dict[str, Any], reason: str) -> None:
    """Start with the database changed, and check what is reported."""
    assert settings.database is not None
    database = dataclasses.replace(settings.database, **change)
    runner = web.AppRunner(
        create_app(dataclasses.replace(settings, database=database, db_connect_timeout_s=0.3))
    )
    try:
        with pytest.raises(StartError) as raised:
            await runner.setup()
    finally:
        await runner.cleanup()
    message = str(raised.value)
    assert message.startswith(f"cannot connect to PostgreSQL at {database.address}, database")
    assert reason in message
    assert "\n" not in message
    assert database.password not in message


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("infinity", datetime.max.replace(tzinfo=UTC)),
        ("-infinity", datetime.min.replace(tzinfo=UTC)),
        ("20000-01-01 00:00:00+00", datetime.max.replace(tzinfo=UTC)),
        ("1999-12-31 23:59:59.999999+00", datetime(1999, 12, 31, 23, 59, 59, 999999, UTC)),
        ("9999-12-31 23:59:59.999999+00", datetime.max.replace(tzinfo=UTC)),
    ],
)
async def test_times_beyond_the_range_of_python_are_clamped(
    client: Client, stored: str, read: datetime
) -> None:
    pool = pool_of(client)
    assert await pool.fetchval(f"select timestamptz '{stored}'") == read


@pytest.mark.property
@given(st.datetimes(timezones=st.just(UTC)))
def test_times_keep_their_microseconds(time: datetime) -> None:
    (microseconds,) = _encode_timestamp(time)
    assert _decode_timestamp((microseconds,)) == time


async def test_times_round_trip_through_postgresql(client: Client) -> None:
    times = [
        datetime(2026, 3, 1, 12, 0, 0, 123456, timezone(timedelta(hours=5, minutes=30))),
        datetime(1, 1, 1, tzinfo=UTC),
    ]
    for time in times:
        text = await pool_of(client).fetchval(
            "select ($1::timestamptz at time zone 'UTC')::text", time
        )
        assert text == time.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
        assert await pool_of(client).fetchval("select $1::timestamptz", time) == time
