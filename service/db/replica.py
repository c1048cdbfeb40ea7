"""The replica: a standby that serves lists and exports once it has all that was written before.

Before a request's first read there, the primary is asked how far its WAL goes, and the standby must
have replayed as much. So a client sees what it has written, whichever process it was sent to, and
each page is at least as new as the one before. If the standby cannot be used, the primary is.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

import asyncpg
from aiohttp import web

from service.context import REQUEST_CONTEXT, Position, RequestContext, time_to_close_s
from service.db.connecting import Connector
from service.db.connection import LOST, Connection, explain
from service.db.transactions import RETRYABLE, acquire, read, snapshot
from service.exceptions import DatabaseUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# How long a read waits for the standby to replay.
CATCH_UP_S = 0.1
# How long it may take to say whether it has. Then it counts as silent.
SILENT_S = 0.5
# How long the standby may take for a statement. Then the primary has time to run it again.
STATEMENT_S = 1
# The part of the time that a request has left which a read there may use.
SHARE = 1 / 4
# Pause between attempts to use the standby again.
LOOK_EVERY_S = 1
# Minimum time between warnings, as a standby may fail and recover every few seconds.
WARN_EVERY_S = 60
_POLL_S = 0.002
# The standby is well, and only this read failed: it was in the way of replay, took too long, or
# found all connections in use.
_OF_THE_READ = (*RETRYABLE, asyncpg.QueryCanceledError, asyncpg.DataError, TimeoutError)

# A commit is acknowledged once its WAL is flushed, or with synchronous_commit off once inserted.
# WAL of transactions that are in progress may be inserted long before it is flushed and sent.
_FIND_POSITION = """
    select ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int as timeline, lsn::text
    from (
        select case current_setting('synchronous_commit')
                   when 'off' then pg_current_wal_insert_lsn() else pg_current_wal_flush_lsn()
               end as lsn
        where not pg_is_in_recovery()
    ) as written
"""
_FIND_PROGRESS = """
    select pg_is_in_recovery() as standby, pg_postmaster_start_time() as server,
           coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false) as caught_up
"""
_FIND_SYSTEM = "select system_identifier from pg_control_system()"
# Of these two, the first is as of the last restartpoint, and the second may be newer.
_FIND_HISTORY = """
    select (select system_identifier from pg_control_system()) as system,
           greatest(
               (select timeline_id from pg_control_checkpoint()),
               (select min_recovery_end_timeline from pg_control_recovery())
           ) as timeline,
           pg_postmaster_start_time() as server
"""
_FIND_SERVER = "select pg_postmaster_start_time()"


class UnusableReplica(Exception):
    """The replica cannot be used now, for the reason in the message."""


@dataclass(slots=True)
class Replica:
    """The replica's pool, and whether it is in use.

    ``system`` identifies the primary's cluster. ``followed`` has the servers, by their start time,
    that are known to follow a timeline of it. Reads are counted where they ran.
    """

    pool: "asyncpg.Pool[asyncpg.Record]"
    connector: Connector
    pgbouncer: bool
    in_use: bool = False
    search: asyncio.Task[None] | None = None
    system: int | None = None
    followed: set[tuple[datetime, int]] = field(default_factory=set)
    warned: bool = False
    quiet_until: float = 0
    reads_there: int = 0
    reads_on_primary: int = 0


# None unless DATABASE_REPLICA_URL is set.
REPLICA: web.AppKey[Replica | None] = web.AppKey("replica")


async def read_replica(
    app: web.Application,
    query: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run a read-only query like ``read``, on the replica if that has what was written before.

    After any error there, ``query`` runs again on the primary, whose result or error counts. For
    lists and exports, never for what decides about access. Raises DatabaseUnavailable.
    """
    replica = app[REPLICA]
    if replica is None:
        return await read(app, query, *args, **kwargs)
    context = REQUEST_CONTEXT.get()
    position = await _find_position_for(context, app, replica)
    if position is not None:
        try:
            async with (
                asyncio.timeout(_time_left_s(context)),
                acquire(app, query, pool=replica.pool) as acquired,
                _caught_up(acquired, position, replica) as conn,
            ):
                result = await query(conn, *args, **kwargs)
        except Exception as error:
            context.leaves_replica = True
            await _leave_after(app, replica, error)
        else:
            replica.reads_there += 1
            return result
    replica.reads_on_primary += 1
    return await read(app, query, *args, **kwargs)


async def _find_position_for(
    context: RequestContext, app: web.Application, replica: Replica
) -> Position | None:
    """Return what the standby must have replayed, or None if the request must use the primary."""
    if not replica.in_use or context.leaves_replica:
        return None
    if context.position is None:
        context.position = await read(app, find_position)
    return context.position


def _time_left_s(context: RequestContext) -> float | None:
    """Return how long a read may take there, or None if the request has no deadline."""
    due = context.deadline and context.deadline.when()
    return max(0, due - asyncio.get_running_loop().time()) * SHARE if due else None


async def find_position(conn: Connection) -> Position | None:
    """Return how far the WAL goes, or None if the server is not a primary."""
    row = await conn.fetchrow(_FIND_POSITION)
    return Position(*row) if row else None


