"""The access log: one line for each request, and what it spent on the database."""

import re
import time

import uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler

from service.addresses import client_address
from service.database import DATABASE_TIME, DatabaseTime
from service.keys import HEALTH, PROBLEM_CODE, REQUEST_ID, USER
from service.logs import LOG_CONTEXT, log

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Methods are the client's words too.
METHOD_MAX_CHARS = 20
# Probes come every few seconds, and a good one says nothing.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/health/startup"})


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, answer it back, and log the request once it is answered.

    The id is the client's ``X-Request-ID`` where that is sane, so that a call can be followed
    through several services, and a new one otherwise.
    """
    started = time.perf_counter()
    request_id = request.headers.get("X-Request-ID")
    if request_id is None or not _SANE_REQUEST_ID.fullmatch(request_id):
        request_id = uuid_utils.uuid7().hex
    request[REQUEST_ID] = request_id
    # Each request is handled in a task of its own: nothing to take back.
    LOG_CONTEXT.set({"request_id": request_id})
    database = DatabaseTime()
    DATABASE_TIME.set(database)
    try:
        response = await handler(request)
    except BaseException as error:
        # Cancelled by a stop that took too long; or a mistake in what renders mistakes.
        _log_request(request, 500 if isinstance(error, Exception) else None, started, database)
        raise
    response.headers["X-Request-ID"] = request_id
    # Otherwise aiohttp names itself, Python and their versions.
    response.headers["Server"] = "shinkei"
    if request.app[HEALTH].draining:
        # Keep-alive clients move to another replica now rather than meet a closed socket.
        response.force_close()
    _log_request(request, response.status, started, database)
    return response


def _log_request(
    request: web.Request, status: int | None, started: float, database: DatabaseTime
) -> None:
    route = route_template(request)
    if status is None or status >= 500:
        write = log.warning
    elif route in PROBES:
        write = log.debug
    else:
        write = log.info
    rare: dict[str, object] = {}
    if (status is None or status >= 400) and PROBLEM_CODE in request:
        rare["code"] = request[PROBLEM_CODE]
    transport = request.transport
    if transport is None or transport.is_closing():
        # The request was carried out all the same, and the status is what became of it.
        rare["client_gone"] = True
    user = request.get(USER)
    write(
        "request",
        method=request.method[:METHOD_MAX_CHARS],
        route=route,
        status=status,
        duration_ms=round((time.perf_counter() - started) * 1000, 2),
        database_ms=round(database.spent_s * 1000, 2),
        database_calls=database.calls,
        user_id=user["id"] if user else None,
        client=client_address(request),
        **rare,
    )


def route_template(request: web.Request) -> str | None:
    """``/api/v1/users/{user_id}``, never the path as it was sent; None where there is no route."""
    resource = request.match_info.route.resource
    return resource.canonical.rstrip("/") if resource else None
