"""Startup: wait for the database, and migrate it if ``migrate_on_start`` is set."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from service.db import migrations
from service.db.connecting import ask_database, cannot_connect, require_writable
from service.db.connection import LOST, explain
from service.exceptions import StartError
from service.settings import Database, Settings

log = logging.getLogger(__name__)


@contextmanager
def start_errors(settings: Settings) -> Iterator[Database]:
    """Yield the database, turning connection and PostgreSQL errors into StartError."""
    database = settings.database
    assert database is not None, "start the embedded server first"  # noqa: S101
    try:
        yield database
    except (*LOST, asyncpg.PostgresError) as error:
        raise cannot_connect(database, explain(error).reason) from error


async def prepare(settings: Settings) -> None:
    """Wait for the database and migrate it if ``migrate_on_start`` is set. Raises StartError."""
    with start_errors(settings) as database:
        wait_s = settings.db_connect_timeout_s
        direct = settings.direct_database or database
        read_only, pending = await ask_database(database, wait_s, migrations.find_state)
        if read_only:
            log.warning(
                "the database is read-only: only reads are served until it accepts writes",
                extra={"database": f"{database.address}/{database.name}"},
            )
        if pending and settings.migrate_on_start:
            if read_only:
                await ask_database(direct, wait_s, require_writable)
            stop = threading.Event()
            try:
                await asyncio.to_thread(migrations.apply_pending, direct, wait_s, stop)
            except asyncio.CancelledError:
                stop.set()
                raise
            if direct != database:
                left = await ask_database(database, wait_s, migrations.find_pending)
                if left:
                    raise StartError(
                        "migrations are still pending: DATABASE_DIRECT_URL leads to another"
                        " database than the service's"
                    )
        elif pending:
            log.warning("migrations pending: run shinkei migrate", extra={"pending": len(pending)})
