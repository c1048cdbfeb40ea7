"""Documents on their way in or out: in temporary files, so that no client holds a connection."""

import asyncio
import hashlib
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import IO

import asyncpg
from aiohttp import web

from service.db.connection import Connection
from service.db.transactions import read, snapshot
from service.http.problems import BODY_TIMEOUT, CONTENT_TOO_LARGE, MALFORMED_BODY, Problem
from service.http.requests import COMPRESSED_FREE_BYTES, COMPRESSION_MAX_RATIO
from service.worlds import queries
from service.worlds.document import write_document

# What stays in memory of a document. A larger one is in a file that no other process can open.
MEMORY_MAX_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024
# How long a client may take to send a document.
UPLOAD_TIMEOUT_S = 5 * 60


def open_spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(MEMORY_MAX_BYTES)


async def receive(request: web.Request, spool: IO[bytes], max_bytes: int) -> bytes:
    """Write the body into the spool, and return its hash.

    Raises Problem 408 if it takes too long, 413 if it is too large, 400 if it cannot be decoded.
    """
    digest = hashlib.sha256()
    length = 0
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                length += len(chunk)
                sent = request.content.total_compressed_bytes
                if length > max_bytes or (
                    sent is not None
                    and length > COMPRESSED_FREE_BYTES + COMPRESSION_MAX_RATIO * sent
                ):
                    raise Problem(CONTENT_TOO_LARGE, close=True)
                digest.update(chunk)
                await asyncio.to_thread(spool.write, chunk)
    except TimeoutError:
        raise Problem(BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(MALFORMED_BODY, close=True) from None
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
                async for chunk in _gather(write_document(conn, world)):
                    await asyncio.to_thread(spool.write, chunk)
        return world

    return await read(app, export_world)


async def _gather(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what the pieces are together, in chunks that are worth a thread's time."""
    chunk = bytearray()
    async for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


async def send(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield what is in the spool."""
    spool.seek(0)
    while chunk := await asyncio.to_thread(spool.read, CHUNK_BYTES):
        yield chunk
