"""Opening connections: the one place that calls asyncpg, and the wait for a database."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, TypeAlias, TypeVar

import asyncpg
from aiohttp import web

from service.db.connection import LOST, Connection, explain
from service.exceptions import StartError
from service.settings import Database

T = TypeVar("T")
Opened: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_TIMEOUT_S = 4
RETRY_S = 0.2
CLOSE_S = 1
# Each costs the server a process and a check of the password, when it may already be busy.
CONNECTS_MAX = 3
# Another of several hosts may do.
_TRY_NEXT = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
# Hosts that did not respond when they were last tried. They are tried after the others.
SILENT_HOSTS: set[tuple[str, int]] = set()


async def connect(
    database: Database,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    session: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Opened:
    """Open a connection to the first host that can be used. Raises what ``explain`` explains.

    Each host gets ``timeout_s``; asyncpg would spend it all on a first host that does not respond.
    ``session`` holds settings for the session; PgBouncer allows none. The other ``arguments`` are
    those of ``asyncpg.connect``.
    """
    arguments |= database.asyncpg_arguments()
    if session and not database.pgbouncer:
        arguments["server_settings"] = session
    hosts = sorted(database.hosts, key=SILENT_HOSTS.__contains__)
    for host in hosts:
        arguments["host"], arguments["port"] = host
        try:
            conn: Opened = await asyncpg.connect(timeout=timeout_s, **arguments)
        except _TRY_NEXT as error:
            if isinstance(error, TimeoutError):
                SILENT_HOSTS.add(host)
            if host == hosts[-1]:
                raise
        else:
            SILENT_HOSTS.discard(host)
            return conn
    raise AssertionError("unreachable")


async def wait_for_database(
    database: Database, timeout_s: float, *, began_at: float | None = None, **arguments: Any
) -> Opened:
    """Connect, retrying for ``timeout_s`` seconds unless waiting cannot help.

    They count from ``began_at``, in the event loop's time, or from now. The other ``arguments`` are
    those of ``connect``. Raises StartError.
    """

    async def attempt(left_s: float) -> Opened:
        return await connect(database, timeout_s=min(CONNECT_TIMEOUT_S, left_s), **arguments)

    return await _retry(attempt, database, timeout_s, began_at)


async def ask_database(
    database: Database, timeout_s: float, question: Callable[[Connection], Awaitable[T]]
) -> T:
    """Return the answer to a question, retrying for ``timeout_s`` seconds as for a connection.

    A server that is going down, or PgBouncer without one, may fail only then. Raises StartError.
    """

    async def attempt(left_s: float) -> T:
        conn = await connect(database, timeout_s=min(CONNECT_TIMEOUT_S, left_s))
        try:
            async with asyncio.timeout(left_s):
                answer = await question(conn)
        except BaseException:
            conn.terminate()
            raise
        with contextlib.suppress(*LOST):
            await conn.close(timeout=CLOSE_S)
        return answer

    return await _retry(attempt, database, timeout_s)


async def _retry(
    attempt: Callable[[float], Awaitable[T]],
    database: Database,
    timeout_s: float,
    began_at: float | None = None,
) -> T:
    loop = asyncio.get_running_loop()
    deadline = (loop.time() if began_at is None else began_at) + timeout_s
    while True:
        try:
            return await attempt(max(1, deadline - loop.time()))
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


async def require_writable(conn: Connection) -> None:
    """Raise ReadOnlySQLTransactionError if the database refuses writes."""
    if await is_read_only(conn):
        raise asyncpg.ReadOnlySQLTransactionError


class Connector:
    """Opens the pool's connections in tasks of its own, at most ``CONNECTS_MAX`` at a time.

    A caller that gives up leaves its attempt running, and whoever asks next gets the connection.
    Otherwise no connection would ever be opened if that took longer than requests wait. Callers are
    served in order, so that asyncpg, which refills the pool in the background, does not get ahead
    of requests.
    """

    def __init__(self, attempt: Callable[..., Coroutine[Any, Any, Opened]]) -> None:
        self.attempt = attempt
        self._attempts: set[asyncio.Task[Opened]] = set()
        self._callers: deque[asyncio.Future[Opened]] = deque()
        self._untaken: list[Opened] = []
        self._arguments: dict[str, Any] = {}

    @property
    def in_progress(self) -> int:
        """The number of connections that are being opened."""
        return len(self._attempts)

    async def connect(self, dsn: str | None = None, **arguments: Any) -> Opened:
        """Return a connection, or raise the error of an attempt that failed meanwhile.

        Has the signature that ``asyncpg.create_pool`` calls: without ``dsn``, and always with the
        same ``arguments``.
        """
        while self._untaken:
            if not (conn := self._untaken.pop()).is_closed():
                return conn
        self._arguments = arguments
        caller: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._callers.append(caller)
        self._start()
        try:
            return await caller
        except asyncio.CancelledError:
            if not caller.cancelled() and not caller.exception():
                self._give(caller.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._callers.remove(caller)

    def _start(self) -> None:
        """Start as many attempts as the callers need and are allowed."""
        while len(self._attempts) < min(len(self._callers), CONNECTS_MAX):
            # An empty context, because the attempt may outlive the request.
            attempt = asyncio.create_task(
                self.attempt(**self._arguments), name="connect", context=Context()
            )
            self._attempts.add(attempt)
            attempt.add_done_callback(self._on_end)

    def _on_end(self, attempt: "asyncio.Task[Opened]") -> None:
        self._attempts.remove(attempt)
        if not attempt.cancelled():
            error = attempt.exception()
            if error is None:
                self._give(attempt.result())
            elif caller := self._next_caller():
                caller.set_exception(error)
        self._start()

    def _give(self, conn: Opened) -> None:
        if caller := self._next_caller():
            caller.set_result(conn)
        else:
            self._untaken.append(conn)

    def _next_caller(self) -> "asyncio.Future[Opened] | None":
        while self._callers:
            # One that is done has been cancelled at this moment.
            if not (caller := self._callers.popleft()).done():
                return caller
        return None

    def drop(self) -> None:
        """Close the connections that nobody took, and start again those that are being opened."""
        while self._untaken:
            self._untaken.pop().terminate()
        for attempt in self._attempts:
            attempt.cancel()

    async def close(self) -> None:
        """Open no more connections, and close those that nobody took."""
        for caller in self._callers:
            caller.cancel()
        self._callers.clear()
        self.drop()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=CLOSE_S)
        self.drop()


CONNECTOR = web.AppKey("connector", Connector)
