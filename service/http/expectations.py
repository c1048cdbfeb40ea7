"""The Expect header (RFC 9110 §10.1.1). aiohttp would meet it before the middleware runs."""

from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web_urldispatcher import MatchInfoError

from service.http.request_heads import list_of


async def leave_to_middleware(_: web.Request) -> None:
    """Do nothing: the middleware rejects unknown expectations, and meets others in time."""


async def ask_for_body(request: web.Request) -> None:
    """Send 100 Continue if the client waits for it."""
    if request.version == HttpVersion11 and "100-continue" in list_of(request, hdrs.EXPECT):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response has not started


class UnusualExpectations(web.DynamicResource):
    """Any other path, if a request expects anything but 100-continue.

    aiohttp responds to those itself if no route matches. With this, the middleware does.
    """

    def __init__(self) -> None:
        super().__init__("/{path:.*}")

    async def resolve(
        self, request: web.Request
    ) -> "tuple[web.UrlMappingMatchInfo | None, set[str]]":
        if request.headers.get(hdrs.EXPECT, "").lower() in ("", "100-continue"):
            return None, set()
        return _NoRoute(web.HTTPNotFound()), set()


class _NoRoute(MatchInfoError):
    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[None]]:
        return leave_to_middleware
