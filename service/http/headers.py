"""The headers that every answer has, and those that let pages of other origins read it (CORS)."""

from collections.abc import Mapping

from aiohttp import hdrs, web
from multidict import CIMultiDict

from service.context import REQUEST_CONTEXT
from service.settings import Settings

HSTS_S = 365 * 24 * 3600
SERVER = "shinkei"

ON_EVERY_RESPONSE = {
    # What is not private says so itself.
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    # About loads without CORS, such as <img>: it does not stand in the way of CORS_ORIGINS.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_EXPOSED_HEADERS = (
    "ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, traceresponse, X-Request-ID"
)


class ResponseHeaders:
    """Adds to an answer the headers that it has not, of those that every answer has.

    HSTS goes out where PUBLIC_ORIGIN says that clients come by https, through a proxy: a browser
    heeds it on https alone, and one that heeded it by mistake would be kept out for a year. Not for
    subdomains, which may be somebody else's.

    Listed origins may read every answer, errors too, without ``Access-Control-Allow-Credentials``:
    there are no cookies, and a page sends its token itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._constant = CIMultiDict(ON_EVERY_RESPONSE)
        if settings.public_origin.startswith("https:"):
            self._constant["Strict-Transport-Security"] = f"max-age={HSTS_S}"
        self._origins = {origin: _allow(origin) for origin in settings.cors_origins}
        # The constant ones as they are sent.
        lines = {**self._constant, "Server": SERVER}
        self.text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def add(self, request: web.Request, response: web.StreamResponse) -> None:
        """What aiohttp calls before each answer that it writes itself."""
        headers = response.headers
        if context := REQUEST_CONTEXT.get(None):
            headers["X-Request-ID"] = context.request_id
        # In place of aiohttp, Python and their versions.
        headers["Server"] = SERVER
        headers.merge(self._constant)
        self.allow_origin(request, response)

    def differ(self, response: web.StreamResponse) -> bool:
        """Whether the answer has headers of its own in place of those in ``text``."""
        return any(map(response.headers.__contains__, self._constant))

    def allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let a page of a listed origin read the answer (CORS, Fetch Standard §3.2)."""
        if self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
            allowed = self._origins.get(request.headers.get(hdrs.ORIGIN, ""))
            if allowed is not None:
                response.headers.update(allowed)


def _allow(origin: str) -> Mapping[str, str]:
    return CIMultiDict(
        {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED_HEADERS,
        }
    )


RESPONSE_HEADERS: web.AppKey["ResponseHeaders"] = web.AppKey("answer_headers")
