"""CORS preflight requests."""

import logging

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.http.media_types import accept_patch
from service.http.problems import ORIGIN_NOT_ALLOWED, Problem
from service.settings import Settings

log = logging.getLogger(__name__)

# How long a browser may cache a preflight response; 2 hours is Chromium's maximum. Removing an
# origin from the list still takes effect at once, because actual responses no longer allow it.
PREFLIGHT_TTL_S = 7200
# The origin is client input, so log no more of it.
ORIGIN_MAX_CHARS = 200
# Those of the API, and those that tracing libraries add to every request of a page.
_ALLOWED_HEADERS = frozenset(
    {
        *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"),
        *("baggage", "sentry-trace", "traceparent", "tracestate", "X-Request-ID"),
    }
)


def preflights(settings: Settings) -> Middleware:
    """Create a middleware that responds to CORS preflights (Fetch Standard §3.2).

    A preflight for an existing path gets 204 with the methods it supports. If its origin is not
    listed, it is logged, and gets 403 without CORS headers, as the standard suggests.
    """

    allowed_headers = ", ".join(sorted(_ALLOWED_HEADERS | settings.cors_headers))

    @web.middleware
    async def respond(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = request.match_info.http_exception
        if (
            request.method != hdrs.METH_OPTIONS
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers
            or hdrs.ORIGIN not in request.headers
            or not isinstance(refused, web.HTTPMethodNotAllowed)
        ):
            return await handler(request)
        origin = request.headers[hdrs.ORIGIN]
        if origin not in settings.cors_origins:
            log.info("preflight refused", extra={"origin": origin[:ORIGIN_MAX_CHARS]})
            raise Problem(ORIGIN_NOT_ALLOWED)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(refused.allowed_methods)),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: allowed_headers,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_TTL_S),
                **accept_patch(refused.allowed_methods),
            },
        )

    return respond
