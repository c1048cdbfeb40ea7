"""Opening connections: the one place that calls asyncpg, and the wait for a database."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any

import asyncpg
from aiohttp import web

from service.db.connection import LOST, Connection, explain
from service.exceptions import StartError
from service.settings import Database

CONNECT_TIMEOUT_S = 4
RETRY_S = 0.2
# Each is a process and a signature to check for the server, just when it may be short of both.
CONNECTS_MAX = 3


async def connect(
    database: Database,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    session: Mapping[str, str] | None = None,
    **arguments: Any,
) -> "asyncpg.Connection[asyncpg.Record]":
    """Open a connection. Raises what ``explain`` explains.

    ``session`` holds settings for the session; PgBouncer allows none. The other ``arguments`` are
    those of ``asyncpg.connect``.
    """
    if session and not database.pgbouncer:
        arguments["server_settings"] = session
    return await asyncpg.connect(**database.asyncpg_arguments(), timeout=timeout_s, **arguments)


async def wait_for_database(
    database: Database,
    timeout_s: float,
    *,
    began_at: float | None = None,
    writable: bool = False,
    **arguments: Any,
) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect, retrying for ``timeout_s`` seconds unless waiting cannot help.

    They count from ``began_at``, in the event loop's time, or from now. If ``writable`` is set,
    also waits until the database accepts writes. The other ``arguments`` are those of ``connect``.
    Raises StartError.
    """
    loop = asyncio.get_running_loop()
    deadline = (loop.time() if began_at is None else began_at) + timeout_s
    while True:
        try:
            left_s = max(1, deadline - loop.time())
            conn = await connect(database, timeout_s=min(CONNECT_TIMEOUT_S, left_s), **arguments)
            if not writable or not await is_read_only(conn):
                return conn
            conn.terminate()
            reason, hopeless = "it is read-only", False
        except (*LOST, asyncpg.PostgresError) as error:
            _, reason, hopeless = explain(error)
        if hopeless or loop.time() >= deadline:
            tried = "" if hopeless else f" (tried for {timeout_s:g} s, DB_CONNECT_TIMEOUT_S)"
            raise cannot_connect(database, reason + tried)
        await asyncio.sleep(min(RETRY_S, max(0, deadline - loop.time())))


def cannot_connect(database: Database, reason: str) -> StartError:
    return StartError(
        f"cannot connect to PostgreSQL at {database.address}, database {database.name},"
        f" as user {database.user}: {reason}"
    )


async def is_read_only(conn: Connection) -> bool:
    """Return whether the database refuses writes, as a standby does."""
    read_only: bool = await conn.fetchval("select current_setting('transaction_read_only')::bool")
    return read_only


class Connector:
    """Opens the pool's connections in tasks of its own, at most ``CONNECTS_MAX`` at a time.

    A request that gives up leaves its attempt running, and whoever asks next gets the connection.
    Otherwise no connection would ever be opened if that took longer than requests wait.
    """

    def __init__(
        self, attempt: Callable[..., Awaitable["asyncpg.Connection[asyncpg.Record]"]]
    ) -> None:
        self.attempt = attempt
        # Attempts in progress, and those that have ended but whose result nobody has taken.
        self._attempts: set[asyncio.Task[asyncpg.Connection[asyncpg.Record]]] = set()
        self._callers = 0

    @property
    def in_progress(self) -> int:
        """The number of connections that are being opened."""
        return sum(not attempt.done() for attempt in self._attempts)

    async def connect(
        self, dsn: str | None = None, **arguments: Any
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Return a connection, or raise the error of an attempt that failed meanwhile.

        Has the signature that ``asyncpg.create_pool`` calls, which passes no ``dsn`` here.
        """
        self._attempts = {attempt for attempt in self._attempts if not _has_failed(attempt)}
        self._callers += 1
        try:
            while (conn := self._take()) is None:
                if self.in_progress < min(self._callers, CONNECTS_MAX):
                    self._start(arguments)
                await asyncio.wait(self._attempts, return_when=asyncio.FIRST_COMPLETED)
            return conn
        finally:
            self._callers -= 1

    def _take(self) -> "asyncpg.Connection[asyncpg.Record] | None":
        """Take the result of an attempt that has ended; connections lost since do not count."""
        for attempt in [attempt for attempt in self._attempts if attempt.done()]:
            self._attempts.remove(attempt)
            conn = attempt.result()
            if not conn.is_closed():
                return conn
        return None

    def _start(self, arguments: Mapping[str, Any]) -> None:
        # An empty context, because the attempt may outlive the request.
        attempt = asyncio.create_task(self._open(arguments), name="connect", context=Context())
        # Marks a failure as retrieved, if its request has given up.
        attempt.add_done_callback(_has_failed)
        self._attempts.add(attempt)

    async def _open(self, arguments: Mapping[str, Any]) -> "asyncpg.Connection[asyncpg.Record]":
        return await self.attempt(**arguments)

    def drop(self) -> None:
        """Close what was opened and not taken, and start again what is being opened."""
        attempts, self._attempts = self._attempts, set()
        for attempt in attempts:
            if not attempt.done():
                attempt.cancel()
            elif not _has_failed(attempt):
                attempt.result().terminate()


def _has_failed(attempt: "asyncio.Task[asyncpg.Connection[asyncpg.Record]]") -> bool:
    return attempt.done() and (attempt.cancelled() or attempt.exception() is not None)


CONNECTOR = web.AppKey("connector", Connector)
