"""A proxy to PostgreSQL: a network that is slow, silent, broken, or leads elsewhere."""

import asyncio
import contextlib
import dataclasses
import random
import struct
from collections.abc import AsyncIterator
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from service.settings import Database

# Closing sends RST instead of FIN (socket(7)).
_COMMITTED = b"COMMIT\0"
_RESET = struct.pack("ii", 1, 0)


@dataclasses.dataclass
class Proxy:
    """The way to a database, as ``database``. New connections lead to ``target``.

    Data takes ``delay_s`` in each direction, give or take ``jitter_s``, and waits while ``flowing``
    is cleared.
    """

    target: Database
    delay_s: float
    database: Database
    flowing: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    jitter_s: float = 0
    # New connections are reset at once.
    refuses: bool = False
    # The share of responses to COMMIT that are lost, and their connections reset: the server has
    # done what it was asked for.
    loses_commits: float = 0
    lost_commits: int = 0
    # A connection is reset once this many bytes of responses have passed.
    resets_after_bytes: float = float("inf")
    connections: int = 0
    round_trips: int = 0
    streams: set[asyncio.StreamWriter] = dataclasses.field(default_factory=set)
    carried: "set[asyncio.Future[Any]]" = dataclasses.field(default_factory=set)

    def reset_all(self) -> None:
        """Reset all open connections."""
        for stream in self.streams:
            reset(stream)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side closes it."""
        if self.refuses:
            reset(writer)
            return
        try:
            to_reader, to_writer = await asyncio.open_connection(*self.target.hosts[0])
        except OSError:
            reset(writer)
            return
        self.connections += 1
        both = {writer, to_writer}
        self.streams |= both
        answered = True
        passed_bytes = 0

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            nonlocal answered, passed_bytes
            loop = asyncio.get_running_loop()
            due = 0.0
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    await self.flowing.wait()
                    asks = source is reader
                    self.round_trips += asks and answered
                    answered = not asks
                    passed_bytes += 0 if asks else len(data)
                    commits = not asks and _COMMITTED in data
                    lost = commits and random.random() < self.loses_commits
                    self.lost_commits += lost
                    if lost or passed_bytes > self.resets_after_bytes:
                        for stream in both:
                            reset(stream)
                        return
                    jitter_s = random.uniform(-self.jitter_s, self.jitter_s)
                    # Timers that are due at the same time fire in any order.
                    due = max(due + 0.001, loop.time() + self.delay_s + jitter_s)
                    loop.call_at(due, _write, to, data)
            await asyncio.sleep(max(due - loop.time(), self.delay_s))
            to.close()

        pumps = asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
        self.carried.add(pumps)
        try:
            await pumps
        finally:
            self.carried.remove(pumps)
            self.streams -= both


def reset(stream: asyncio.StreamWriter) -> None:
    """Close the connection with a reset."""
    sock = stream.get_extra_info("socket")
    # There is none once the stream has been closed.
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    stream.transport.abort()


def _write(to: asyncio.StreamWriter, data: bytes) -> None:
    if not to.is_closing():
        to.write(data)


@contextlib.asynccontextmanager
async def proxying(target: Database, delay_s: float = 0) -> AsyncIterator[Proxy]:
    """Run a proxy to the database for the duration of the block."""
    proxy = Proxy(target, delay_s, target)
    proxy.flowing.set()
    server = await asyncio.start_server(proxy.carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.database = dataclasses.replace(target, hosts=(("127.0.0.1", port),))
    try:
        yield proxy
    finally:
        server.close()
        proxy.reset_all()
        proxy.flowing.set()
        if proxy.carried:
            await asyncio.wait(proxy.carried)


@contextlib.asynccontextmanager
async def proxy_to(database: Database) -> AsyncIterator[tuple[Database, asyncio.Event]]:
    """Yield the database behind a proxy, and an event that stops all traffic while cleared."""
    async with proxying(database) as proxy:
        yield proxy.database, proxy.flowing
