"""Compressed and incomplete bodies. ``tests/security/test_bad_input.py`` has every other fault."""

import asyncio
import gzip

from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register


async def test_compressed_body_is_accepted(client: Client) -> None:
    account = await register(client)
    headers = {
        **account.headers,
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
    }
    body = gzip.compress(b'{"name": "compressed"}')
    response = await client.patch("/api/v1/users/me", headers=headers, data=body)
    assert (await response.json())["name"] == "compressed"
    broken = await client.patch("/api/v1/users/me", headers=headers, data=b"not gzip")
    await assert_problem(broken, 400, "malformed_body")


async def test_incomplete_body_times_out(start_app: StartApp) -> None:
    """The service responds 408 and closes the connection."""
    client = await start_app(body_timeout_s=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    received = await reader.readuntil(b'"code":"body_timeout"')
    writer.close()
    await writer.wait_closed()
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in received
