"""Migrations: the files of ``migrations/``, applied by yoyo, one process at a time."""

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

from service.db.connection import Connection
from service.exceptions import StartError
from service.settings import Database

# "shinkei" in ASCII, as the 64-bit key of pg_advisory_lock.
ADVISORY_LOCK_KEY = 0x7368696E6B6569

_PACKAGE = Path(__file__).resolve().parents[1]


def _to_nobody(text: str) -> None:
    pass


def migrations_dir() -> Path:
    """In the package of an installed wheel, at the top of a checkout otherwise."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def known_migrations() -> list[str]:
    """The ids of all migrations in this release, in order."""
    names = (path.name for path in migrations_dir().glob("*.sql"))
    ids = sorted(name.removesuffix(".sql") for name in names if not name.endswith(".rollback.sql"))
    if not ids:
        raise StartError(f"no migrations in {migrations_dir()}: this installation is incomplete")
    return ids


async def find_pending(conn: "Connection") -> list[str]:
    """The ids of migrations that this release has and the database has not, in order."""
    applied = await find_applied(conn)
    return [id_ for id_ in known_migrations() if id_ not in applied]


async def find_applied(conn: "Connection") -> set[str]:
    """The ids of migrations that the database has; some may be of a newer release."""
    try:
        rows = await conn.fetch("select migration_id from _yoyo_migration")
    except asyncpg.UndefinedTableError:
        rows = []
    return {row["migration_id"] for row in rows}


def apply_pending(
    database: Database,
    wait_s: float = 0,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = _to_nobody,
) -> list[str]:
    """Apply what is pending and return its ids. Blocks while another process migrates.

    Waits up to ``wait_s`` seconds for the database to be there; ``stop`` ends the wait for others.
    ``say`` is told what is being done.

    Raises StartError, naming the migration, where one fails; those before it stay applied.
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
    say: Callable[[str], None] = _to_nobody,
) -> list[str]:
    """Roll back the ``count`` newest applied migrations and return their ids, newest first."""
    with _locked_backend(database, wait_s, None, say) as (backend, migrations):
        newest = backend.to_rollback(migrations)[:count]
        _run(backend.rollback_migrations, newest, "roll back", say)
        return [migration.id for migration in newest]


def list_status(database: Database, wait_s: float = 0) -> list[tuple[str, bool]]:
    """Each known migration, and whether the database has it. Changes nothing, takes no lock."""
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
    """PostgreSQL's own sentence: on our SQL it says what to mend, and it holds no client's data."""
    return str(error.diag.message_primary or type(error).__name__).strip()


def _connect(database: Database, wait_s: float) -> Any:
    """A direct connection in autocommit mode, tried for ``wait_s`` unless waiting cannot help."""
    import psycopg

    arguments: dict[str, Any] = {"connect_timeout": 5, **database.libpq_arguments()}
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return psycopg.connect(**arguments, autocommit=True)
        except psycopg.OperationalError as error:
            refused = "FATAL" in str(error) and "starting up" not in str(error)
            reason = "user, password or database refused" if refused else "no connection"
            if refused or time.monotonic() >= deadline:
                tried = "" if refused else f" (tried for {wait_s:g} s, DB_CONNECT_TIMEOUT_S)"
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
    say: Callable[[str], None] = _to_nobody,
) -> Iterator[tuple[Any, Any]]:
    """yoyo's backend and migrations, under a session-level advisory lock.

    yoyo's own lock is a row keyed by process id, which outlives a killed process and means nothing
    between containers. PostgreSQL frees ours when its holder dies; whoever holds it knows that any
    row of yoyo's is stale.
    """
    # psycopg and yoyo take 0.15 s to import, which a start with nothing pending need not pay.
    import psycopg
    from yoyo import read_migrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI
    from yoyo.exceptions import BadMigration
    from yoyo.migrations import default_migration_table

    # yoyo logs each expected failure (a table that exists, a lock row) as an error.
    logging.getLogger("yoyo").setLevel(logging.CRITICAL)
    _name_the_user()
    known_migrations()
    with _connect(database, wait_s) as guard:
        ask = "select pg_try_advisory_lock(%s)"
        while not guard.execute(ask, [ADVISORY_LOCK_KEY]).fetchone()[0]:
            if stop is not None and stop.is_set():
                raise StartError("told to stop while another process migrates")
            say("waiting for another process that migrates")
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


def _name_the_user() -> None:
    """yoyo records who migrated through getpass, which fails for a user id without a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
