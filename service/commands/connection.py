"""What commands have in common with the service: its settings, its database and its pool."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from aiohttp import web

from service.commands.output import progress
from service.context import SETTINGS
from service.db import migrations
from service.db.pool import database_context
from service.db.transactions import read
from service.exceptions import StartError
from service.settings import Settings, load_settings
from service.telemetry.logs import configure_logging

T = TypeVar("T")
CleanupContext = Callable[[web.Application], AsyncIterator[None]]


def run(work: Callable[[web.Application], Awaitable[T]], *contexts: CleanupContext) -> T:
    """Do the work with a pool of one connection, and without serving anything.

    Raises SettingsError, and StartError where the database cannot be reached or is not migrated.
    """
    settings = load_settings(os.environ)
    # What fails is told in one line, by whoever catches it.
    configure_logging(dataclasses.replace(settings, log_level="error"))
    # Of what an interruption left unfinished.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with database_of(settings) as ready:
        return asyncio.run(_run(ready, work, contexts))


async def _run(
    settings: Settings,
    work: Callable[[web.Application], Awaitable[T]],
    contexts: tuple[CleanupContext, ...],
) -> T:
    app = web.Application()
    app[SETTINGS] = dataclasses.replace(settings, db_pool_size=1)
    app.cleanup_ctx.extend([database_context, *contexts])
    runner = web.AppRunner(app)
    try:
        with progress("waiting for the database"):
            await runner.setup()
        pending = await read(app, migrations.find_pending)
        if pending:
            raise StartError(f"{len(pending)} migrations pending: run shinkei migrate")
        return await work(app)
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def database_of(settings: Settings) -> Iterator[Settings]:
    """The settings with a database in them: the one configured, or the embedded one, running."""
    if settings.database is not None:
        yield settings
        return
    from service.embedded import cluster
    from service.embedded import server as embedded

    ignore_libpq_variables()
    with contextlib.ExitStack() as stack:
        with progress("starting the embedded PostgreSQL"):
            database = stack.enter_context(
                embedded.running(settings.data_dir, connections=settings.db_connections)
            )
        secret_key = settings.secret_key or cluster.read_secret_key(settings.data_dir)
        yield dataclasses.replace(settings, database=database, secret_key=secret_key)


def ignore_libpq_variables() -> None:
    """Forget what the shell says to libpq, before a connection to the embedded server.

    It speaks of another server: PGOPTIONS, PGSERVICE and PGHOSTADDR would each break the connection
    to this one, and no connection parameter can undo them.
    """
    for name in [name for name in os.environ if re.match("PG[A-Z]", name)]:
        del os.environ[name]
