"""A proxy to PostgreSQL that can fall silent, like a network that drops packets."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from service.settings import Database


@contextlib.asynccontextmanager
async def proxy_to(database: Database) -> AsyncIterator[tuple[Database, asyncio.Event]]:
    """Yield the database behind a proxy, and an event that stops all traffic while cleared."""
    flowing = asyncio.Event()
    flowing.set()
    streams: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await flowing.wait()
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(*database.hosts[0])
        streams.extend((writer, to_writer))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    try:
        yield dataclasses.replace(database, hosts=(("127.0.0.1", port),)), flowing
    finally:
        proxy.close()
        for stream in streams:
            stream.close()
