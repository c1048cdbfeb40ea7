"""Documents on their way in or out: in temporary files, so that no client holds a connection."""

import asyncio
import hashlib
import tempfile
import uuid
from collections.abc import AsyncGenerator
from typing import IO

import asyncpg
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.db.connection import Connection
from service.db.transactions import read, snapshot
from service.http.codings import StreamDecoder, check_size, coding_of
from service.http.problems import (
    BODY_TIMEOUT,
    EMPTY_BODY,
    MALFORMED_BODY,
    MALFORMED_JSON,
    Problem,
)
from service.worlds import queries
from service.worlds.document import write_document
from service.worlds.screen import Screen

# What stays in memory of a document. A larger one is in a file that no other process can open.
MEMORY_MAX_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024
# How long a client may take to send a document.
UPLOAD_TIMEOUT_S = 5 * 60


def open_spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(MEMORY_MAX_BYTES)


async def receive(request: web.Request, spool: IO[bytes], max_bytes: int) -> bytes:
    """Write the body into the spool without its content coding, and return its hash.

    Raises Problem 408 if it takes too long, 413 if it is too large, 415 if its coding is unknown,
    and 400 if there is none, if it cannot be decoded, or if the parser would misread it.
    """
    coding = coding_of(request)
    digest, screen = hashlib.sha256(), Screen()
    sent = length = 0
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            decoder = StreamDecoder(coding) if coding else None
            async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                sent += len(chunk)
                for part in decoder.decode(chunk) if decoder else (chunk,):
                    length += len(part)
                    check_size(length, sent, max_bytes)
                    if fault := screen.find_fault(part):
                        raise Problem(MALFORMED_JSON, fault, close=True)
                    digest.update(part)
                    await asyncio.to_thread(spool.write, part)
            if decoder:
                decoder.end()
    except TimeoutError:
        raise Problem(BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
        raise Problem(MALFORMED_BODY, close=True) from None
    if not length:
        raise Problem(EMPTY_BODY)
    return digest.digest()


async def spool_world(
    app: web.Application, spool: IO[bytes], user_id: uuid.UUID, world_id: uuid.UUID
) -> asyncpg.Record | None:
    """Write the document of a world into the spool, as the world is at one moment.

    Returns the world, or None if the account does not have it at that moment.
    """

    async def export_world(conn: Connection) -> asyncpg.Record | None:
        spool.seek(0)
        spool.truncate()
        async with snapshot(conn):
            world = await queries.find_world(conn, user_id, world_id)
            if world is not None:
                async for chunk in write_document(conn, world):
                    await asyncio.to_thread(spool.write, chunk)
        return world

    return await read(app, export_world)


async def send(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield what is in the spool."""
    spool.seek(0)
    while chunk := await asyncio.to_thread(spool.read, CHUNK_BYTES):
        yield chunk
