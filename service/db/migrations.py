"""Migrations: yoyo runs the files in ``migrations/``, in transactions that hold a lock.

Each transaction takes an advisory lock, looks up what is applied, runs one migration and records
it. So each is applied once, however many processes migrate, and a killed one leaves no lock behind.
Behind PgBouncer in transaction mode this works too, as nothing outlives a transaction.
"""

import asyncio
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

from service.db.connecting import ask_database, cannot_connect, is_read_only
from service.db.connection import Connection
from service.exceptions import StartError
from service.settings import Database

log = logging.getLogger(__name__)

# "shinkei" in ASCII, as the 64-bit key of pg_advisory_xact_lock.
ADVISORY_LOCK_KEY = 0x7368696E6B6569
LOCK_POLL_S = 0.1
CLOSE_S = 1

_PACKAGE = Path(__file__).resolve().parents[1]
# A role or database may have limits that suit requests. A migration takes as long as it needs, but
# others queue behind one that waits for a lock; its own ``set local`` comes later and wins. Each
# statement must see what the lock's last holder committed. transaction_timeout is PostgreSQL 17's.
_LIFT_LIMITS = """
    set transaction isolation level read committed;
    set local statement_timeout = 0;
    set local idle_in_transaction_session_timeout = 0;
    set local lock_timeout = '5s';
    select set_config(name, '0', true) from pg_settings where name = 'transaction_timeout';
"""
_TRY_LOCK = "select pg_try_advisory_xact_lock(%s)"
# In pg_locks, a 64-bit key is split in two.
_FIND_HOLDER = """
    select pid from pg_locks
    where locktype = 'advisory' and objsubid = 1 and granted
        and database = (select oid from pg_database where datname = current_database())
        and classid::bigint << 32 | objid::bigint = %s
"""


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


def reach(database: Database, wait_s: float) -> None:
    """Wait up to ``wait_s`` seconds until the database can be reached. Raises StartError."""

    async def nothing(conn: Connection) -> None:
        pass

    asyncio.run(ask_database(database, wait_s, nothing))


def list_status(database: Database, wait_s: float = 0) -> list[tuple[str, bool]]:
    """Return each known migration's id and whether it is applied, without taking a lock.

    Waits up to ``wait_s`` seconds for the database. Raises StartError.
    """
    applied = asyncio.run(ask_database(database, wait_s, find_applied))
    return [(id_, id_ in applied) for id_ in known_migrations()]


def apply_pending(
    database: Database,
    wait_s: float = 0,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = _discard,
) -> list[str]:
    """Apply pending migrations and return their ids. Other processes may do so at the same time.

    Waits up to ``wait_s`` seconds for the database. Setting ``stop`` ends the wait for another
    process. ``say`` is called with progress messages.

    Raises StartError, naming the migration, if one fails; those before it stay applied.
    """
    done: list[str] = []
    with _connected(database, wait_s) as (backend, migrations):
        while True:
            _check(stop)
            with _locked_transaction(backend, stop, say):
                pending = [*backend.to_apply(migrations)]
                if not pending:
                    return done
                say(f"apply {pending[0].id} ({len(done) + 1} of {len(done) + len(pending)})")
                _run(backend, pending[0], "apply")
            done.append(pending[0].id)


def roll_back(
    database: Database,
    count: int,
    wait_s: float = 0,
    say: Callable[[str], None] = _discard,
) -> list[str]:
    """Roll back the ``count`` newest applied migrations and return their ids, newest first."""
    done: list[str] = []
    with _connected(database, wait_s) as (backend, migrations):
        while len(done) < count:
            with _locked_transaction(backend, None, say):
                applied = [*backend.to_rollback(migrations)]
                if not applied:
                    break
                total = min(count, len(done) + len(applied))
                say(f"roll back {applied[0].id} ({len(done) + 1} of {total})")
                _run(backend, applied[0], "roll back")
            done.append(applied[0].id)
    return done


