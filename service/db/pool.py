"""The pool: opened when the application starts, closed when it stops."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
from aiohttp import web
from asyncpg.connection import LoggedQuery

from service.context import SETTINGS
from service.db.connecting import CONNECTOR, Connector, connect, wait_for_database
from service.db.connection import (
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
from service.db.failover import FAILOVER, Failover
from service.db.startup import prepare, start_errors
from service.json_codec import encode
from service.settings import Settings

log = logging.getLogger(__name__)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


async def database_context(app: web.Application) -> AsyncIterator[None]:
    """Wait for the database, migrate it if ``migrate_on_start`` is set, and open the pool."""
    settings = app[SETTINGS]
    app[DATABASE_TIMERS] = []
    app[POOL_WAITING] = Waiting()
    app[FAILOVER] = Failover()
    app[WRITES] = asyncio.Semaphore(max(1, settings.db_pool_size * 4 // 5))
    await prepare(settings)
    with start_errors(settings) as database:
        session = _session_settings(settings)
        began_at = asyncio.get_running_loop().time()
        # While the pool opens, each attempt waits like the first connection.
        app[CONNECTOR] = Connector(
            functools.partial(
                wait_for_database,
                database,
                settings.db_connect_timeout_s,
                began_at=began_at,
                session=session,
            )
        )
        connection_class = app.get(CONNECTION_CLASS, asyncpg.Connection)
        app[POOL] = await _open_pool(settings, app[CONNECTOR], connection_class)
        app[CONNECTOR].attempt = functools.partial(connect, database, session=session)
    yield
    try:
        async with asyncio.timeout(settings.db_close_timeout_s):
            await app[POOL].close()
    except TimeoutError:
        app[POOL].terminate()
    app[CONNECTOR].drop()


async def _open_pool(
    settings: Settings, connector: Connector, connection_class: type[Any]
) -> "asyncpg.Pool[asyncpg.Record]":
    return await asyncpg.create_pool(
        connect=connector.connect,
        # A fixed size, so that no request has to open a connection unless one was lost.
        min_size=settings.db_pool_size,
        max_size=settings.db_pool_size,
        connection_class=connection_class,
        # Longer than statement_timeout, so that PostgreSQL cancels first if it is reachable.
        command_timeout=settings.db_command_timeout_s + 0.5,
        init=functools.partial(_prepare_connection, slow_query_ms=settings.slow_query_ms),
        reset=_skip_reset,
    )


def _session_settings(settings: Settings) -> dict[str, str]:
    return {
        "statement_timeout": str(round(settings.db_command_timeout_s * 1000)),
        "lock_timeout": str(round(settings.db_lock_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": "5000",
        "jit": "off",
    }


async def _prepare_connection(conn: Connection, *, slow_query_ms: float) -> None:
    """Set up a new connection once; releasing it resets nothing."""
    await _set_codecs(conn)
    if slow_query_ms:
        conn.add_query_logger(functools.partial(_log_if_slow, slow_query_ms / 1000))


async def _set_codecs(conn: Connection) -> None:
    """Decode jsonb into Python values, json into fragments for ``encode``, and timestamptz.

    A json fragment is copied into the response without being parsed. asyncpg's own timestamptz
    codec fails on year 1 and returns infinity without a time zone. On the wire, a timestamptz is
    microseconds since 2000 (PostgreSQL manual, 8.5).
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
        # infinity, -infinity, or beyond the range of Python's datetime.
        return _LAST if microseconds[0] > 0 else _FIRST


async def _skip_reset(conn: Connection) -> None:
    """Reset nothing: no query changes session state beyond its transaction.

    asyncpg has already rolled back and removed listeners. Its default reset query, which unlocks
    advisory locks and resets settings, would cost an extra round trip per use.
    ``tests/db/test_database.py`` runs every flow and checks that no session state is left.
    """


def _log_if_slow(slow_s: float, query: LoggedQuery) -> None:
    """Log a slow statement with its placeholders, never with its parameters.

    asyncpg calls this in the statement's context, so that the line carries its request's id.
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
