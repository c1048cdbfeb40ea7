"""Documents on their way in or out: in temporary files, so that no client holds a connection."""

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from typing import IO

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.context import SETTINGS
from service.http.codings import StreamDecoder, check_size, coding_of
from service.http.connections import ClientConnection
from service.http.expectations import ask_for_body
from service.http.problems import (
    BODY_TIMEOUT,
    EMPTY_BODY,
    MALFORMED_BODY,
    MALFORMED_JSON,
    RETRY_SOON,
    Problem,
    ProblemType,
)
from service.worlds.screen import Screen

log = logging.getLogger(__name__)

NO_ROOM = ProblemType(
    503,
    "no_room",
    "The service has no room for a temporary file. Its operator can see why in the log.",
    RETRY_SOON,
)
# What stays in memory of a document. A larger one is in a file that no other process can open.
MEMORY_MAX_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024
# How long a client may take to send a document.
UPLOAD_TIMEOUT_S = 5 * 60


def open_spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(MEMORY_MAX_BYTES)


async def write_spool(spool: IO[bytes], data: bytes) -> None:
    """Write into the spool. Raises Problem 503 if the machine has no room or directory for it."""

    def write() -> None:
        spool.write(data)
        spool.flush()

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        log.error("temporary file not written", extra={"cause": str(error)})
        raise Problem(NO_ROOM) from error


async def receive(request: web.Request, spool: IO[bytes]) -> bytes:
    """Write the body into the spool without its content coding, and return its hash.

    Raises Problem 408 if it takes too long, 413 if it is too large, 415 if its coding is unknown,
    and 400 if there is none, if it cannot be decoded, or if the parser would misread it.
    """
    connection = request.protocol
    assert isinstance(connection, ClientConnection)  # noqa: S101
    digest, screen = hashlib.sha256(), Screen()
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            with connection.streaming(request):
                await ask_for_body(request)
                async for part in _decode(request):
                    if fault := screen.find_fault(part):
                        raise Problem(MALFORMED_JSON, fault, close=True)
                    digest.update(part)
                    await write_spool(spool, part)
    except TimeoutError:
        raise Problem(BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
        raise Problem(MALFORMED_BODY, close=True) from None
    if not spool.tell():
        raise Problem(EMPTY_BODY)
    return digest.digest()


async def _decode(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body without its content coding, in pieces. Raises Problem 400, 413 or 415."""
    coding = coding_of(request)
    decoder = StreamDecoder(coding) if coding else None
    max_bytes = request.app[SETTINGS].world_import_max_bytes
    pause_s = request.app[SETTINGS].body_timeout_s
    sent = length = 0
    while True:
        # Nothing for so long is a client that has gone, or a chunk that the parser has refused.
        async with asyncio.timeout(pause_s):
            chunk = await request.content.read(CHUNK_BYTES)
        if not chunk:
            break
        sent += len(chunk)
        for part in decoder.decode(chunk) if decoder else (chunk,):
            length += len(part)
            check_size(length, sent, max_bytes)
            yield part
    if decoder:
        decoder.end()


async def send(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield what is in the spool."""
    spool.seek(0)
    while chunk := await asyncio.to_thread(spool.read, CHUNK_BYTES):
        yield chunk
