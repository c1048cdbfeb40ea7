"""What the application, a request and its task carry."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import asyncpg
from aiohttp import web

from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SETTINGS = web.AppKey("settings", Settings)


@dataclass(slots=True)
class Lifecycle:
    """Whether the process is about to end.

    ``stopping``: the service ends, and is not ready. ``draining``: this process does, and its
    responses end their connections; if others take over, the service stays ready.
    """

    draining: bool = False
    stopping: bool = False


LIFECYCLE = web.AppKey("lifecycle", Lifecycle)
# Only where requests are traced.
TRACER: web.AppKey["Tracer"] = web.AppKey("tracer")

# The signed-in user's row and its session's id: see sessions.queries.find_signed_in.
USER: web.RequestKey["asyncpg.Record"] = web.RequestKey("user")


@dataclass(slots=True)
class RequestContext:
    """A request that is being handled: what its response's headers and its log line say."""

    request_id: str
    # The code of the problem that it ends with, if it ends with one.
    problem_code: str | None = None
    # Headers for the response, whatever the response is.
    headers: dict[str, str] = field(default_factory=dict)
    # How often the request used the database, and how long it waited for it in all.
    database_calls: int = 0
    database_s: float = 0.0

    def add_database_time(self, seconds: float) -> None:
        self.database_calls += 1
        self.database_s += seconds


# Of the request that the current task handles. A variable of the task, so that what has no request
# at hand can tell of it too, and at a fraction of what a request's own keys cost.
REQUEST_CONTEXT: ContextVar[RequestContext] = ContextVar("request_context")

# In every log line of the task: the ids of its request and of the trace. The task that sends a mail
# has those of the request that asked for it.
LOG_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))
