"""Export a world into a temporary file, so that no client holds a connection."""

import uuid
from typing import IO

import asyncpg
from aiohttp import web

from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import snapshot
from service.worlds import queries
from service.worlds.document import write_document
from service.worlds.spool import CHUNK_BYTES, write_spool


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
            if world is None:
                return None
            waiting = bytearray()
            async for part in write_document(conn, world):
                waiting += part
                if len(waiting) >= CHUNK_BYTES:
                    await write_spool(spool, bytes(waiting))
                    waiting.clear()
            await write_spool(spool, bytes(waiting))
        return world

    return await read_replica(app, export_world)
