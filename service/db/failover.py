"""Failover: leaving a server that no longer accepts writes for one that does."""

import asyncio
import logging
from contextvars import Context
from dataclasses import dataclass

import asyncpg
from aiohttp import web

from service.context import SETTINGS
from service.db.connecting import CONNECTOR, connect, is_read_only
from service.db.connection import LOST, POOL

log = logging.getLogger(__name__)

# Pause between attempts to find a server that accepts writes.
LOOK_EVERY_S = 1
COMMAND_TIMEOUT_S = 2


@dataclass(slots=True)
class Failover:
    """The search for a server that accepts writes, if one has been refused."""

    search: asyncio.Task[None] | None = None


def look_for_primary(app: web.Application) -> None:
    """Find out whether new connections accept writes, and if so replace all that are open.

    To be called if a write was refused. At most one connection is opened each ``LOOK_EVERY_S``, so
    that reads go on undisturbed while there is no other server.
    """
    failover = app[FAILOVER]
    if failover.search is None or failover.search.done():
        # An empty context, because the search may outlive the request.
        failover.search = asyncio.create_task(_look(app), name="failover", context=Context())


def stop_looking(app: web.Application) -> None:
    """End the search, because the pool is about to close."""
    if (search := app[FAILOVER].search) is not None:
        search.cancel()


async def _look(app: web.Application) -> None:
    if await _finds_primary(app):
        app[CONNECTOR].drop()
        await app[POOL].expire_connections()
        log.warning(
            "pool expired: its database had become read-only",
            extra={"connections": app[POOL].get_size()},
        )
    await asyncio.sleep(LOOK_EVERY_S)


async def _finds_primary(app: web.Application) -> bool:
    database = app[SETTINGS].database
    assert database is not None  # noqa: S101
    try:
        conn = await connect(database, command_timeout=COMMAND_TIMEOUT_S)
        try:
            return not await is_read_only(conn)
        finally:
            conn.terminate()
    except (*LOST, asyncpg.PostgresError):
        return False


FAILOVER = web.AppKey("failover", Failover)
