"""Connections: their type, the app keys of the pool, and the reasons why one fails."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import asyncpg
from aiohttp import web
from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
# Longer statements are truncated in logs.
STATEMENT_MAX_CHARS = 2_000

# Name of the current query in metrics and logs, such as ``sessions.find_signed_in``.
PURPOSE: ContextVar[str] = ContextVar("purpose", default="")

# The connection was lost during a statement, or could not be opened. A statement that starts while
# its connection is being closed raises InternalClientError.
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


class Failure(NamedTuple):
    """Why a connection failed: a key for the cause, a message, and whether retries are useless."""

    cause: str
    reason: str
    hopeless: bool


# The first match counts, so subclasses come before their base classes.
_FAILURES: tuple[tuple[type[Exception], Failure], ...] = (
    (
        asyncpg.InvalidPasswordError,
        Failure("password", "the server rejected the user or password", hopeless=True),
    ),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        Failure("unauthorized", "the server rejected the user or password", hopeless=True),
    ),
    (
        asyncpg.InvalidCatalogNameError,
        Failure("no database", "the database does not exist", hopeless=True),
    ),
    (
        asyncpg.OperatorInterventionError,
        Failure("starting", "the server is starting up or shutting down", hopeless=False),
    ),
    (
        asyncpg.TooManyConnectionsError,
        Failure("too many connections", "the server has no connections left", hopeless=False),
    ),
    (
        ssl.SSLCertVerificationError,
        Failure("certificate", "the server's TLS certificate is not trusted", hopeless=True),
    ),
    (ssl.SSLError, Failure("handshake", "the TLS handshake failed", hopeless=True)),
    (socket.gaierror, Failure("host name", "the host name cannot be resolved", hopeless=False)),
    (
        asyncpg.ConnectionDoesNotExistError,
        Failure("closed", "the server closed the connection", hopeless=False),
    ),
    (asyncpg.ReadOnlySQLTransactionError, Failure("read-only", "it is read-only", hopeless=False)),
    (ConnectionRefusedError, Failure("refused", "connection refused", hopeless=False)),
    (TimeoutError, Failure("timeout", "no response", hopeless=False)),
    (
        FileNotFoundError,
        Failure(
            "file",
            "a file is missing: a certificate, a key, or the server's socket",
            hopeless=False,
        ),
    ),
    (
        asyncpg.TargetServerAttributeNotMatched,
        Failure("target", "no server matches target_session_attrs", hopeless=False),
    ),
    (
        asyncpg.ClientConfigurationError,
        Failure("options", "the connection options conflict", hopeless=True),
    ),
)


def explain(error: Exception) -> Failure:
    """Return why a connection failed."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    if "rejected SSL upgrade" in str(error):
        reason = "the server does not offer TLS, which sslmode requires"
        return Failure("no TLS", reason, hopeless=True)
    if isinstance(error, asyncpg.PostgresError):
        # PgBouncer reports with class 08 that it has no server, or no room.
        passing = isinstance(error, (*LOST, asyncpg.InsufficientResourcesError))
        return Failure("other", f"the server reported: {error.message}", hopeless=not passing)
    return Failure("other", f"connection failed ({type(error).__name__})", hopeless=False)


# Called after each use of a connection: the query's name, seconds waited, seconds held.
DatabaseTimer: TypeAlias = Callable[[str, float, float], None]


@dataclass(slots=True)
class Waiting:
    """The number of callers waiting for a pool connection, which asyncpg does not expose."""

    count: int = 0


POOL: web.AppKey["asyncpg.Pool[asyncpg.Record]"] = web.AppKey("pool")
DATABASE_TIMERS: web.AppKey[list[DatabaseTimer]] = web.AppKey("database_timers")
# Connection class of the pool, if not asyncpg's own.
CONNECTION_CLASS: web.AppKey[type[Any]] = web.AppKey("connection_class")
POOL_WAITING = web.AppKey("pool_waiting", Waiting)
# Limits the number of concurrent write transactions.
WRITES = web.AppKey("writes", asyncio.Semaphore)
