"""Connections of clients that do not read, do not end, end early or pipeline without end."""

import asyncio
import re
import resource
import socket
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

from service.app import create_app
from service.http import connections
from service.http.connections import CONNECTIONS, Connections
from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register
from tests.support.locks import WAITING
from tests.support.logbook import logged
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.wire import connected, get, patch_me

# More than the kernel's buffers hold.
UNREADABLE = get("/docs/swagger-ui.js") * 12


def connections_of(client: Client) -> Connections:
    assert client.app is not None
    return client.app[CONNECTIONS]


@pytest.fixture
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WATCH_EVERY_S", 0.05)
    monkeypatch.setattr(connections, "LOG_EVERY_S", DEADLINE_S)


async def test_connection_that_sends_a_head_without_end_is_closed(client: Client) -> None:
    """It would fill the memory: the parsers keep up to a megabyte of a head."""
    # Before KEEPALIVE_TIMEOUT_S would have it closed.
    async with asyncio.timeout(DEADLINE_S / 2), connected(client) as wire:
        wire.writer.write(get("/health/live")[:-2])
        for number in range(100):
            wire.writer.write(f"A{number}: {'a' * 8000}\r\n".encode())
        assert await wire.closed()


async def test_rest_of_a_rejected_body_is_discarded_so_that_the_response_arrives(
    client: Client,
) -> None:
    head = get("/health/live", **{"Content-Length": "3000000"})
    async with asyncio.timeout(DEADLINE_S), connected(client) as wire:
        # A client that reads only once it has sent everything.
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.writer.write(head)
        for _ in range(30):
            wire.writer.write(bytes(100_000))
            await wire.writer.drain()
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await wire.reader.read()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.usefixtures("watched_closely")
async def test_clients_that_do_not_read_are_let_go_and_counted(
    settings: Settings, start_app: StartApp, aiohttp_client: Any
) -> None:
    registry = CollectorRegistry()
    app = create_app(replace(settings, write_timeout_s=0.2), registry)
    client = await aiohttp_client(app)
    with logged() as events:
        async with connected(client, small=True) as one, connected(client, small=True) as other:
            for wire in (one, other):
                wire.writer.write(UNREADABLE)
            await eventually(lambda: app[CONNECTIONS].open)
            await eventually(lambda: not app[CONNECTIONS].open)
    lines = [event for event in events if event["event"] == "connections dropped"]
    (line,) = lines
    assert line["not_reading"] >= 1
    labels = {"reason": "not_reading"}
    assert registry.get_sample_value("shinkei_connections_dropped_total", labels) == 2


@pytest.mark.usefixtures("watched_closely")
async def test_client_that_does_not_read_its_last_response_is_let_go(start_app: StartApp) -> None:
    """aiohttp has closed the connection, but its last bytes are not sent."""
    client = await start_app(write_timeout_s=0.2)
    with logged() as events:
        async with connected(client, small=True) as wire:
            wire.writer.write(UNREADABLE + get("/health/live", Connection="close"))
            await eventually(lambda: connections_of(client).open)
            await eventually(lambda: not connections_of(client).open)
    assert "not_reading" in str(events)


@pytest.mark.slow
@pytest.mark.usefixtures("watched_closely")
async def test_client_that_reads_slowly_gets_the_whole_response(start_app: StartApp) -> None:
    client = await start_app(write_timeout_s=3)
    loop = asyncio.get_running_loop()
    async with connected(client, small=True) as wire:
        wire.writer.write(get("/docs/swagger-ui.js") * 3 + get("/health/live", Connection="close"))
        received, next_read = b"", loop.time()

        def is_time_to_read() -> bool:
            return loop.time() >= next_read

        while piece := await wire.reader.read(2**17):
            received += piece
            next_read += len(piece) / 1_000_000
            await eventually(is_time_to_read)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 4


async def test_client_that_never_ends_its_headers_is_let_go(start_app: StartApp) -> None:
    client = await start_app(keepalive_timeout_s=0.3)
    async with connected(client) as wire:
        wire.writer.write(get("/health/live")[:-2])
        await eventually(lambda: connections_of(client).open)

        def is_closed_meanwhile() -> bool:
            if not wire.writer.is_closing():
                wire.writer.write(b"a: b\r\n")
            return not connections_of(client).open

        await eventually(is_closed_meanwhile)


