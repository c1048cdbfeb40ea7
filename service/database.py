"""The pool, and the two ways to use it: ``read`` one query, ``write`` one transaction.

Every deadline on the database is set here: connect, acquire, command, lock, idle, close.
"""

import asyncio
import functools
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import asyncpg
import orjson
from aiohttp import web
from asyncpg.connection import LoggedQuery
from asyncpg.pool import PoolConnectionProxy

from service import migrate
from service.deadlines import Deadlines
from service.encoding import encode
from service.errors import Problem, StartError, unavailable
from service.keys import (
    ACQUIRING,
    CONNECTION_CLASS,
    DATABASE_TIMERS,
    EXCHANGE,
    POOL,
    POOL_WAITING,
    SETTINGS,
    WRITES,
    Waiting,
)
from service.settings import Database, Settings

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

WRITE_ATTEMPTS = 3
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# Statements are shown so far in logs.
STATEMENT_MAX_CHARS = 2_000

# What the connection in use is for, as metrics and logs call it: ``sessions.find_signed_in``.
PURPOSE: ContextVar[str] = ContextVar("purpose", default="")

# The connection went away under the statement, or could not be had. InternalClientError is what a
# statement gets that begins while its connection is being torn down.
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
# The whole transaction may succeed when it is run again (PostgreSQL manual, 13.5); cached plans
# heal themselves only outside of a transaction.
RETRYABLE = (
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
# A value or a constraint (SQLSTATE classes 22 and 23): the statement's own matter.
OF_THE_STATEMENT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


async def read(
    app: web.Application,
    query: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run one reading query; once more on another connection where the first was lost under it.

    Raises Problem 503 where the database cannot answer.
    """
    for attempt in (1, 2):
        try:
            async with _acquire(app, query) as conn:
                return await query(conn, *args, **kwargs)
        except OF_THE_STATEMENT:
            raise
        except TimeoutError as error:  # an OSError too, but not to be tried again
            raise _database_unavailable() from error
        except (*LOST, *RETRYABLE) as error:
            if attempt == 2:
                raise _database_unavailable() from error
            # What ended one connection ended others, as a rule: let the loop hear of them, so that
            # the pool does not hand out another dead one.
            await asyncio.sleep(0.01)
        except asyncpg.PostgresError as error:
            raise _database_unavailable() from error
    raise AssertionError("unreachable")


async def write(
    app: web.Application,
    work: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``work`` in one transaction, which commits when it returns and rolls back when it raises.

    A serialization failure or a deadlock runs the whole of it again, at most three times, with
    jitter: ``work`` must do nothing but SQL, and that on its own connection. Raises Problem 503
    where the database cannot answer; where the connection was lost at commit, the write may or may
    not be there.
    """
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        try:
            async with _acquire(app, work, writes=True) as conn, _transaction(conn):
                return await work(conn, *args, **kwargs)
        except OF_THE_STATEMENT:
            raise
        except RETRYABLE as error:
            if attempt == WRITE_ATTEMPTS:
                raise _database_unavailable() from error
            await asyncio.sleep(random.uniform(0.005, 0.025) * 2**attempt)  # noqa: S311
        except (*LOST, asyncpg.PostgresError) as error:
            raise _database_unavailable() from error
    raise AssertionError("unreachable")


@asynccontextmanager
async def _transaction(conn: Connection) -> AsyncIterator[None]:
    """One that commits at the end, and rolls back where it ends with an error.

    Where time ran out, or the task is cancelled, no ROLLBACK is sent: the connection may be silent,
    and it would wait as long again. ``_acquire`` evicts the connection, and the server ends the
    transaction when it sees it closed, or else by its own timeouts.
    """
    transaction = conn.transaction()
    await transaction.start()
    try:
        yield
    except (TimeoutError, asyncio.CancelledError):
        raise
    except BaseException:
        await transaction.rollback()
        raise
    await transaction.commit()


@asynccontextmanager
async def own_plans(conn: Connection) -> AsyncIterator[None]:
    """A transaction in which PostgreSQL plans each statement for its own arguments.

    It would otherwise keep one plan for any arguments from a statement's sixth run on. The round
    trips cost a search less than planning every read of the session would cost all others.
    """
    async with _transaction(conn):
        await conn.execute("set local plan_cache_mode = force_custom_plan")
        yield


def _database_unavailable() -> Problem:
    return unavailable("database_unavailable", "The database cannot answer now; try again.")


@asynccontextmanager
async def _acquire(
    app: web.Application, purpose: Callable[..., object], *, writes: bool = False
) -> AsyncIterator[Connection]:
    """A connection, given back afterwards; the application's timers hear how long it took."""
    settings = app[SETTINGS]
    name = _name(purpose.__module__, purpose.__name__)
    PURPOSE.set(name)
    asked = time.perf_counter()
    acquired: float | None = None
    waiting = app[POOL_WAITING]
    try:
        waiting.count += 1
        try:
            asked_for = _acquire_to_write(app) if writes else app[POOL].acquire()
            conn = await app[ACQUIRING].wait(asked_for)
        finally:
            waiting.count -= 1
        acquired = time.perf_counter()
        try:
            yield conn
        except (TimeoutError, asyncio.CancelledError, asyncpg.InternalClientError):
            # A statement that ran out of time may sit on a dead socket: evict it rather than ask it
            # to cancel. The server ends what it runs by statement_timeout.
            conn.terminate()
            raise
        finally:
            try:
                await app[POOL].release(conn, timeout=settings.db_close_timeout_s)
            finally:
                if writes:
                    app[WRITES].release()
    finally:
        ended = time.perf_counter()
        acquired = acquired or ended
        if exchange := EXCHANGE.get(None):
            exchange.add_database_time(ended - asked)
        for timer in app[DATABASE_TIMERS]:
            timer(name, acquired - asked, ended - acquired)


async def _acquire_to_write(app: web.Application) -> "PoolConnectionProxy[asyncpg.Record]":
    """A connection, of which transactions leave a fifth to reads.

    They may wait for each other's rows: with 64 clients of one address signing in, which its limit
    has wait for one another, ``users/me`` of others took 350 ms (p99) behind them, now 50.
    """
    await app[WRITES].acquire()
    try:
        return await app[POOL].acquire()
    except BaseException:
        app[WRITES].release()
        raise


@functools.cache
def _name(module: str, function: str) -> str:
    """What a query or a transaction is called in metrics, logs and traces."""
    feature = module.removeprefix("service.").partition(".")[0]
    return f"{feature}.{function.lstrip('_')}"


async def database_context(app: web.Application) -> AsyncIterator[None]:
    """Wait for the database, migrate it where that is asked for, and open the pool, all warm."""
    settings = app[SETTINGS]
    app[DATABASE_TIMERS] = []
    app[POOL_WAITING] = Waiting()
    app[ACQUIRING] = Deadlines(settings.db_acquire_timeout_s)
    app[WRITES] = asyncio.Semaphore(max(1, settings.db_pool_size * 4 // 5))
    await prepare(settings)
    with _start_errors(settings) as database:
        connection_class = app.get(CONNECTION_CLASS, asyncpg.Connection)
        app[POOL] = await _open_pool(settings, database, connection_class)
    yield
    try:
        async with asyncio.timeout(settings.db_close_timeout_s):
            await app[POOL].close()
    except TimeoutError:
        app[POOL].terminate()


@contextmanager
def _start_errors(settings: Settings) -> Iterator[Database]:
    """The database; what PostgreSQL refuses meanwhile is the operator's one line."""
    database = settings.database
    assert database is not None, "start the embedded server first"  # noqa: S101
    try:
        yield database
    except (*LOST, asyncpg.PostgresError) as error:
        raise _cannot_connect(database, explain(error)[0]) from error


async def prepare(settings: Settings) -> None:
    """Wait for the database, and migrate it where that is asked for. Raises StartError."""
    with _start_errors(settings) as database:
        conn = await _wait_for_database(database, settings.db_connect_timeout_s)
        try:
            pending = await migrate.find_pending(conn)
        finally:
            await conn.close(timeout=settings.db_close_timeout_s)
        if pending and settings.migrate_on_start:
            stop = threading.Event()
            try:
                await asyncio.to_thread(migrate.apply_pending, database, stop=stop)
            except asyncio.CancelledError:
                stop.set()
                raise
        elif pending:
            log.warning("migrations pending: run shinkei migrate", extra={"pending": len(pending)})


async def _open_pool(
    settings: Settings, database: Database, connection_class: type[Any]
) -> "asyncpg.Pool[asyncpg.Record]":
    return await asyncpg.create_pool(
        **database.asyncpg_arguments(),
        # All connections are there from the start and stay: none is opened inside of a request
        # unless one was lost.
        min_size=settings.db_pool_size,
        max_size=settings.db_pool_size,
        connection_class=connection_class,
        timeout=5,
        # PostgreSQL cancels a statement itself by then, unless it cannot be reached.
        command_timeout=settings.db_command_timeout_s + 0.5,
        init=functools.partial(_prepare_connection, slow_query_ms=settings.slow_query_ms),
        reset=_keep_session,
        **_session_arguments(settings),
    )


def _session_arguments(settings: Settings) -> dict[str, Any]:
    """Behind PgBouncer in transaction mode: no named statements, no session settings."""
    if settings.db_pgbouncer:
        return {"statement_cache_size": 0}
    return {
        "server_settings": {
            "application_name": "shinkei",
            "statement_timeout": str(round(settings.db_command_timeout_s * 1000)),
            "lock_timeout": str(round(settings.db_lock_timeout_s * 1000)),
            "idle_in_transaction_session_timeout": "5000",
            "jit": "off",
        }
    }


async def _prepare_connection(conn: Connection, *, slow_query_ms: float) -> None:
    """Set a new connection up, for as long as it lives: a release resets nothing of this."""
    await _set_codecs(conn)
    if slow_query_ms:
        conn.add_query_logger(functools.partial(_log_if_slow, slow_query_ms / 1000))


async def _set_codecs(conn: Connection) -> None:
    """jsonb as Python values, where asyncpg would give text; timestamptz in a third of its time.

    What is cast to json stays as it is, for ``encode``: reading it and writing it again is a tenth
    of a page of accounts. asyncpg takes 1.5 µs for each timestamp, of which such a page has a
    hundred. The wire has microseconds since 2000 (PostgreSQL manual, 8.5).
    """
    await conn.set_type_codec(
        "json",
        schema="pg_catalog",
        encoder=_encode_json,
        decoder=orjson.Fragment,
    )
    await conn.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=_encode_json,
        decoder=orjson.loads,
    )
    await conn.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=_encode_timestamp,
        decoder=_decode_timestamp,
    )


def _encode_json(value: object) -> str:
    return encode(value).decode()


def _encode_timestamp(time: datetime) -> tuple[int]:
    return ((time - _EPOCH) // _MICROSECOND,)


def _decode_timestamp(microseconds: tuple[int]) -> datetime:
    try:
        return _EPOCH + timedelta(0, 0, microseconds[0])
    except OverflowError:
        # infinity, -infinity, and what only PostgreSQL can tell.
        return _LAST if microseconds[0] > 0 else _FIRST


async def _keep_session(conn: Connection) -> None:
    """Reset nothing: queries change no more of their session than their transaction.

    asyncpg itself has rolled back by now and dropped listeners; the query that it would send, to
    unlock advisory locks and reset settings, is a second round trip for each use of a connection.
    ``tests/test_database.py`` goes through every flow and looks for what it left behind.
    """


def _log_if_slow(slow_s: float, query: LoggedQuery) -> None:
    """Log the statement with its places for parameters; never the parameters themselves.

    asyncpg calls this soon after the statement, in the context that it ran in: the line has the id
    of its request.
    """
    if query.elapsed >= slow_s:
        log.warning(
            "slow query",
            extra={
                "query": PURPOSE.get(),
                "elapsed_ms": round(query.elapsed * 1000, 1),
                "statement": " ".join(query.query.split())[:STATEMENT_MAX_CHARS],
                "error": type(query.exception).__name__ if query.exception else None,
            },
        )


async def _wait_for_database(
    database: Database, timeout_s: float
) -> "asyncpg.Connection[asyncpg.Record]":
    """Try to connect until ``timeout_s`` has passed; a refusal that waiting cannot mend ends it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        try:
            return await asyncpg.connect(
                **database.asyncpg_arguments(), timeout=max(1, min(5, deadline - loop.time()))
            )
        except (*LOST, asyncpg.PostgresError) as error:
            reason, hopeless = explain(error)
        if hopeless or loop.time() >= deadline:
            tried = "" if hopeless else f" (tried for {timeout_s:g} s, DB_CONNECT_TIMEOUT_S)"
            raise _cannot_connect(database, reason + tried)
        await asyncio.sleep(min(0.2, max(0, deadline - loop.time())))


def _cannot_connect(database: Database, reason: str) -> StartError:
    return StartError(
        f"cannot connect to PostgreSQL at {database.address}, database {database.name},"
        f" as user {database.user}: {reason}"
    )


def explain(error: Exception) -> tuple[str, bool]:
    """Why a connection failed, in our own words, and whether waiting cannot mend it."""
    known: tuple[tuple[type[Exception], Literal[True, False], str], ...] = (
        (asyncpg.InvalidAuthorizationSpecificationError, True, "user or password refused"),
        (asyncpg.InvalidCatalogNameError, True, "there is no such database"),
        (asyncpg.CannotConnectNowError, False, "the server is starting up or shutting down"),
        (asyncpg.TooManyConnectionsError, False, "the server has no connection left"),
        (ssl.SSLCertVerificationError, True, "the server's TLS certificate is not trusted"),
        (ssl.SSLError, True, "the TLS handshake failed"),
        (socket.gaierror, False, "the host name cannot be resolved"),
        (ConnectionRefusedError, False, "connection refused"),
        (TimeoutError, False, "no answer"),
        (
            asyncpg.TargetServerAttributeNotMatched,
            False,
            "no server is as target_session_attrs asks",
        ),
        (asyncpg.ClientConfigurationError, True, "the connection options contradict each other"),
    )
    for kind, hopeless, reason in known:
        if isinstance(error, kind):
            return reason, hopeless
    if "rejected SSL upgrade" in str(error):
        return "the server does not offer TLS, which sslmode asks for", True
    if isinstance(error, asyncpg.PostgresError):
        return f"the server answered: {error.message}", True
    return f"connection failed ({type(error).__name__})", False
