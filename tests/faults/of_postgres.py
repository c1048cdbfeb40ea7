"""Faults of PostgreSQL: its sessions, servers, locks and errors, and changes of the schema."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from itertools import count

import asyncpg

from tests.faults.load import Load
from tests.faults.run import Fault
from tests.faults.stage import CONNECTIONS, NAME, Connection, Postgres, Stage, url_of
from tests.support.processes import SHINKEI, dies_with_parent
from tests.support.waiting import eventually

HELD_S = 3
# Longer than any statement, request or connection may wait.
LOCKED_S = 30
SESSIONS = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
# Only these have sessions with statements of their own prepared.
PREPARING = ("direct", "two hosts", "two workers")
THREE = f"from (select pid {SESSIONS} order by random() limit 3) as three"
WRITING = "insert into control values (1)"


async def sessions_are_terminated_20_times_a_second(stage: Stage, load: Load) -> None:
    async with stage.postgres.administrator() as administrator:
        for _ in range(20 * HELD_S):
            await administrator.execute(f"select pg_terminate_backend(pid) {THREE}")
            await asyncio.sleep(0.05)


async def all_sessions_are_terminated_five_times(stage: Stage, load: Load) -> int:
    """Behind PgBouncer, a client between two transactions does not notice."""
    terminated = 0
    for _ in range(5):
        every = f"select count(pg_terminate_backend(pid)) {SESSIONS}"
        terminated += await stage.postgres.value(every)
        await asyncio.sleep(0.5)
    return terminated


async def statements_are_cancelled_50_times_a_second(stage: Stage, load: Load) -> int:
    """It goes on until one is caught: under a light load, most are too short to be seen."""
    cancelled = 0
    async with stage.postgres.administrator() as administrator:
        for attempt in range(50 * 60):
            running = f"select count(pg_cancel_backend(pid)) {SESSIONS} and state = 'active'"
            cancelled += await administrator.fetchval(running)
            if cancelled and attempt >= 50 * HELD_S:
                break
            await asyncio.sleep(0.02)
    return cancelled


async def a_session_is_killed(stage: Stage, load: Load) -> None:
    """The server ends all others too, and recovers."""
    os.kill(await stage.postgres.value(f"select pid {SESSIONS} limit 1"), signal.SIGKILL)
    await asyncio.sleep(HELD_S)


async def three_sessions_hang(stage: Stage, load: Load) -> int:
    """Their processes are stopped while the others work."""
    async with stage.postgres.administrator() as administrator:
        latest = f"select pid {SESSIONS} order by state_change desc limit 3"
        pids = [row["pid"] for row in await administrator.fetch(latest)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(HELD_S + 1)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return load.count_hindered()


async def the_server_is_stopped_and_started(stage: Stage, load: Load) -> None:
    await stage.postgres.stop()
    await asyncio.sleep(HELD_S)
    await stage.postgres.start()


async def the_server_is_stopped_for_10_s(stage: Stage, load: Load) -> None:
    await stage.postgres.stop()
    await asyncio.sleep(10)
    await stage.postgres.start()


async def the_server_is_stopped_without_a_checkpoint(stage: Stage, load: Load) -> None:
    await stage.postgres.stop(signal.SIGQUIT)
    await asyncio.sleep(1)
    await stage.postgres.start()


async def the_server_is_killed(stage: Stage, load: Load) -> None:
    await stage.postgres.stop(signal.SIGKILL)
    await asyncio.sleep(1)
    await stage.postgres.start()


async def the_server_is_restarted_three_times(stage: Stage, load: Load) -> None:
    for _ in range(3):
        await stage.postgres.stop()
        await stage.postgres.start()


async def the_server_hangs(stage: Stage, load: Load) -> None:
    """All of its processes are stopped, and nothing is closed."""
    stage.postgres.send(signal.SIGSTOP)
    await asyncio.sleep(HELD_S + 1)
    stage.postgres.send(signal.SIGCONT)


async def the_server_hangs_for_moments(stage: Stage, load: Load) -> None:
    for _ in range(4):
        stage.postgres.send(signal.SIGSTOP)
        await asyncio.sleep(0.9)
        stage.postgres.send(signal.SIGCONT)
        await asyncio.sleep(0.2)


async def others_take_all_connections(stage: Stage, load: Load) -> int:
    """What the pool holds goes on serving."""
    taken: list[Connection] = []
    await _take_connections(stage.postgres, taken)
    await asyncio.sleep(HELD_S)
    held = len(taken)
    # There is room for none but those that have been closed meanwhile.
    await _take_connections(stage.postgres, taken)
    refused = len(taken) - held < CONNECTIONS / 2
    _give_back(taken)
    return int(refused)


async def others_take_all_connections_when_the_pool_has_lost_its_own(
    stage: Stage, load: Load
) -> None:
    taken: list[Connection] = []
    await _take_connections(stage.postgres, taken)
    ours = f"select pg_terminate_backend(pid) {SESSIONS} and application_name <> '{NAME}'"
    await taken[0].execute(ours)
    for _ in range(10 * HELD_S):
        await _take_connections(stage.postgres, taken)
        await asyncio.sleep(0.1)
    _give_back(taken)


async def _take_connections(postgres: Postgres, taken: list[Connection]) -> None:
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            taken.append(await postgres.connect())


def _give_back(taken: list[Connection]) -> None:
    for connection in taken:
        connection.terminate()


async def a_table_is_locked(stage: Stage, load: Load) -> None:
    async with stage.postgres.administrator() as administrator, administrator.transaction():
        await administrator.execute("lock table users")
        await asyncio.sleep(LOCKED_S)


async def all_worlds_are_locked(stage: Stage, load: Load) -> None:
    async with stage.postgres.administrator() as administrator, administrator.transaction():
        await administrator.execute("select from worlds for update")
        await asyncio.sleep(HELD_S)


async def transactions_deadlock(stage: Stage, load: Load) -> int:
    """Inserting an event takes a second lock, which a rival takes first."""
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = await stage.postgres.value(deadlocks)
    await stage.postgres.execute(
        "alter system set deadlock_timeout = '30ms'",
        "select pg_reload_conf()",
        """
        create function take_second() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock(1); return new; end $$
        """,
        "create trigger second before insert on world_events"
        " for each row execute function take_second()",
    )
    async with stage.postgres.administrator() as rival:
        for _ in range(20):
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                async with rival.transaction():
                    await rival.execute("select pg_advisory_xact_lock(1)")
                    await asyncio.sleep(0.05)
                    await rival.execute("select from worlds for update")
            await asyncio.sleep(0.05)
    await stage.postgres.execute(
        "drop trigger second on world_events",
        "drop function take_second",
        "alter system reset deadlock_timeout",
        "select pg_reload_conf(), pg_stat_force_next_flush()",
    )

    async def seen() -> int:
        return int(await stage.postgres.value(deadlocks)) - int(before)

    return int(await eventually(seen))


async def a_third_of_inserts_cannot_be_serialized(stage: Stage, load: Load) -> int:
    return await _fail(stage, "create trigger fails before insert on world_events")


async def a_third_of_commits_cannot_be_serialized(stage: Stage, load: Load) -> int:
    """As with the isolation level SERIALIZABLE, nothing fails before the commit."""
    deferred = "deferrable initially deferred"
    return await _fail(
        stage, f"create constraint trigger fails after insert on world_events {deferred}"
    )


async def _fail(stage: Stage, trigger: str) -> int:
    await stage.postgres.execute(
        "create sequence failures",
        """
        create function fail() returns trigger language plpgsql as $$
        begin
            if random() < 0.33 then
                perform nextval('failures');
                raise exception 'could not serialize access' using errcode = '40001';
            end if;
            return new;
        end $$
        """,
        f"{trigger} for each row execute function fail()",
    )
    await asyncio.sleep(HELD_S)
    failures: int = await stage.postgres.value(
        "select case when is_called then last_value else 0 end from failures"
    )
    await stage.postgres.execute(
        "drop trigger fails on world_events", "drop function fail", "drop sequence failures"
    )
    return failures


async def columns_are_added_changed_and_dropped(stage: Stage, load: Load) -> None:
    async with stage.postgres.administrator() as administrator:
        for _ in range(8):
            for table in ("users", "world_events", "sessions"):
                await administrator.execute(f"alter table {table} add extra int")
                await asyncio.sleep(0.1)
                await administrator.execute(f"alter table {table} alter extra type text")
                await asyncio.sleep(0.1)
                await administrator.execute(f"alter table {table} drop extra")


async def tables_are_rewritten(stage: Stage, load: Load) -> int:
    """By VACUUM FULL, which locks each of them meanwhile."""
    tables = ["users", "worlds", "world_events", "sessions", "refresh_tokens"]
    nodes = "select array_agg(relfilenode order by oid) from pg_class where relname = any($1)"
    async with stage.postgres.administrator() as administrator:
        before = await administrator.fetchval(nodes, tables)
        for _ in range(5):
            for table in tables:
                await administrator.execute(f"vacuum full {table}")
        after = await administrator.fetchval(nodes, tables)
    return len(set(after) - set(before))


async def the_database_becomes_read_only(stage: Stage, load: Load) -> None:
    await _set(stage.postgres, "default_transaction_read_only = on")
    await asyncio.sleep(HELD_S)
    await _set(stage.postgres, "default_transaction_read_only = off")


async def commits_wait_for_a_standby_that_is_gone(stage: Stage, load: Load) -> None:
    await _set(stage.postgres, "synchronous_standby_names = 'gone'")
    await asyncio.sleep(HELD_S)
    await _set(stage.postgres, "synchronous_standby_names = ''")


async def _set(postgres: Postgres, setting: str) -> None:
    async with postgres.administrator() as administrator:
        await administrator.execute("set synchronous_commit = local")
        await administrator.execute(f"alter system set {setting}")
        await administrator.execute("select pg_reload_conf()")


async def the_password_is_another_for_a_while(stage: Stage, load: Load) -> None:
    database = stage.postgres.database
    async with stage.postgres.administrator() as administrator:
        await administrator.execute(f"alter role {database.user} password 'another'")
        await administrator.execute(f"select pg_terminate_backend(pid) {SESSIONS}")
        await asyncio.sleep(HELD_S)
        await administrator.execute(f"alter role {database.user} password '{database.password}'")


async def the_database_takes_no_connections(stage: Stage, load: Load) -> None:
    name = stage.postgres.database.name
    async with stage.postgres.administrator("template1") as administrator:
        await administrator.execute(f"alter database {name} allow_connections false")
        await administrator.execute(f"select pg_terminate_backend(pid) {SESSIONS}")
        await asyncio.sleep(HELD_S)
        await administrator.execute(f"alter database {name} allow_connections true")


async def the_standby_is_stopped_and_started(stage: Stage, load: Load) -> int:
    """Nothing is noticed: the primary serves."""
    assert stage.standby is not None
    await stage.standby.stop()
    await asyncio.sleep(HELD_S)
    await stage.standby.start()
    return 1


async def the_primary_is_stopped_and_the_standby_promoted(stage: Stage, load: Load) -> None:
    await stage.postgres.stop()
    await stage.promote()


async def the_primary_is_killed_and_the_standby_promoted(stage: Stage, load: Load) -> None:
    """What has been acknowledged is on the standby too: commits wait for it."""
    await _set(stage.postgres, "synchronous_standby_names = '*'")

    async def is_synchronous() -> bool:
        states = "select count(*) from pg_stat_replication where sync_state = 'sync'"
        return bool(await stage.postgres.value(states))

    await eventually(is_synchronous)
    await load.acknowledge(20)
    await stage.postgres.stop(signal.SIGKILL)
    await stage.promote()


async def the_primary_turns_read_only_and_the_standby_is_promoted(stage: Stage, load: Load) -> None:
    """No connection is closed."""
    assert stage.standby is not None
    await _set(stage.postgres, "synchronous_standby_names = ''")
    await _set(stage.postgres, "default_transaction_read_only = on")
    written = await stage.postgres.value("select pg_current_wal_lsn()::text")

    async def replayed() -> bool:
        assert stage.standby is not None
        query = f"select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
        return bool(await stage.standby.value(query))

    await eventually(replayed)
    await stage.promote()


async def eight_replicas_migrate_an_empty_database(stage: Stage, load: Load) -> int:
    await stage.postgres.execute("create database fresh")
    runs = [await _migrate(stage) for _ in range(8)]
    codes = [await each.wait() for each in runs]
    assert codes == [0] * 8
    return await _count_migrations(stage)


async def a_migration_is_killed(stage: Stage, load: Load) -> int:
    """The next one goes on, and nobody breaks a lock by hand."""
    await stage.postgres.execute("create database fresh")
    kills = count()
    for wanted in (1, 5, 12):
        running = await _migrate(stage)

        async def has_begun(wanted: int = wanted) -> bool:
            with contextlib.suppress(asyncpg.UndefinedTableError):
                return await _count_migrations(stage) >= wanted
            return False

        await eventually(has_begun)
        if running.returncode is None:
            next(kills)
            running.kill()
        await running.wait()
    assert await (await _migrate(stage)).wait() == 0
    migrations = await _count_migrations(stage)
    async with stage.postgres.administrator() as administrator:
        assert migrations == await administrator.fetchval("select count(*) from _yoyo_migration")
    return next(kills)


async def _migrate(stage: Stage) -> asyncio.subprocess.Process:
    url = url_of(dataclasses.replace(stage.postgres.database, name="fresh"))
    return await asyncio.create_subprocess_exec(
        *dies_with_parent(*SHINKEI, "migrate"),
        cwd=stage.directory / "service",
        env=stage.service.environment | {"DATABASE_URL": url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=sys.stderr,
    )


async def _count_migrations(stage: Stage) -> int:
    async with stage.postgres.administrator("fresh") as administrator:
        return int(await administrator.fetchval("select count(*) from _yoyo_migration"))


FAULTS = [
    Fault(sessions_are_terminated_20_times_a_second, quick="direct"),
    Fault(all_sessions_are_terminated_five_times),
    Fault(statements_are_cancelled_50_times_a_second),
    Fault(a_session_is_killed),
    Fault(three_sessions_hang),
    Fault(the_server_is_stopped_and_started, unready=True, quick="two workers"),
    Fault(the_server_is_stopped_for_10_s, unready=True),
    Fault(the_server_is_stopped_without_a_checkpoint),
    Fault(the_server_is_killed),
    Fault(the_server_is_restarted_three_times),
    Fault(the_server_hangs, unready=True),
    Fault(the_server_hangs_for_moments),
    Fault(others_take_all_connections, modes=PREPARING, refusals=False, unready=False),
    Fault(others_take_all_connections_when_the_pool_has_lost_its_own, modes=PREPARING),
    Fault(a_table_is_locked, unready=False),
    Fault(all_worlds_are_locked, control="select from worlds for update", unready=False),
    Fault(transactions_deadlock, quick="direct", unready=False),
    Fault(a_third_of_inserts_cannot_be_serialized, unready=False),
    Fault(a_third_of_commits_cannot_be_serialized, unready=False),
    Fault(
        columns_are_added_changed_and_dropped,
        modes=PREPARING,
        control="select * from users limit 1",
        refusals=False,
        unready=False,
        quick="direct",
    ),
    Fault(tables_are_rewritten),
    Fault(the_database_becomes_read_only, control=WRITING, unready=True),
    Fault(commits_wait_for_a_standby_that_is_gone, control=WRITING),
    Fault(the_password_is_another_for_a_while, unready=True),
    Fault(the_database_takes_no_connections, unready=True),
    Fault(the_standby_is_stopped_and_started, modes=("two hosts",), refusals=False, unready=False),
    Fault(the_primary_is_stopped_and_the_standby_promoted, modes=("two hosts",), quick="two hosts"),
    Fault(the_primary_is_killed_and_the_standby_promoted, modes=("two hosts",)),
    Fault(
        the_primary_turns_read_only_and_the_standby_is_promoted,
        modes=("two hosts",),
        control=WRITING,
    ),
    Fault(eight_replicas_migrate_an_empty_database, modes=("direct",), refusals=False),
    Fault(a_migration_is_killed, modes=("direct",), refusals=False),
]