async def find_system(conn: Connection) -> int:
    """Return the identifier that a primary and its standbys share."""
    system: int = await conn.fetchval(_FIND_SYSTEM)
    return system


async def catch_up(conn: Connection, position: Position) -> datetime:
    """Wait until the standby has replayed up to the position. Return the server's start time.

    Raises UnusableReplica if that takes too long, or if the server is not a standby.
    """
    loop = asyncio.get_running_loop()
    due, pause_s = loop.time() + CATCH_UP_S, _POLL_S
    while True:
        row = await conn.fetchrow(_FIND_PROGRESS, position.lsn)
        assert row is not None  # noqa: S101
        if not row["standby"]:
            raise UnusableReplica("it is not a standby")
        if row["caught_up"]:
            server: datetime = row["server"]
            return server
        if loop.time() >= due:
            raise UnusableReplica("it is behind the primary")
        await asyncio.sleep(pause_s)
        pause_s *= 2


async def require_follower(conn: Connection, system: int, position: Position) -> datetime:
    """Return the server's start time. Raises UnusableReplica if its WAL is not the primary's.

    Positions in WAL can only be compared on one timeline of one cluster.
    """
    row = await conn.fetchrow(_FIND_HISTORY)
    assert row is not None  # noqa: S101
    if (row["system"], row["timeline"]) != (system, position.timeline):
        raise UnusableReplica("it does not follow this primary")
    server: datetime = row["server"]
    return server


@contextlib.asynccontextmanager
async def _caught_up(
    conn: Connection, position: Position, replica: Replica
) -> AsyncIterator[Connection]:
    """Yield the connection once its server has all up to the position. Raises UnusableReplica."""
    try:
        async with asyncio.timeout(SILENT_S):
            server = await catch_up(conn, position)
    except TimeoutError:
        raise UnusableReplica("no response") from None
    if (server, position.timeline) not in replica.followed:
        assert replica.system is not None  # noqa: S101
        follower = await require_follower(conn, replica.system, position)
        if follower != server:
            raise UnusableReplica("PgBouncer leads to several servers")
        replica.followed.add((server, position.timeline))
    if not replica.pgbouncer:
        yield conn
        return
    # PgBouncer may lead each transaction to another server.
    async with snapshot(conn):
        if await conn.fetchval(_FIND_SERVER) != server:
            raise UnusableReplica("PgBouncer leads to several servers")
        yield conn


async def _leave_after(app: web.Application, replica: Replica, error: Exception) -> None:
    """Leave the replica after an error that is not the read's, and look for its return."""
    of_server = isinstance(
        error, (UnusableReplica, DatabaseUnavailable, *LOST, asyncpg.PostgresError)
    )
    if not replica.in_use or not of_server or isinstance(error, _OF_THE_READ):
        return
    replica.in_use = False
    replica.connector.drop()
    await replica.pool.expire_connections()
    _warn(replica, error)
    _look_for_return(app, replica)


def _look_for_return(app: web.Application, replica: Replica) -> None:
    # An empty context, because the search outlives the request.
    replica.search = asyncio.create_task(_look(app, replica), name="replica", context=Context())


async def _look(app: web.Application, replica: Replica) -> None:
    """Look each second whether the replica can be used, until it can."""
    REQUEST_CONTEXT.set(RequestContext(""))
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await _check_replica(app, replica)
        except Exception as error:
            _warn(replica, error)
        else:
            break
    replica.in_use = True
    if replica.warned:
        replica.warned = False
        log.info("replica used again")


async def _check_replica(app: web.Application, replica: Replica) -> None:
    """Raise an error if the replica cannot be used."""
    replica.system = await read(app, find_system)
    replica.followed.clear()
    position = await read(app, find_position)
    if position is None:
        raise UnusableReplica("the primary is in recovery")
    async with (
        asyncio.timeout(STATEMENT_S),
        acquire(app, _check_replica, pool=replica.pool) as conn,
        _caught_up(conn, position, replica),
    ):
        pass


def _warn(replica: Replica, error: Exception) -> None:
    """Warn once of each time that the replica is not used, and at most once a minute."""
    now = asyncio.get_running_loop().time()
    if replica.warned or now < replica.quiet_until:
        return
    replica.warned, replica.quiet_until = True, now + WARN_EVERY_S
    if isinstance(error, UnusableReplica):
        reason = str(error)
    else:
        cause = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
        reason = explain(cause if isinstance(cause, Exception) else error).reason
    log.warning("replica not used", extra={"reason": reason})


@contextlib.asynccontextmanager
async def replica_context(app: web.Application, replica: Replica | None) -> AsyncIterator[None]:
    """Use the replica while the application runs, from the first time that it can be used."""
    app[REPLICA] = replica
    if replica is None:
        yield
        return
    _look_for_return(app, replica)
    try:
        yield
    finally:
        if replica.search is not None:
            replica.search.cancel()
        try:
            async with asyncio.timeout(time_to_close_s(app)):
                await replica.pool.close()
        except TimeoutError:
            replica.pool.terminate()
        await replica.connector.close()
