"""The body of a request while it arrives: how long that may take, and how much may be sent."""

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.http.codings import BODY_MAX_BYTES
from service.http.expectations import ask_for_body
from service.http.problems import BODY_TIMEOUT, CONTENT_TOO_LARGE, MALFORMED_BODY, Problem

# What a client may send for one body: the largest in chunks of one byte, and some more.
SENT_MAX_BYTES = 8 * BODY_MAX_BYTES


class Receiving:
    """One body. aiohttp limits neither its time nor the extensions of its chunks."""

    def __init__(self, request: web.Request, timeout_s: float, arrived_bytes: int = 0) -> None:
        self.request = request
        self.deadline = asyncio.timeout(timeout_s)
        # Of the head, too: it may come together with the body.
        self.sent_bytes = arrived_bytes

    def count(self, data: bytes) -> None:
        """Count bytes before they are parsed, the framing of chunks included.

        End if it is too much.
        """
        if self.request.content.is_eof():
            return
        self.sent_bytes += len(data)
        if self.is_too_much and not self.deadline.expired():
            self.deadline.reschedule(0)

    @property
    def is_too_much(self) -> bool:
        # With a length, bytes beyond it belong to further requests.
        return self.request.content_length is None and self.sent_bytes > SENT_MAX_BYTES

    async def read(self) -> None:
        """Read and cache the whole body.

        Raises Problem 408 if that takes too long, 400 if its chunks are invalid, and 413 if it is
        too large, with or without the framing of its chunks.
        """
        if (self.request.content_length or 0) > BODY_MAX_BYTES:
            raise Problem(CONTENT_TOO_LARGE, close=True)
        self._check_framing()
        try:
            async with self.deadline:
                await ask_for_body(self.request)
                await self.request.read()
        except TimeoutError:
            self._check_framing()
            raise Problem(BODY_TIMEOUT, close=True) from None
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            raise Problem(MALFORMED_BODY, close=True) from None
        # The last bytes may have completed it.
        self._check_framing()

    def _check_framing(self) -> None:
        if self.is_too_much:
            detail = "The chunks of the body are too small, or their extensions too long."
            raise Problem(CONTENT_TOO_LARGE, detail, close=True)
