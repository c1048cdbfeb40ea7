"""Clients that do not behave: slow, silent, endless, broken, or very many."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

from tests.faults.load import Load
from tests.faults.run import SLOWNESS_MAX, Fault, measure_slowness
from tests.faults.stage import Stage
from tests.support.proxy import reset
from tests.support.waiting import eventually

MODES = ("direct", "two workers")
# However slowly its client sends a request: KEEPALIVE_TIMEOUT_S, and some time to notice.
CLOSED_WITHIN_S = 20
HEAD = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
Streams = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@contextlib.asynccontextmanager
async def connected(stage: Stage, count: int) -> AsyncIterator[Streams]:
    """Open connections to the service for the duration of the block."""
    streams: Streams = []
    try:
        for _ in range(count):
            streams.append(await asyncio.open_connection("127.0.0.1", stage.service.port))
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def count_closed(streams: Streams) -> int:
    """Return how many of the connections the service has closed, once it has closed all."""

    async def until_closed(reader: asyncio.StreamReader) -> int:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        return 1

    return sum(await asyncio.gather(*(until_closed(reader) for reader, _ in streams)))


async def a_thousand_clients_send_heads_slowly(stage: Stage, load: Load) -> int:
    return await _send_slowly(stage, HEAD, "X-Slow: ")


async def a_thousand_clients_send_bodies_slowly(stage: Stage, load: Load) -> int:
    head = HEAD.replace(b"GET /health/live", b"POST /api/v1/auth/login")
    head += b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    return await _send_slowly(stage, head, " ")


async def _send_slowly(stage: Stage, head: bytes, more: str) -> int:
    """Send a byte a second on each connection until the service closes it."""
    async with connected(stage, 1000) as streams:

        async def drip() -> None:
            for number in range(60):
                for _, writer in streams:
                    if not writer.is_closing():
                        writer.write(more[number % len(more)].encode())
                await asyncio.sleep(1)

        for _, writer in streams:
            writer.write(head)
        began = time.monotonic()
        dripping = asyncio.create_task(drip())
        closed = await count_closed(streams)
        took_s = time.monotonic() - began
        dripping.cancel()
        slower = min(SLOWNESS_MAX, await asyncio.to_thread(measure_slowness))
        assert took_s <= CLOSED_WITHIN_S * slower, f"closed after {took_s:.1f} s"
        return closed


async def clients_never_read(stage: Stage, load: Load) -> int:
    """They ask for more than buffers hold, and are let go."""
    request = HEAD.replace(b"/health/live", b"/openapi.json") + b"\r\n"
    async with connected(stage, 100) as streams:
        for _, writer in streams:
            writer.write(request * 50)

        def are_let_go() -> bool:
            for _, writer in streams:
                if not writer.is_closing():
                    writer.write(b"\r\n")
            return all(writer.is_closing() for _, writer in streams)

        await eventually(are_let_go)
        return len(streams)


async def clients_pipeline_without_end(stage: Stage, load: Load) -> int:
    async with connected(stage, 200) as streams:
        for _, writer in streams:
            writer.write((HEAD + b"\r\n") * 200)
        answered = 0
        for reader, _ in streams:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                answered += bool(await reader.readuntil(b"\r\n\r\n"))
        return answered


async def clients_send_what_is_no_request(stage: Stage, load: Load) -> int:
    refused = 0
    async with connected(stage, 300) as streams:
        for _, writer in streams:
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP at all\r\n\r\n")
        for reader, _ in streams:
            refused += (await reader.read(12)).startswith(b"HTTP/1.1 400")
    assert refused == len(streams)
    return refused


async def clients_disappear_in_the_middle_of_requests(stage: Stage, load: Load) -> int:
    headers = load.writers[0].headers["Authorization"].encode()
    request = HEAD.replace(b"/health/live", b"/api/v1/users/me")
    request += b"Authorization: " + headers + b"\r\n\r\n"
    for number in range(200):
        async with connected(stage, 30) as streams:
            for _, writer in streams:
                writer.write(request)
            # Most requests may have ended by then, or not have begun.
            await asyncio.sleep(random.uniform(0, 0.02))
            for _, writer in streams:
                reset(writer)
        noticed = sum(bool(event.get("client_gone")) for event in stage.service.log)
        if noticed and number >= 20:
            break
    return noticed


async def two_thousand_clients_connect_and_say_nothing(stage: Stage, load: Load) -> int:
    async with connected(stage, 2000) as streams:
        await load.acknowledge(20)
        return len(streams)


FAULTS = [
    Fault(happen, modes=MODES)
    for happen in (
        a_thousand_clients_send_heads_slowly,
        a_thousand_clients_send_bodies_slowly,
        clients_never_read,
        clients_pipeline_without_end,
        clients_send_what_is_no_request,
        clients_disappear_in_the_middle_of_requests,
        two_thousand_clients_connect_and_say_nothing,
    )
]
