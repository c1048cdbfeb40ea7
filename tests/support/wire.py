"""Raw connections to the service, for clients that do what HTTP libraries do not."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

from tests.support.clients import Client
from tests.support.factories import Account


class Wire(NamedTuple):
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Disconnect at once, in a way that the service notices without writing."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def closed(self) -> bool:
        """Read up to the end; return whether there is one."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return True


@contextlib.asynccontextmanager
async def connected(client: Client, *, small: bool = False) -> AsyncIterator[Wire]:
    """Connect for the duration of the block; with a small buffer if ``small``."""
    raw = socket.socket()
    if small:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (client.host, client.port))
    reader, writer = await asyncio.open_connection(sock=raw)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def get(path: str, version: str = "HTTP/1.1", **headers: str) -> bytes:
    """Return the bytes of a GET request."""
    lines = [f"GET {path} {version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def patch_me(account: Account, body: bytes) -> bytes:
    """Return the bytes of a request that changes the account's profile."""
    lines = [
        "PATCH /api/v1/users/me HTTP/1.1",
        "Host: localhost",
        f"Authorization: {account.headers['Authorization']}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
