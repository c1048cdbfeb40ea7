"""The pool: opened when the application starts, closed when it stops."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import orjson
from aiohttp import web
from asyncpg.connection import LoggedQuery

from service.context import SETTINGS, time_to_close_s
from service.db import replica
from service.db.connecting import CONNECTOR, Connector, connect, wait_for_database
from service.db.connection import (
    CONNECTION_CLASS,
    DATABASE_TIMERS,
    POOL,
    POOL_WAITING,
    WRITES,
    Connection,
    Waiting,
)
from service.db.failover import FAILOVER, Failover, stop_looking
from service.db.replica import Replica, replica_context
from service.db.slow_queries import slow_query_logger
from service.db.startup import prepare, start_errors
from service.json_codec import encode
from service.settings import Settings

LogIfSlow: TypeAlias = Callable[[LoggedQuery], None] | None

# Somewhat longer than a request may take by default.
IDLE_IN_TRANSACTION_S = 5
# How long a statement's client waits for PostgreSQL to cancel it, after statement_timeout.
CANCEL_WITHIN_S = 0.5

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
    async with slow_query_logger(settings.slow_query_ms) as log_if_slow:
        with start_errors(settings) as database:
            session = _session_settings(settings, settings.db_command_timeout_s)
            began_at = asyncio.get_running_loop().time()
            # While the pool opens, each attempt is repeated like that of the first connection.
            app[CONNECTOR] = Connector(
                functools.partial(
                    wait_for_database,
                    database,
                    settings.db_connect_timeout_s,
                    began_at=began_at,
                    session=session,
                )
            )
            app[POOL] = await _open_pool(
                app,
                app[CONNECTOR],
                log_if_slow,
                # A fixed size, so that no request has to open a connection unless one was lost.
                min_size=settings.db_pool_size,
                timeout_s=settings.db_command_timeout_s,
            )
            app[CONNECTOR].attempt = functools.partial(connect, database, session=session)
        async with replica_context(app, await _open_replica(app, log_if_slow)):
            yield
        stop_looking(app)
        try:
            async with asyncio.timeout(time_to_close_s(app)):
                await app[POOL].close()
        except TimeoutError:
            app[POOL].terminate()
        await app[CONNECTOR].close()


async def _open_replica(app: web.Application, log_if_slow: LogIfSlow) -> Replica | None:
    """Create the replica's pool, which opens connections when they are needed."""
    settings = app[SETTINGS]
    database = settings.replica_database
    if database is None:
        return None
    timeout_s = min(settings.db_command_timeout_s, replica.STATEMENT_S)
    session = _session_settings(settings, timeout_s)
    connector = Connector(functools.partial(connect, database, session=session))
    pool = await _open_pool(app, connector, log_if_slow, min_size=0, timeout_s=timeout_s)
    return Replica(pool, connector, database.pgbouncer)


async def _open_pool(
    app: web.Application,
    connector: Connector,
    log_if_slow: LogIfSlow,
    *,
    min_size: int,
    timeout_s: float,
) -> "asyncpg.Pool[asyncpg.Record]":
    connection_class: type[Any] = app.get(CONNECTION_CLASS, asyncpg.Connection)
    return await asyncpg.create_pool(
        connect=connector.connect,
        min_size=min_size,
        max_size=app[SETTINGS].db_pool_size,
        connection_class=connection_class,
        command_timeout=timeout_s + CANCEL_WITHIN_S,
        init=functools.partial(_prepare_connection, log_if_slow=log_if_slow),
        reset=_skip_reset,
    )


def _session_settings(settings: Settings, timeout_s: float) -> dict[str, str]:
    return {
        "statement_timeout": str(round(timeout_s * 1000)),
        "lock_timeout": str(round(settings.db_lock_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_S * 1000),
        "jit": "off",
    }


async def _prepare_connection(conn: Connection, *, log_if_slow: LogIfSlow) -> None:
    """Set up a new connection once; releasing it resets nothing."""
    await _set_codecs(conn)
    if log_if_slow is not None:
        conn.add_query_logger(log_if_slow)


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
