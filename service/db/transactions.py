"""The two ways to use the pool: ``read`` runs one query, ``write`` runs one transaction.

``replica.read_replica`` is the third way to read.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import asyncpg
from aiohttp import web
from asyncpg.pool import PoolConnectionProxy

from service.context import REQUEST_CONTEXT, SETTINGS
from service.db.connection import (
    DATABASE_TIMERS,
    LOST,
    POOL,
    POOL_WAITING,
    PURPOSE,
    WRITES,
    Connection,
)
from service.db.failover import look_for_primary
from service.exceptions import DatabaseUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

WRITE_ATTEMPTS = 3
# Rerunning the whole transaction may succeed (PostgreSQL manual, 13.5). asyncpg refreshes outdated
# cached plans by itself only outside of a transaction.
RETRYABLE = (
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


class MisuseError(Exception):
    """A call that asyncpg refuses on a working connection, such as one with too few arguments."""


# Invalid values and violated constraints (SQLSTATE classes 22 and 23), for the caller to handle;
# mistakes of ours or of the schema (classes 42, 21 and 0A), which no retry helps against.
OF_THE_STATEMENT = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.CardinalityViolationError,
    asyncpg.FeatureNotSupportedError,
    MisuseError,
)


async def read(
    app: web.Application,
    query: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run a read-only query, retrying once if its connection was lost or the error is transient.

    Raises DatabaseUnavailable.
    """
    for attempt in (1, 2):
        try:
            async with acquire(app, query) as conn:
                return await query(conn, *args, **kwargs)
        except TimeoutError as error:  # an OSError too, but not retried
            raise DatabaseUnavailable from error
        except (*LOST, *RETRYABLE) as error:
            if attempt == 2:
                raise DatabaseUnavailable from error
            # Other connections were probably lost too. The pause lets the event loop notice, so
            # that the pool does not hand out another dead one.
            await asyncio.sleep(0.01)
        except OF_THE_STATEMENT:
            raise
        except asyncpg.PostgresError as error:
            raise DatabaseUnavailable from error
    raise AssertionError("unreachable")


async def write(
    app: web.Application,
    work: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``work`` in one transaction, which commits when it returns and rolls back when it raises.

    After a serialization failure or a deadlock, ``work`` runs again, up to ``WRITE_ATTEMPTS`` times
    in all, with backoff and jitter. So it must only run SQL on its own connection. Raises
    DatabaseUnavailable; if the connection was lost at commit, the write may have been committed.
    """
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        try:
            async with acquire(app, work, writes=True) as conn, _transaction(conn):
                return await work(conn, *args, **kwargs)
        except RETRYABLE as error:
            if attempt == WRITE_ATTEMPTS:
                raise DatabaseUnavailable from error
            await asyncio.sleep(random.uniform(0.005, 0.025) * 2**attempt)  # noqa: S311
        except OF_THE_STATEMENT:
            raise
        except (*LOST, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable from error
    raise AssertionError("unreachable")


@asynccontextmanager
async def snapshot(conn: Connection) -> AsyncIterator[None]:
    """Run a read-only transaction whose statements see the database as it was at the first."""
    async with _transaction(conn, isolation="repeatable_read", readonly=True):
        yield


@asynccontextmanager
async def _transaction(conn: Connection, **options: Any) -> AsyncIterator[None]:
    """Run a transaction that commits at the end, or rolls back on an error.

    After a timeout or a cancellation no ROLLBACK is sent, because it could hang on a dead
    connection as well. ``acquire`` evicts the connection. The server then ends the transaction
    when it notices the closed connection, or through its own timeouts.
    """
    transaction = conn.transaction(**options)
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
    """Run a transaction in which PostgreSQL plans each statement for its actual arguments.

    By default, PostgreSQL may switch to a generic plan from a statement's sixth execution on. The
    setting costs a search extra round trips. If it applied to the whole session, every other query
    would be planned on each execution.
    """
    async with _transaction(conn):
        await conn.execute("set local plan_cache_mode = force_custom_plan")
        yield


async def plan_for_many_rows(conn: Connection) -> None:
    """Have the rest of the transaction look up rows in indexes, however small tables have been.

    PostgreSQL plans the check of a foreign key once for a session. If the table was small then,
    each check would read the whole of it, while many rows are being inserted.
    """
    await conn.execute("discard plans")
    await conn.execute("set local enable_seqscan = off")


@asynccontextmanager
async def acquire(
    app: web.Application,
    purpose: Callable[..., object],
    *,
    writes: bool = False,
    pool: "asyncpg.Pool[asyncpg.Record] | None" = None,
) -> AsyncIterator[Connection]:
    """Acquire a connection, release it afterwards, and report both times to the timers.

    It is the primary's, unless it is from another ``pool``.
    """
    settings, pool = app[SETTINGS], pool or app[POOL]
    name = _name(purpose.__module__, purpose.__name__)
    PURPOSE.set(name)
    asked = time.perf_counter()
    acquired: float | None = None
    waiting = app[POOL_WAITING]
    try:
        waiting.count += 1
        try:
            async with asyncio.timeout(settings.db_acquire_timeout_s):
                conn = await (_acquire_to_write(app) if writes else pool.acquire())
        except asyncpg.SyntaxOrAccessError as error:
            # No statement of ours is wrong: the role may not connect.
            raise DatabaseUnavailable from error
        finally:
            waiting.count -= 1
        acquired = time.perf_counter()
        try:
            yield conn
        except asyncpg.ReadOnlySQLTransactionError:
            look_for_primary(app)
            raise
        except (TimeoutError, asyncio.CancelledError, asyncpg.InternalClientError):
            # The socket may be dead, so evict the connection instead of cancelling the statement.
            # The server ends the statement by statement_timeout.
            conn.terminate()
            raise
        except asyncpg.InterfaceError as error:
            if conn.is_closed():
                raise
            raise MisuseError(str(error)) from error
        finally:
            try:
                await pool.release(conn, timeout=settings.db_close_timeout_s)
            finally:
                if writes:
                    app[WRITES].release()
    finally:
        ended = time.perf_counter()
        acquired = acquired or ended
        if context := REQUEST_CONTEXT.get(None):
            context.add_database_time(ended - asked)
        for timer in app[DATABASE_TIMERS]:
            timer(name, acquired - asked, ended - acquired)


async def _acquire_to_write(app: web.Application) -> "PoolConnectionProxy[asyncpg.Record]":
    """Acquire a connection for a transaction, leaving a fifth of the pool to reads.

    Transactions may wait for each other's row locks, for example on one client's rate limit. Reads
    must not queue behind them.
    """
    await app[WRITES].acquire()
    try:
        return await app[POOL].acquire()
    except BaseException:
        app[WRITES].release()
        raise


@functools.cache
def _name(module: str, function: str) -> str:
    """Return the name of a query or transaction in metrics, logs and traces."""
    feature = module.removeprefix("service.").partition(".")[0]
    return f"{feature}.{function.lstrip('_')}"
