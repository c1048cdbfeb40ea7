"""The access log: one line for each request, with the time it spent on the database."""

import functools
import logging
import time
from typing import Any

from aiohttp import web

from service.context import LOG_CONTEXT, RequestContext

log = logging.getLogger(__name__)

# A 5xx, but for requests that use a method or version of HTTP that does not exist here.
CLIENTS_MISTAKES = (501, 505)
# The method is client input too.
METHOD_MAX_CHARS = 20
# Probes arrive every few seconds, so successful ones are logged at debug level.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/health/startup"})

# Base attributes of a record for each level; time and fields are added per request.
_RECORDS: dict[int, dict[str, Any]] = {
    level: {**vars(logging.LogRecord(log.name, level, __file__, 0, "request", (), None))}
    for level in (logging.DEBUG, logging.INFO, logging.WARNING)
}


def is_failure(status: int) -> bool:
    """Return whether a response is a failure of the service."""
    return status >= 500 and status not in CLIENTS_MISTAKES


def log_request(
    request: web.Request,
    context: RequestContext,
    client: str | None,
    status: int | None,
    started: float,
    *,
    client_gone: bool,
) -> None:
    """Log a request and its response status, or None if there was no response.

    ``started`` is a ``time.perf_counter`` value.
    """
    route = route_template(request)
    if status is None or is_failure(status):
        level = logging.WARNING
    elif route in PROBES:
        level = logging.DEBUG
    else:
        level = logging.INFO
    if not log.isEnabledFor(level):
        return
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
        "user_id": context.user_id,
        "client": client,
    }
    if context.problem_code is not None:
        values["code"] = context.problem_code
    if client_gone:
        # The request was still carried out, so its status is logged.
        values["client_gone"] = True
    # The record that log.log would make, but faster: see docs/performance.md.
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = values
    log.handle(record)


def _ms(seconds: float) -> float:
    """Convert to milliseconds, truncated to two decimals; faster than ``round``."""
    return int(seconds * 100_000) / 100


def route_template(request: web.Request) -> str | None:
    """Return a template such as ``/api/v1/users/{user_id}``, or None if no route matches."""
    resource = request.match_info.route.resource
    return _template(resource) if resource else None


@functools.lru_cache(maxsize=1024)
def _template(resource: web.AbstractResource) -> str:
    return resource.canonical.rstrip("/") or "/"
