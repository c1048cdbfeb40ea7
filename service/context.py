"""Shared state of the application, of a request, and of its task."""

import asyncio
import math
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
from aiohttp import web

from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SETTINGS = web.AppKey("settings", Settings)


@dataclass(slots=True)
class Lifecycle:
    """Whether the process is shutting down.

    ``draining`` means that this process ends, and its responses close their connections. The
    service stays ready if other processes take over. ``stopping`` means that the whole service
    ends and is not ready. ``close_by`` is when everything must be closed, in the loop's time.
    """

    draining: bool = False
    stopping: bool = False
    close_by: float = math.inf


LIFECYCLE = web.AppKey("lifecycle", Lifecycle)


def time_to_close_s(app: web.Application) -> float:
    """Return how long tasks and connections may still take to end.

    They share ``db_close_timeout_s``, which begins with the first call. So waits for a database
    that does not respond never add up.
    """
    lifecycle, now = app[LIFECYCLE], asyncio.get_running_loop().time()
    lifecycle.close_by = min(lifecycle.close_by, now + app[SETTINGS].db_close_timeout_s)
    return max(0.0, lifecycle.close_by - now)


# Set only if tracing is on.
TRACER: web.AppKey["Tracer"] = web.AppKey("tracer")

# The signed-in user's row with the session id; see sessions.queries.find_signed_in.
USER: web.RequestKey["asyncpg.Record"] = web.RequestKey("user")


class Position(NamedTuple):
    """How far the primary's WAL goes: its timeline, and an LSN there."""

    timeline: int
    lsn: str


@dataclass(slots=True)
class RequestContext:
    """The current request's data for its response headers and its log line."""

    request_id: str
    # None outside of requests.
    request: web.Request | None = None
    # The account whose credential the request presented: a token, a password, or a mailed link.
    user_id: uuid.UUID | None = None
    # Code of the problem in the response, if it is one.
    problem_code: str | None = None
    # Headers to add to any response.
    headers: dict[str, str] = field(default_factory=dict)
    # Number of database uses, and the total time spent on them.
    database_calls: int = 0
    database_s: float = 0.0
    # What the replica must have replayed to serve this request, once that is known, and whether a
    # read there has failed. Then the others of the request use the primary.
    position: Position | None = None
    leaves_replica: bool = False
    # Ends the handler; a streamed response lifts it.
    deadline: asyncio.Timeout | None = None

    def add_database_time(self, seconds: float) -> None:
        self.database_calls += 1
        self.database_s += seconds


# A context variable, so that code without access to the request can use it. It is also faster than
# a request key.
REQUEST_CONTEXT: ContextVar[RequestContext] = ContextVar("request_context")

# Request and trace ids that every log line of the task includes. A task that sends a mail has the
# ids of the request that caused it.
LOG_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))
