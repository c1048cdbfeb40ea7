"""The check of DATABASE_DIRECT_URL, which must lead to the same database as the service's."""

import contextlib
from collections.abc import AsyncIterator

import asyncpg

from service.db.connecting import connect, is_read_only
from service.db.connection import LOST
from service.doctor.connecting import Connection, Variables, unreachable
from service.doctor.findings import Finding, fail, ok
from service.settings import Database, Settings

CONNECT_S = 2
CLOSE_S = 1
DIRECT = "DATABASE_DIRECT_URL"


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
    row = await conn.fetchrow(
        """
        select (select system_identifier from pg_control_system()) as system, oid
        from pg_database where datname = current_database()
        """
    )
    assert row is not None  # noqa: S101
    return row["system"], row["oid"]


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
