"""Connections: their type, the keys of the pool, and why a connection fails."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

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
