"""CORS preflight requests."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.settings import Settings

# How long a browser may cache a preflight response; 2 hours is Chromium's maximum. Removing an
# origin from the list still takes effect at once, because actual responses no longer allow it.
PREFLIGHT_TTL_S = 7200
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, traceparent,"
    " tracestate, X-Request-ID"
)


def preflights(settings: Settings) -> Middleware:
    """Create a middleware that responds to CORS preflights (Fetch Standard §3.2).

    A preflight for an existing path gets 204 with the methods it supports. If its origin is not
    listed, it gets 405 like any other OPTIONS request.
    """

    @web.middleware
    async def respond(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = request.match_info.http_exception
        if (
            request.method != hdrs.METH_OPTIONS
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers
            or request.headers.get(hdrs.ORIGIN) not in settings.cors_origins
            or not isinstance(refused, web.HTTPMethodNotAllowed)
        ):
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(refused.allowed_methods)),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_TTL_S),
            },
        )

    return respond
