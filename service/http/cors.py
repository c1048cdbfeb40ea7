"""Answers the questions that browsers ask before a request (CORS preflights)."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from service.settings import Settings

# How long a browser may go by a preflight's answer; no browser takes more than Chromium's 2 hours,
# and an origin that is taken off the list is refused at once all the same, by the answers proper.
PREFLIGHT_TTL_S = 7200
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, traceparent,"
    " tracestate, X-Request-ID"
)


def preflights(settings: Settings) -> Middleware:
    """A middleware that answers what browsers ask before a page's request (Fetch Standard §3.2).

    For a path that there is, 204 with the methods that it takes; what an origin that is not listed
    asks is a 405, as any OPTIONS.
    """

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
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

    return answer