def _run(backend: Any, migration: Any, verb: str) -> None:
    """Apply or roll back a migration and record it."""
    import psycopg

    operation = verb.replace(" ", "")
    mark = backend.mark_one if operation == "apply" else backend.unmark_one
    try:
        # Before the migration locks anything, because this looks up our host's name.
        backend.log_migration(migration, operation)
        migration.process_steps(backend, operation)
        mark(migration, log=False)
    except psycopg.Error as error:
        raise StartError(f"cannot {verb} {migration.id}: {_reason(error)}") from error


def _reason(error: Any) -> str:
    """Return PostgreSQL's primary message, or libpq's. Neither contains data of clients."""
    import psycopg

    # The first error counts: if the connection is lost, rolling back fails too.
    while isinstance(error.__context__, psycopg.Error):
        error = error.__context__
    return (error.diag.message_primary or " ".join(str(error).split())).strip()


@contextmanager
def _connected(database: Database, wait_s: float) -> Iterator[tuple[Any, Any]]:
    """Yield yoyo's backend and migrations, turning errors into StartError."""
    # Slow imports, which a start without pending migrations does not need.
    import psycopg
    from yoyo import read_migrations
    from yoyo.exceptions import BadMigration

    _ensure_user_name()
    known_migrations()
    with _connect(database, wait_s) as backend:
        try:
            yield backend, read_migrations(str(migrations_dir()))
        except psycopg.Error as error:
            raise StartError(f"cannot migrate: {_reason(error)}") from error
        except BadMigration as error:
            raise StartError(f"cannot migrate: {error}") from error


def _connect(database: Database, wait_s: float) -> Any:
    """Connect yoyo's backend in autocommit mode, retrying for ``wait_s`` seconds.

    asyncpg connects first: libpq does not say why it cannot, other than in words that vary.
    """
    import psycopg
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import DatabaseURI
    from yoyo.migrations import default_migration_table

    deadline = time.monotonic() + wait_s
    while True:
        reach(database, wait_s)
        arguments = {"connect_timeout": 5, **database.libpq_arguments()}
        uri = DatabaseURI(
            scheme="postgresql+psycopg",
            username=arguments.pop("user"),
            password=arguments.pop("password"),
            hostname=arguments.pop("host"),
            port=arguments.pop("port"),
            database=arguments.pop("dbname"),
            args=arguments,
        )
        try:
            return PostgresqlPsycopgBackend(uri, default_migration_table)
        except psycopg.Error as error:
            if time.monotonic() >= deadline:
                raise cannot_connect(database, _reason(error)) from None
        time.sleep(LOCK_POLL_S)


@contextmanager
def _locked_transaction(
    backend: Any, stop: threading.Event | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Run the block in a transaction that holds the lock and has its own limits.

    Waiting takes no connection of PgBouncer's, which the lock's holder may need. After an error,
    closing the connection rolls back.
    """
    from yoyo import internalmigrations

    _begin(backend)
    logged = False
    while not backend.connection.execute(_TRY_LOCK, [ADVISORY_LOCK_KEY]).fetchone()[0]:
        if not logged:
            holder = backend.connection.execute(_FIND_HOLDER, [ADVISORY_LOCK_KEY]).fetchone()
            extra = {"holder_pid": holder and holder[0]}
            log.info("waiting for another process to finish migrating", extra=extra)
            logged = True
        backend.rollback()
        _check(stop)
        say("waiting for another process to finish migrating")
        time.sleep(LOCK_POLL_S)
        _begin(backend)
    if internalmigrations.needs_upgrading(backend):
        internalmigrations.upgrade(backend)
    yield
    backend.commit()


def _check(stop: threading.Event | None) -> None:
    """Raise StartError if the caller wants to stop."""
    if stop is not None and stop.is_set():
        raise StartError("stopped before all migrations were applied")


def _begin(backend: Any) -> None:
    backend.begin()
    backend.connection.execute(_LIFT_LIMITS)


def _ensure_user_name() -> None:
    """Set ``USER`` if the user id has no name: yoyo calls getpass, which would fail."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
