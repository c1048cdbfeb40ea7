"""Headers of every response, and CORS headers for pages of other origins."""

from collections.abc import Mapping

from aiohttp import hdrs, web
from multidict import CIMultiDict

from service.context import REQUEST_CONTEXT
from service.settings import Settings

HSTS_S = 365 * 24 * 3600
SERVER = "shinkei"

ON_EVERY_RESPONSE = {
    # Public responses override this.
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    # Only affects loads without CORS, such as <img>, so it does not interfere with CORS_ORIGINS.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_EXPOSED_HEADERS = (
    "Content-Disposition, ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After,"
    " traceresponse, X-Request-ID"
)


class ResponseHeaders:
    """Adds the common headers to a response, except those that it already has.

    HSTS is sent only if PUBLIC_ORIGIN is https, which means that clients connect through a TLS
    proxy. It leaves out subdomains, which may belong to others.

    Listed origins may read every response, including errors. There are no cookies and pages send
    their own token, so ``Access-Control-Allow-Credentials`` is not needed.
    """

    def __init__(self, settings: Settings) -> None:
        self._constant = CIMultiDict(ON_EVERY_RESPONSE)
        if settings.public_origin.startswith("https:"):
            self._constant["Strict-Transport-Security"] = f"max-age={HSTS_S}"
        self._origins = {origin: _allow(origin) for origin in settings.cors_origins}
        # The constant headers as sent on the wire.
        lines = {**self._constant, "Server": SERVER}
        self.text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def add(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers to a response that aiohttp writes itself (``on_response_prepare``)."""
        headers = response.headers
        if context := REQUEST_CONTEXT.get(None):
            headers["X-Request-ID"] = context.request_id
        # By default, aiohttp sends its own and Python's version.
        headers["Server"] = SERVER
        headers.merge(self._constant)
        self.allow_origin(request, response)

    def differ(self, response: web.StreamResponse) -> bool:
        """Whether the response overrides any of the headers in ``text``."""
        return any(map(response.headers.__contains__, self._constant))

    def allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of a listed origin read the response (CORS, Fetch Standard §3.2)."""
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


RESPONSE_HEADERS: web.AppKey["ResponseHeaders"] = web.AppKey("response_headers")
