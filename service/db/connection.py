"""Connections: their type, the keys of the pool, and why a connection fails."""

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

from service.db.deadlines import Deadlines

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
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


class Failure(NamedTuple):
    """Why a connection failed: a name for the cause, the reason in words, whether to give up."""

    cause: str
    reason: str
    hopeless: bool


# The first that fits: what is more specific comes first.
_FAILURES: tuple[tuple[type[Exception], Failure], ...] = (
    (
        asyncpg.InvalidPasswordError,
        Failure("password", "user or password refused", hopeless=True),
    ),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        Failure("not let in", "user or password refused", hopeless=True),
    ),
    (
        asyncpg.InvalidCatalogNameError,
        Failure("no database", "there is no such database", hopeless=True),
    ),
    (
        asyncpg.CannotConnectNowError,
        Failure("starting", "the server is starting up or shutting down", hopeless=False),
    ),
    (
        asyncpg.TooManyConnectionsError,
        Failure("full", "the server has no connection left", hopeless=False),
    ),
    (
        ssl.SSLCertVerificationError,
        Failure("certificate", "the server's TLS certificate is not trusted", hopeless=True),
    ),
    (ssl.SSLError, Failure("handshake", "the TLS handshake failed", hopeless=True)),
    (socket.gaierror, Failure("host name", "the host name cannot be resolved", hopeless=False)),
    (ConnectionRefusedError, Failure("refused", "connection refused", hopeless=False)),
    (TimeoutError, Failure("silence", "no answer", hopeless=False)),
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
        Failure("options", "the connection options contradict each other", hopeless=True),
    ),
)


def explain(error: Exception) -> Failure:
    """Why a connection failed."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    if "rejected SSL upgrade" in str(error):
        reason = "the server does not offer TLS, which sslmode requires"
        return Failure("no TLS", reason, hopeless=True)
    if isinstance(error, asyncpg.PostgresError):
        return Failure("other", f"the server answered: {error.message}", hopeless=True)
    return Failure("other", f"connection failed ({type(error).__name__})", hopeless=False)


# Called after each use of a connection: what for, seconds waited for it, seconds it was held.
DatabaseTimer: TypeAlias = Callable[[str, float, float], None]


@dataclass(slots=True)
class Waiting:
    """How many wait for a connection of the pool now; asyncpg does not say."""

    count: int = 0


POOL: web.AppKey["asyncpg.Pool[asyncpg.Record]"] = web.AppKey("pool")
DATABASE_TIMERS: web.AppKey[list[DatabaseTimer]] = web.AppKey("database_timers")
# What the pool's connections are made of, where that is not asyncpg's own class.
CONNECTION_CLASS: web.AppKey[type[Any]] = web.AppKey("connection_class")
# How long a connection of the pool may be waited for.
ACQUIRING: web.AppKey["Deadlines"] = web.AppKey("acquiring")
POOL_WAITING = web.AppKey("pool_waiting", Waiting)
# How many transactions may be under way.
WRITES = web.AppKey("writes", asyncio.Semaphore)
