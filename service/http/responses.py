"""JSON responses, serialized in one write, and files.

For each response, aiohttp builds, checks and serializes all headers again in several coroutines.
Here the constant headers are prepared as text, and one coroutine writes the whole response.
"""

import functools
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion10, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from service.context import REQUEST_CONTEXT
from service.http.headers import RESPONSE_HEADERS, ResponseHeaders

# Names from RFC 9110 that Python has only since 3.13.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase


_STATUS_LINES = {int(status): f"HTTP/1.1 {status} {phrase(status)}" for status in HTTPStatus}
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
# A client has to read one piece before the one after the next is sent.
PIECE_BYTES = 32 * 1024
_CLOSE = "Connection: close\r\n"


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    return formatdate(now, usegmt=True)


class JsonResponse(web.Response):
    """A response with a body and the headers of ``ResponseHeaders``.

    Bypasses all other ``on_response_prepare`` hooks. Falls back to aiohttp for HTTP/1.0 and
    responses that override a common header; ``tests/http/test_responses.py`` compares both paths.
    """

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status=status, reason=phrase(status), body=body, headers=headers)
        self.headers[hdrs.CONTENT_TYPE] = content_type
        self._kept_alive: bool | None = None

    @property
    def prepared(self) -> bool:
        return self._kept_alive is not None or super().prepared

    @property
    def keep_alive(self) -> bool | None:
        return super().keep_alive if self._kept_alive is None else self._kept_alive

    async def write_eof(self, data: bytes = b"") -> None:
        if self._kept_alive is None:
            await super().write_eof(data)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if (
            self.prepared
            or not isinstance(request, web.Request)
            or request.version == HttpVersion10
            or (common := request.app[RESPONSE_HEADERS]).differ(self)
        ):
            return await super().prepare(request)
        common.allow_origin(request, self)
        keep_alive = bool(request.keep_alive if self.keep_alive is None else self.keep_alive)
        whole = self.serialize(request, common, REQUEST_CONTEXT.get().request_id, keep_alive)
        await request.writer.write_eof(whole)
        return None

    def serialize(
        self, request: web.BaseRequest, common: ResponseHeaders, request_id: str, keep_alive: bool
    ) -> bytes:
        """Return the whole response in HTTP/1.1, and note that it has been prepared."""
        own = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        if _CONTROLS.search("".join(self.headers.values())):
            raise ValueError("a control character in a header")
        body = self.body
        assert isinstance(body, bytes)  # noqa: S101
        head = (
            f"{_STATUS_LINES[self.status]}\r\n{own}{common.text}"
            f"Content-Length: {len(body)}\r\nDate: {_date(int(time.time()))}\r\n"
            f"X-Request-ID: {request_id}\r\n"
            f"{'' if keep_alive else _CLOSE}\r\n"
        )
        self._kept_alive = keep_alive
        return head.encode() + (b"" if request.method == hdrs.METH_HEAD else body)


class FileResponse(web.Response):
    """A response whose body is shared by many requests.

    It is sent in pieces, so that no client that reads slowly holds a copy of the whole body.
    """

    def __init__(self, request: web.Request, body: bytes, **options: Any) -> None:
        super().__init__(body=body, **options)
        self.in_pieces = request.method != hdrs.METH_HEAD

    async def write_eof(self, data: bytes = b"") -> None:
        body = self.body
        if self.in_pieces and isinstance(body, bytes):
            for start in range(0, len(body), PIECE_BYTES):
                await self.write(body[start : start + PIECE_BYTES])
            await web.StreamResponse.write_eof(self)
        else:
            await super().write_eof(data)
