"""The middleware that every request goes through, from its id to its line in the log."""

import re
import time

import uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.context import LIFECYCLE, LOG_CONTEXT, REQUEST_CONTEXT, SETTINGS, RequestContext
from service.db.deadlines import Deadlines
from service.http.client_ip import shown_client_ip
from service.http.error_responses import error_response
from service.http.requests import read_in_time
from service.telemetry.access_log import log_request

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def answering(app: web.Application) -> Middleware:
    """Give the request its id, have it answered in time, whatever happens, and log it.

    The body is read before the handler runs, within a deadline of its own (408), so that none holds
    a connection or a lock while a slow client sends; then the answer has another (503). One
    middleware rather than three: each costs 2 µs.
    """
    settings, lifecycle = app[SETTINGS], app[LIFECYCLE]
    deadlines = Deadlines(settings.request_timeout_s)

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        context = RequestContext(_request_id(request))
        # Each request is handled in a task of its own: nothing to take back.
        REQUEST_CONTEXT.set(context)
        LOG_CONTEXT.set({**LOG_CONTEXT.get(), "request_id": context.request_id})
        try:
            if request.can_read_body:
                await read_in_time(request, settings.body_timeout_s)
            response = await deadlines.wait(handler(request))
        except Exception as error:
            response = error_response(error)
        except BaseException:
            # Cancelled by a stop that took too long.
            log_request(request, context, shown_client_ip(request), None, started)
            raise
        response.headers.update(context.headers)
        if lifecycle.draining:
            # Keep-alive clients move to another replica now rather than meet a closed socket.
            response.force_close()
        log_request(request, context, shown_client_ip(request), response.status, started)
        return response

    return answer


def _request_id(request: web.Request) -> str:
    """The client's ``X-Request-ID`` where that is sane, so that a call can be followed through
    several services, and a new one otherwise.
    """
    given = request.headers.get("X-Request-ID")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return uuid_utils.uuid7().hex
