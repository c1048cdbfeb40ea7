"""The pool: opened when the application starts, closed when it stops."""

import asyncio
import functools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
from aiohttp import web
from asyncpg.connection import LoggedQuery

from service.context import SETTINGS
from service.db.connection import (
    ACQUIRING,
    CONNECTION_CLASS,
    DATABASE_TIMERS,
    POOL,
    POOL_WAITING,
    PURPOSE,
    STATEMENT_MAX_CHARS,
    WRITES,
    Connection,
    Waiting,
)
from service.db.deadlines import Deadlines
from service.db.startup import prepare, start_errors
from service.db.transactions import log
from service.json_codec import encode
from service.settings import Database, Settings

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


async def database_context(app: web.Application) -> AsyncIterator[None]:
    """Wait for the database, migrate it where that is asked for, and open the pool, all warm."""
    settings = app[SETTINGS]
    app[DATABASE_TIMERS] = []
    app[POOL_WAITING] = Waiting()
    app[ACQUIRING] = Deadlines(settings.db_acquire_timeout_s)
    app[WRITES] = asyncio.Semaphore(max(1, settings.db_pool_size * 4 // 5))
    await prepare(settings)
    with start_errors(settings) as database:
        connection_class = app.get(CONNECTION_CLASS, asyncpg.Connection)
        app[POOL] = await _open_pool(settings, database, connection_class)
    yield
    try:
        async with asyncio.timeout(settings.db_close_timeout_s):
            await app[POOL].close()
    except TimeoutError:
        app[POOL].terminate()


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
    ``tests/db/test_database.py`` goes through every flow and looks for what it left behind.
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
