"""Checks of DATABASE_DIRECT_URL and DATABASE_REPLICA_URL: both must lead to the same database."""

import contextlib
import time
from collections.abc import AsyncIterator

import asyncpg

from service.db.connecting import connect, is_read_only
from service.db.connection import LOST
from service.db.replica import (
    UnusableReplica,
    catch_up,
    find_position,
    find_system,
    require_follower,
)
from service.doctor.connecting import Connection, Variables, unreachable
from service.doctor.findings import Finding, fail, ok, warn
from service.settings import Database, Settings

CONNECT_S = 2
CLOSE_S = 1
DIRECT, REPLICA = "DATABASE_DIRECT_URL", "DATABASE_REPLICA_URL"


async def check_direct(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Check that migrations reach the database of the service, and can write there."""
    database = settings.direct_database
    if database is None:
        return []
    try:
        async with _connected(database) as direct:
            if await _identify(direct) != await _identify(conn):
                detail = f"{_place(database)} is another database than the service's"
                return [fail("direct", detail, f"Correct {DIRECT}: migrations would change that.")]
            if await is_read_only(direct):
                fix = f"List the primary's host too, or correct target_session_attrs in {DIRECT}."
                return [fail("direct", f"{_place(database)} is read-only", fix)]
    except (*LOST, asyncpg.PostgresError) as error:
        return [_unreachable("direct", DIRECT, error, database)]
    return [ok("direct", f"{_place(database)} is the same database; migrations use it")]


async def check_replica(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Check that the replica is a standby of the database, and how far behind it is.

    Nothing that is wrong with it keeps the service from working.
    """
    database = settings.replica_database
    if database is None:
        return []
    place = _place(database)
    try:
        async with _connected(database) as replica:
            if (await _identify(replica)) != await _identify(conn):
                detail = f"{place} is another database than the service's, so it is not used"
                return [warn("replica", detail, f"Correct {REPLICA}.")]
            position = await find_position(conn)
            if position is None:
                return []  # The service's database is a standby too, which another finding reports.
            began_at = time.perf_counter()
            try:
                await catch_up(replica, position)
                await require_follower(replica, await find_system(conn), position)
            except UnusableReplica as error:
                fix = "Lists and exports use the primary. Check the standby's log and its lag."
                return [warn("replica", f"{place} is not used: {error}", fix)]
    except (*LOST, asyncpg.PostgresError) as error:
        return [_unreachable("replica", REPLICA, error, database)._replace(status="warn")]
    took_ms = (time.perf_counter() - began_at) * 1000
    detail = (
        f"{place} is a standby of this database, which had replayed all within {took_ms:.0f} ms"
    )
    return [ok("replica", detail)]


@contextlib.asynccontextmanager
async def _connected(database: Database) -> AsyncIterator[Connection]:
    conn = await connect(database, timeout_s=CONNECT_S, command_timeout=CONNECT_S)
    try:
        yield conn
    finally:
        with contextlib.suppress(*LOST):
            await conn.close(timeout=CLOSE_S)


async def _identify(conn: Connection) -> tuple[int, int]:
    """Return what a database has in common with its copies on standbys, and with no other."""
    oid: int = await conn.fetchval("select oid from pg_database where datname = current_database()")
    return await find_system(conn), oid


def _place(database: Database) -> str:
    return f"{database.address}, database {database.name},"


def _unreachable(check: str, url: str, error: Exception, database: Database) -> Finding:
    variables = Variables(
        host=url,
        name=url,
        password=f"the password in {database.password_file or url}",
        sslmode=f"sslmode in {url}",
        sslrootcert=f"sslrootcert in {url}",
        target=f"target_session_attrs in {url}",
    )
    return unreachable(error, database, variables)._replace(check=check)
