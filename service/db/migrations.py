"""Migrations: yoyo applies the files in ``migrations/``, in one process at a time."""

import getpass
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from service.db.connecting import is_read_only
from service.db.connection import Connection
from service.exceptions import StartError
from service.settings import Database

# "shinkei" in ASCII, as the 64-bit key of pg_advisory_lock.
ADVISORY_LOCK_KEY = 0x7368696E6B6569

_PACKAGE = Path(__file__).resolve().parents[1]


def _discard(text: str) -> None:
    pass


def migrations_dir() -> Path:
    """Return the directory in the installed package, or else at the top of the checkout."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def known_migrations() -> list[str]:
    """Return the ids of this release's migrations in order. Raises StartError if there are none."""
    names = (path.name for path in migrations_dir().glob("*.sql"))
    ids = sorted(name.removesuffix(".sql") for name in names if not name.endswith(".rollback.sql"))
    if not ids:
        raise StartError(f"no migrations in {migrations_dir()}: this installation is incomplete")
    return ids


async def find_pending(conn: "Connection") -> list[str]:
    """Return the ids of this release's migrations that are not applied, in order."""
    applied = await find_applied(conn)
    return [id_ for id_ in known_migrations() if id_ not in applied]


async def find_applied(conn: "Connection") -> set[str]:
    """Return the ids of all applied migrations, which may include those of a newer release."""
    try:
        rows = await conn.fetch("select migration_id from _yoyo_migration")
    except asyncpg.UndefinedTableError:
        rows = []
    return {row["migration_id"] for row in rows}


async def find_state(conn: "Connection") -> tuple[bool, list[str]]:
    """Return whether the database is read-only, and the pending migrations, in one round trip."""
    known = known_migrations()
    try:
        row = await conn.fetchrow(
            """
            select current_setting('transaction_read_only')::bool as read_only,
                   array(select migration_id::text from _yoyo_migration) as applied
            """
        )
    except asyncpg.UndefinedTableError:
        return await is_read_only(conn), known
    assert row is not None  # noqa: S101
    return row["read_only"], [id_ for id_ in known if id_ not in row["applied"]]


def apply_pending(
    database: Database,
    wait_s: float = 0,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = _discard,
) -> list[str]:
    """Apply pending migrations and return their ids. Blocks while another process migrates.

    Waits up to ``wait_s`` seconds for the database. Setting ``stop`` ends the wait for another
    process. ``say`` is called with progress messages.

    Raises StartError, naming the migration, if one fails; those before it stay applied.
    """
    with _locked_backend(database, wait_s, stop, say) as (backend, migrations):
        pending = backend.to_apply(migrations)
        _run(backend.apply_migrations, pending, "apply", say)
        missing = backend.to_apply(migrations)
        if missing:
            raise StartError(f"migration {missing[0].id} was not applied; see the log above")
        return [migration.id for migration in pending]


def roll_back(
    database: Database,
    count: int,
    wait_s: float = 0,
    say: Callable[[str], None] = _discard,
) -> list[str]:
    """Roll back the ``count`` newest applied migrations and return their ids, newest first."""
    with _locked_backend(database, wait_s, None, say) as (backend, migrations):
        newest = backend.to_rollback(migrations)[:count]
        _run(backend.rollback_migrations, newest, "roll back", say)
        return [migration.id for migration in newest]


def list_status(database: Database, wait_s: float = 0) -> list[tuple[str, bool]]:
    """Return each known migration's id and whether it is applied, without taking a lock."""
    import psycopg

    with _connect(database, wait_s) as conn:
        try:
            rows = conn.execute("select migration_id from _yoyo_migration").fetchall()
        except psycopg.errors.UndefinedTable:
            rows = []
        except psycopg.Error as error:
            raise StartError(f"cannot read the migrations: {_reason(error)}") from error
    applied = {row[0] for row in rows}
    return [(id_, id_ in applied) for id_ in known_migrations()]


def _run(action: Any, migrations: Any, verb: str, say: Callable[[str], None]) -> None:
    import psycopg

    for number, migration in enumerate(list(migrations), 1):
        say(f"{verb} {migration.id} ({number} of {len(migrations)})")
        one = type(migrations)([migration])
        try:
            action(one)
        except psycopg.Error as error:
            raise StartError(f"cannot {verb} {migration.id}: {_reason(error)}") from error


def _reason(error: Any) -> str:
    """Return PostgreSQL's primary message, which names the fault and contains no client data."""
    return str(error.diag.message_primary or type(error).__name__).strip()


def _connect(database: Database, wait_s: float) -> Any:
    """Connect in autocommit mode, retrying for ``wait_s`` seconds unless retrying is pointless."""
    import psycopg

    arguments: dict[str, Any] = {"connect_timeout": 5, **database.libpq_arguments()}
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return psycopg.connect(**arguments, autocommit=True)
        except psycopg.OperationalError as error:
            rejected = "FATAL" in str(error) and "starting up" not in str(error)
            reason = "user, password or database rejected" if rejected else "connection failed"
            if rejected or time.monotonic() >= deadline:
                tried = "" if rejected else f" (tried for {wait_s:g} s, DB_CONNECT_TIMEOUT_S)"
                raise StartError(
                    f"cannot connect to PostgreSQL at {database.address}, database"
                    f" {database.name}, as user {database.user}: {reason}{tried}"
                ) from None
        except psycopg.Error as error:
            raise StartError(f"cannot connect to PostgreSQL: {_reason(error)}") from None
        time.sleep(0.2)


@contextmanager
def _locked_backend(
    database: Database,
    wait_s: float,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = _discard,
) -> Iterator[tuple[Any, Any]]:
    """Yield yoyo's backend and migrations, holding a session-level advisory lock.

    yoyo's own lock is a row keyed by process id, which outlives a killed process and is meaningless
    across containers. PostgreSQL releases the advisory lock when its holder dies. Its next holder
    can therefore treat any lock row of yoyo's as stale.
    """
    # Slow imports, which a start without pending migrations does not need.
    import psycopg
    from yoyo import read_migrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI
    from yoyo.exceptions import BadMigration
    from yoyo.migrations import default_migration_table

    # yoyo logs each expected failure (a table that exists, a lock row) as an error.
    logging.getLogger("yoyo").setLevel(logging.CRITICAL)
    _ensure_user_name()
    known_migrations()
    with _connect(database, wait_s) as guard:
        ask = "select pg_try_advisory_lock(%s)"
        while not guard.execute(ask, [ADVISORY_LOCK_KEY]).fetchone()[0]:
            if stop is not None and stop.is_set():
                raise StartError("stopped while waiting for another process to finish migrating")
            say("waiting for another process to finish migrating")
            time.sleep(0.1)
        arguments = database.libpq_arguments()
        uri = DatabaseURI(
            scheme="postgresql+psycopg",
            username=arguments.pop("user"),
            password=arguments.pop("password"),
            hostname=arguments.pop("host"),
            port=arguments.pop("port"),
            database=arguments.pop("dbname"),
            args=arguments,
        )
        with PostgresqlPsycopgBackend(uri, default_migration_table) as backend:
            try:
                backend.init_database()
                backend.break_lock()
                yield backend, read_migrations(str(migrations_dir()))
            except psycopg.Error as error:
                raise StartError(f"cannot migrate: {_reason(error)}") from error
            except BadMigration as error:
                raise StartError(f"cannot migrate: {error}") from error


def _ensure_user_name() -> None:
    """Set ``USER`` if the user id has no name: yoyo calls getpass, which would fail."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
