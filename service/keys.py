"""The typed keys under which the application and its requests carry their state."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from aiohttp import web

from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from service.auth.passwords import Hasher
    from service.auth.signing_keys import KeyRing
    from service.coalescing import Coalesced
    from service.deadlines import Deadlines
    from service.headers import AnswerHeaders
    from service.health import Health
    from service.mail.rendering import Templates
    from service.metrics import Metrics
    from service.throttle import Count

SETTINGS = web.AppKey("settings", Settings)
# Called after each use of a connection: what for, seconds waited for it, seconds it was held.
DatabaseTimer: TypeAlias = Callable[[str, float, float], None]


@dataclass(slots=True)
class Waiting:
    """How many wait for a connection of the pool now; asyncpg does not say."""

    count: int = 0


POOL: web.AppKey["asyncpg.Pool[asyncpg.Record]"] = web.AppKey("pool")
DATABASE_TIMERS: web.AppKey[list[DatabaseTimer]] = web.AppKey("database_timers")
SIGNED_IN: web.AppKey["Coalesced[uuid.UUID, asyncpg.Record]"] = web.AppKey("signed_in")
# What the pool's connections are made of, where that is not asyncpg's own class.
CONNECTION_CLASS: web.AppKey[type[Any]] = web.AppKey("connection_class")
# Only where requests are traced.
TRACER: web.AppKey["Tracer"] = web.AppKey("tracer")
# How long a connection of the pool may be waited for.
ACQUIRING: web.AppKey["Deadlines"] = web.AppKey("acquiring")
POOL_WAITING = web.AppKey("pool_waiting", Waiting)
# How many transactions may be under way.
WRITES = web.AppKey("writes", asyncio.Semaphore)
HASHER: web.AppKey["Hasher"] = web.AppKey("hasher")
KEY_RING: web.AppKey["KeyRing"] = web.AppKey("key_ring")
ANSWER_HEADERS: web.AppKey["AnswerHeaders"] = web.AppKey("answer_headers")
HEALTH: web.AppKey["Health"] = web.AppKey("health")
MAIL_TEMPLATES: web.AppKey["Templates"] = web.AppKey("mail_templates")
# Only where metrics are kept.
METRICS: web.AppKey["Metrics"] = web.AppKey("metrics")

# The signed-in user's row and its session's id: see sessions.queries.find_signed_in.
USER: web.RequestKey["asyncpg.Record"] = web.RequestKey("user")
# Set where the request has created an account, which it counts once that is committed.
REGISTERED = web.RequestKey("registered", bool)


@dataclass(slots=True)
class Exchange:
    """A request that is being handled, and its answer: what its headers and its log line say."""

    request_id: str
    # The code of the problem that is the answer, where it is one.
    problem_code: str | None = None
    throttle_counts: "Sequence[Count]" = ()
    # How often it used the database, and how long it waited for it in all.
    database_calls: int = 0
    database_s: float = 0.0

    def add_database_time(self, seconds: float) -> None:
        self.database_calls += 1
        self.database_s += seconds


# Of the request that the current task handles. A variable of the task, so that what has no request
# at hand can tell of it too, and at a fraction of what a request's own keys cost.
EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")

# In every log line of the task: the ids of its request and of the trace. The task that sends a mail
# has those of the request that asked for it.
LOG_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))
