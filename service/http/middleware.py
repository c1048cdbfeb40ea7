"""The middleware that handles every request, from its id to its access log line."""

import asyncio
import re
import time

import uuid_utils
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.context import LIFECYCLE, LOG_CONTEXT, REQUEST_CONTEXT, SETTINGS, RequestContext
from service.http.client_ip import shown_client_ip
from service.http.connections import ClientConnection
from service.http.error_responses import error_response
from service.http.request_heads import check_head
from service.telemetry.access_log import log_request

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_middleware(app: web.Application) -> Middleware:
    """Assign a request id, enforce the deadlines, turn errors into problems, and log the request.

    The body is read before the handler runs and has its own deadline (408). So no handler holds a
    connection or a lock while a slow client sends. The handler has a second deadline (503), which
    counts from the arrival of the complete request.
    """
    settings, lifecycle = app[SETTINGS], app[LIFECYCLE]

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        connection = request.protocol
        assert isinstance(connection, ClientConnection)  # noqa: S101
        context = RequestContext(_request_id(request), request)
        # Each request has its own task, so these need no reset.
        REQUEST_CONTEXT.set(context)
        LOG_CONTEXT.set({**LOG_CONTEXT.get(), "request_id": context.request_id})
        try:
            check_head(request)
            if request.can_read_body:
                await connection.read_body(request)
            due = connection.started() + settings.request_timeout_s
            async with asyncio.timeout_at(due) as context.deadline:
                if connection.must_wait:
                    await connection.turn(request)
                response = _allow() if request.raw_path == "*" else await handler(request)
        except Exception as error:
            response = error_response(error)
        except BaseException:
            # Cancelled because shutdown took too long.
            client, gone = shown_client_ip(request), connection.client_gone
            log_request(request, context, client, None, started, client_gone=gone)
            raise
        response.headers.update(context.headers)
        if lifecycle.draining or connection.spare:
            # Keep-alive clients move to another replica instead of hitting a closed socket later.
            response.force_close()
        client, gone = shown_client_ip(request), connection.client_gone
        log_request(request, context, client, response.status, started, client_gone=gone)
        return response

    return handle


def _allow() -> web.Response:
    """Respond to OPTIONS *, which asks for the methods of the whole server (RFC 9110 §9.3.7)."""
    return web.Response(headers={hdrs.ALLOW: "GET, HEAD, POST, PUT, PATCH, DELETE"})


def _request_id(request: web.Request) -> str:
    """Return the client's ``X-Request-ID`` if it is well-formed, or else a new id.

    This lets callers trace a request across several services.
    """
    given = request.headers.get("X-Request-ID")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return uuid_utils.uuid7().hex
