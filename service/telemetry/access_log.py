"""The access log: one line for each request, and what it spent on the database."""

import functools
import logging
import time
from typing import Any

from aiohttp import web

from service.context import LOG_CONTEXT, USER, RequestContext

log = logging.getLogger(__name__)

# Methods are the client's words too.
METHOD_MAX_CHARS = 20
# Probes come every few seconds, and a good one says nothing.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/health/startup"})

# For each level the attributes of its records, before time and fields.
_RECORDS: dict[int, dict[str, Any]] = {
    level: {**vars(logging.LogRecord(log.name, level, __file__, 0, "request", (), None))}
    for level in (logging.DEBUG, logging.INFO, logging.WARNING)
}


def log_request(
    request: web.Request,
    context: RequestContext,
    client: str | None,
    status: int | None,
    started: float,
) -> None:
    """Log what was answered, or nothing (None), to a request that began at ``started``.

    That is a time of ``time.perf_counter``.
    """
    route = route_template(request)
    if status is None or status >= 500:
        level = logging.WARNING
    elif route in PROBES:
        level = logging.DEBUG
    else:
        level = logging.INFO
    if not log.isEnabledFor(level):
        return
    try:
        user_id = request[USER]["id"]
    except KeyError:
        user_id = None
    now, first = time.time(), _RECORDS[level]
    values = {
        **first,
        "created": now,
        "msecs": float(int(now % 1 * 1000)),
        "relativeCreated": first["relativeCreated"] + (now - first["created"]) * 1000,
        **LOG_CONTEXT.get(),
        "method": request.method[:METHOD_MAX_CHARS],
        "route": route,
        "status": status,
        "duration_ms": _ms(time.perf_counter() - started),
        "database_ms": _ms(context.database_s),
        "database_calls": context.database_calls,
        "user_id": user_id,
        "client": client,
    }
    if context.problem_code is not None:
        values["code"] = context.problem_code
    transport = request.transport
    if transport is None or transport.is_closing():
        # The request was carried out all the same, and the status is what became of it.
        values["client_gone"] = True
    # The record that log.log would make, in a fifth of the time: see docs/performance.md.
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = values
    log.handle(record)


def _ms(seconds: float) -> float:
    """Milliseconds with two decimals; quicker than ``round``."""
    return int(seconds * 100_000) / 100


def route_template(request: web.Request) -> str | None:
    """``/api/v1/users/{user_id}``, never the path as it was sent; None where there is no route."""
    resource = request.match_info.route.resource
    return _template(resource) if resource else None


@functools.lru_cache(maxsize=1024)
def _template(resource: web.AbstractResource) -> str:
    return resource.canonical.rstrip("/")
