"""The settings, database and pool that commands share with the service."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import click
from aiohttp import web

from service.auth.queries import list_signing_keys
from service.auth.signing_keys import check_secret_keys, verifies_s
from service.commands.output import progress, visible
from service.context import LIFECYCLE, SETTINGS, Lifecycle
from service.db import migrations
from service.db.pool import database_context
from service.db.transactions import read
from service.exceptions import StartError
from service.mail.rendering import MAIL_TEMPLATES, read_templates
from service.settings import Settings, load_settings
from service.settings.unknown import find_unknown
from service.telemetry.logs import configure_logging

T = TypeVar("T")
CleanupContext = Callable[[web.Application], AsyncIterator[None]]


def run(work: Callable[[web.Application], Awaitable[T]], *contexts: CleanupContext) -> T:
    """Run ``work`` on an app that has a pool of one connection and serves nothing.

    Raises SettingsError, and StartError if the database is unreachable or not migrated.
    """
    settings = read_settings()
    # The caller reports a failure in one line.
    configure_logging(dataclasses.replace(settings, log_level="error"))
    # Otherwise an interruption logs the tasks that it left unfinished.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with database_of(settings) as ready:
        if settings.database is None:
            say_which_database(settings)
        return asyncio.run(_run(ready, work, contexts))


def read_settings() -> Settings:
    """Read the settings, and name on stderr the variables that were probably meant as settings.

    Raises SettingsError.
    """
    settings = load_settings(os.environ)
    for unknown in find_unknown(os.environ):
        click.echo(f"shinkei: {visible(unknown)}", err=True)
    return settings


async def _run(
    settings: Settings,
    work: Callable[[web.Application], Awaitable[T]],
    contexts: tuple[CleanupContext, ...],
) -> T:
    app = web.Application()
    app[SETTINGS] = dataclasses.replace(settings, db_pool_size=1, replica_database=None)
    app[LIFECYCLE] = Lifecycle()
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


async def mail_templates_context(app: web.Application) -> AsyncIterator[None]:
    """Read the mail templates, so that ``work`` can enqueue mail for the service to send."""
    app[MAIL_TEMPLATES] = read_templates(app[SETTINGS].mail_templates_dir)
    yield


async def require_services_key(app: web.Application) -> None:
    """Raise SettingsError if SECRET_KEY is not the service's, which could not open our mail."""
    settings = app[SETTINGS]
    rows = await read(app, list_signing_keys, verifies_s(settings))
    check_secret_keys(rows, settings.secret_keys)


@contextlib.contextmanager
def database_of(settings: Settings) -> Iterator[Settings]:
    """Yield settings with a database: the configured one, or the embedded one while it runs.

    Other users may not read the files that are created in the meantime, such as logs and emails.
    """
    umask = os.umask(0o077)
    try:
        with _database_of(settings) as ready:
            yield ready
    finally:
        os.umask(umask)


@contextlib.contextmanager
def _database_of(settings: Settings) -> Iterator[Settings]:
    if settings.database is not None:
        yield settings
        return
    from service.embedded import cluster
    from service.embedded import server as embedded
    from service.embedded.binaries import require_wanted

    require_wanted(settings.data_dir, os.environ)
    ignore_libpq_variables()
    with contextlib.ExitStack() as stack:
        with progress("starting the embedded PostgreSQL"):
            database = stack.enter_context(
                embedded.running(settings.data_dir, connections=settings.db_connections)
            )
        secret_key = settings.secret_key or cluster.read_secret_key(settings.data_dir)
        yield dataclasses.replace(settings, database=database, secret_key=secret_key)


def say_which_database(configured: Settings) -> None:
    """Print on stderr which database the command uses, as DATABASE_URL is easily forgotten."""
    database = configured.database
    if database is None:
        which = f"the embedded PostgreSQL in {configured.data_dir}, as DATABASE_URL is not set"
    else:
        which = f"PostgreSQL at {database.address}, database {database.name}, user {database.user}"
    click.echo(f"shinkei: using {which}", err=True)


def ignore_libpq_variables() -> None:
    """Remove libpq's variables from the environment before connecting to the embedded server.

    They configure another server. PGOPTIONS, PGSERVICE and PGHOSTADDR would each break the
    connection to this one, and no connection parameter overrides them.
    """
    for name in [name for name in os.environ if re.match("PG[A-Z]", name)]:
        del os.environ[name]
