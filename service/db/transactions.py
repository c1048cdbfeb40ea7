"""The pool, and the two ways to use it: ``read`` one query, ``write`` one transaction.

Every deadline on the database is set here: connect, acquire, command, lock, idle, close.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar

import asyncpg
from aiohttp import web
from asyncpg.pool import PoolConnectionProxy

from service.context import REQUEST_CONTEXT, SETTINGS
from service.db.connection import (
    ACQUIRING,
    DATABASE_TIMERS,
    LOST,
    POOL,
    POOL_WAITING,
    PURPOSE,
    WRITES,
    Connection,
)
from service.exceptions import DatabaseUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

WRITE_ATTEMPTS = 3
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

    Raises DatabaseUnavailable.
    """
    for attempt in (1, 2):
        try:
            async with _acquire(app, query) as conn:
                return await query(conn, *args, **kwargs)
        except OF_THE_STATEMENT:
            raise
        except TimeoutError as error:  # an OSError too, but not to be tried again
            raise DatabaseUnavailable from error
        except (*LOST, *RETRYABLE) as error:
            if attempt == 2:
                raise DatabaseUnavailable from error
            # What ended one connection ended others, as a rule: let the loop hear of them, so that
            # the pool does not hand out another dead one.
            await asyncio.sleep(0.01)
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

    A serialization failure or a deadlock runs the whole of it again, at most three times, with
    jitter: ``work`` must do nothing but SQL, and that on its own connection. Raises
    DatabaseUnavailable; if the connection was lost at commit, the write may or may not be there.
    """
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        try:
            async with _acquire(app, work, writes=True) as conn, _transaction(conn):
                return await work(conn, *args, **kwargs)
        except OF_THE_STATEMENT:
            raise
        except RETRYABLE as error:
            if attempt == WRITE_ATTEMPTS:
                raise DatabaseUnavailable from error
            await asyncio.sleep(random.uniform(0.005, 0.025) * 2**attempt)  # noqa: S311
        except (*LOST, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable from error
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
        if context := REQUEST_CONTEXT.get(None):
            context.add_database_time(ended - asked)
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