async def test_longest_idle_connection_makes_room_for_a_new_one(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_MIN_S", 0)
    client = await start_app(connections_max=2)
    async with connected(client) as first, connected(client) as second, connected(client) as third:
        assert await first.closed()
        for wire in (second, third):
            wire.writer.write(get("/health/live"))
            assert (await wire.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_number_of_connections_leaves_room_for_other_descriptors(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert connections_of(await start_app(db_pool_size=4)).maximum == 256 - 64 - 32 - 4


async def test_beyond_the_maximum_only_probes_are_answered(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_app(connections_max=1)
    account = await register(client)
    async with conn.transaction():
        await conn.execute("select 1 from users for update")
        busy = asyncio.ensure_future(
            client.patch("/api/v1/users/me", headers=account.headers, json={"name": "Eve"})
        )
        await eventually(lambda: conn.fetchval(WAITING))
        for path, status in (("/health/live", b"200"), ("/openapi.json", b"503")):
            async with connected(client) as wire:
                wire.writer.write(get(path))
                received = await wire.reader.read()
            assert received.split(b" ")[1] == status
        assert b'"code":"overloaded"' in received
        monkeypatch.setattr(connections, "SPARE_MAX", 0)
        async with connected(client) as wire:
            assert await wire.closed()
    assert (await busy).status == 200


async def test_time_before_the_handler_starts_counts_towards_the_deadline(
    settings: Settings, start_app: StartApp, aiohttp_client: Any
) -> None:
    loop = asyncio.get_running_loop()

    @web.middleware
    async def delay(request: web.Request, handler: Handler) -> web.StreamResponse:
        late = loop.time() + 1.1
        await eventually(lambda: loop.time() > late)
        return await handler(request)

    app = create_app(replace(settings, request_timeout_s=1))
    app.middlewares.insert(0, delay)
    client = await aiohttp_client(app)
    # Without a delay.
    account = await register(await start_app())
    response = await client.get("/api/v1/users/me", headers=account.headers)
    await assert_problem(response, 503, "timeout")


async def test_requests_of_a_crowd_wait_in_turn_but_probes_do_not(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IN_PROGRESS_MAX", 0)
    monkeypatch.setattr(connections, "STARTS_PER_TURN", 0)
    client = await start_app(request_timeout_s=1)
    assert (await client.get("/health/live")).status == 200
    await assert_problem(await client.get("/.well-known/jwks.json"), 503, "timeout")


async def test_few_waiting_requests_start_in_each_turn_of_the_event_loop(client: Client) -> None:
    started = []

    async def start(number: int) -> None:
        await connections_of(client).turn()
        started.append(number)

    starting = [asyncio.create_task(start(number)) for number in range(30)]
    seen = {0}
    for _ in range(30):
        await asyncio.sleep(0)
        seen.add(len(started))
    assert started == list(range(30))
    await asyncio.gather(*starting)
    assert max(after - before for before, after in pairwise(sorted(seen))) == 8


async def test_service_does_not_read_ahead_while_a_request_is_in_progress(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    before = set(connections_of(client).open)
    async with conn.transaction():
        await conn.execute("select 1 from users for update")
        async with connected(client) as wire:
            wire.writer.write(patch_me(account, b'{"name": "Eve"}'))
            await eventually(lambda: conn.fetchval(WAITING))
            (opened,) = set(connections_of(client).open) - before
            transport = connections_of(client).open[opened]
            wire.writer.write(get("/health/live"))
            await eventually(lambda: not transport.is_reading())
            await conn.execute("rollback; begin")
            wire.writer.write(get("/health/live", Connection="close"))
            received = await wire.reader.read()
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3


async def test_client_that_closes_its_side_gets_its_response(client: Client, conn: Any) -> None:
    account = await register(client)
    async with conn.transaction():
        await conn.execute("select 1 from users for update")
        async with connected(client) as wire:
            wire.writer.write(patch_me(account, b'{"name": "Eve"}'))
            wire.writer.write_eof()
            await eventually(lambda: conn.fetchval(WAITING))
            await conn.execute("rollback; begin")
            received = await wire.reader.read()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"name":"Eve"' in received


async def test_client_that_closes_its_side_gets_all_pipelined_responses(client: Client) -> None:
    async with connected(client) as wire:
        wire.writer.write(get("/openapi.json") + get("/health/live") * 2 + get("/"))
        wire.writer.write_eof()
        received = await wire.reader.read()
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 4


async def test_idle_client_that_closes_its_side_is_closed(client: Client) -> None:
    async with connected(client) as wire:
        wire.writer.write(get("/health/live"))
        await wire.reader.readuntil(b"}")
        wire.writer.write_eof()
        assert await wire.reader.read() == b""


async def test_client_that_closes_its_side_within_a_request_is_closed(client: Client) -> None:
    for sent in (get("/health/live")[:-2], patch_me(await register(client), b"{}")[:-1]):
        async with connected(client) as wire:
            wire.writer.write(sent)
            wire.writer.write_eof()
            assert await wire.closed()


async def test_pipelined_request_waits_in_turn_even_for_a_probe(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STARTS_PER_TURN", 0)
    client = await start_app(request_timeout_s=1)
    async with connected(client) as wire:
        wire.writer.write(get("/health/live") + get("/health/live", Connection="close"))
        received = await wire.reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"503"]


async def test_time_of_a_pipelined_request_begins_after_the_response_before_it(
    start_app: StartApp, conn: Any
) -> None:
    account = await register(await start_app())
    client = await start_app(request_timeout_s=2)
    loop = asyncio.get_running_loop()
    async with connected(client) as wire:
        async with conn.transaction():
            await conn.execute("lock table audit_events in access exclusive mode")
            # It may take longer than other requests.
            wire.writer.write(get("/api/v1/users/me/export", **account.headers))
            await eventually(lambda: conn.fetchval(WAITING))
            wire.writer.write(get("/api/v1/users/me", Connection="close", **account.headers))
            late = loop.time() + 2.1
            await eventually(lambda: loop.time() > late)
        received = await wire.reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200"]


async def test_kernel_holds_little_for_a_client_and_not_for_ever(start_app: StartApp) -> None:
    client = await start_app(write_timeout_s=15)
    async with connected(client):
        await eventually(lambda: connections_of(client).open)
        (transport,) = connections_of(client).open.values()
        accepted = transport.get_extra_info("socket")
        # Linux doubles the size, for its own bookkeeping.
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 256 * 1024
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
