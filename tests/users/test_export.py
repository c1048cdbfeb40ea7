"""``GET /users/me/export``: a document of any length, streamed."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from service.users import handlers
from service.users.handlers import EXPORTS
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.growth import add_events, add_sessions
from tests.support.locks import WAITING
from tests.support.logbook import logged
from tests.support.steps import is_signed_in, send
from tests.support.waiting import eventually

EXPORT = "/api/v1/users/me/export"
LOCK = "lock table audit_events in access exclusive mode"


@contextlib.asynccontextmanager
async def connected(client: Client, account: Account) -> AsyncIterator[asyncio.StreamReader]:
    """Request an export on a connection with small buffers, and read nothing of it."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", client.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    lines = [f"GET {EXPORT} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in account.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    yield reader
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def exports(client: Client) -> Any:
    assert client.app is not None
    return client.app[EXPORTS]


async def test_long_export_contains_everything_in_order(client: Client, conn: Any) -> None:
    account = await register(client)
    await add_events(conn, account, 1200)
    await add_sessions(conn, account, 700)
    response = await send(client, "GET", "/users/me/export", by=account)
    document = await response.json()
    assert len(document["sessions"]) == 701
    times = [event["occurred_at"] for event in document["audit_events"]]
    assert times == sorted(times)
    ids = {event["id"] for event in document["audit_events"]}
    assert len(ids) == len(times) == await conn.fetchval("select count(*) from audit_events")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
async def test_export_is_whole_where_pages_end(
    client: Client, conn: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(handlers, "EXPORT_PAGE", 2)
    account = await register(client)
    await conn.execute("set session_replication_role = replica; delete from audit_events")
    await add_events(conn, account, count)
    document = await (await send(client, "GET", "/users/me/export", by=account)).json()
    assert len(document["audit_events"]) == count


async def test_ended_session_is_not_exported(client: Client) -> None:
    account = await register(client)
    await send(client, "POST", "/auth/login", credentials(account))
    assert (await send(client, "DELETE", "/users/me/sessions", by=account)).status == 204
    document = await (await send(client, "GET", "/users/me/export", by=account)).json()
    assert len(document["sessions"]) == 1


def credentials(account: Account) -> dict[str, str]:
    return {"email": account.profile["email"], "password": account.password}


async def test_export_may_take_longer_than_a_request(start_app: StartApp, conn: Any) -> None:
    account = await register(await start_app())
    client = await start_app(request_timeout_s=2)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(send(client, "GET", "/users/me/export", by=account))
        await eventually(lambda: conn.fetchval(WAITING))
        late = time.monotonic() + 2.1
        await eventually(lambda: time.monotonic() > late)
    document = await (await exporting).json()
    assert document["audit_events"]


async def test_client_that_does_not_read_is_let_go(start_app: StartApp, conn: Any) -> None:
    client = await start_app(write_timeout_s=0.5)
    account = await register(client)
    await add_events(conn, account, 20_000)
    async with connected(client, account):
        await eventually(lambda: exports(client))
        await eventually(lambda: not exports(client))


async def test_client_that_does_not_read_holds_no_database_connection(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(db_pool_size=1)
    account = await register(client)
    await add_events(conn, account, 20_000)
    async with connected(client, account):
        await eventually(lambda: exports(client))
        for _ in range(20):
            assert await is_signed_in(client, account)
        assert exports(client)


async def test_connection_is_cut_if_the_database_fails_midway(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(db_lock_timeout_s=0.2)
    account = await register(client)
    async with conn.transaction():
        await conn.execute(LOCK)
        with logged() as events, pytest.raises(aiohttp.ClientPayloadError):
            await send(client, "GET", "/users/me/export", by=account)
    (cut,) = [event for event in events if event["event"] == "response cut off"]
    assert cut["cause"] == "LockNotAvailableError"
    assert not exports(client)


async def test_export_ends_with_its_session(
    client: Client, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "EXPORT_PAGE", 2)
    account = await register(client)
    await add_events(conn, account, 10)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(send(client, "GET", "/users/me/export", by=account))
        await eventually(lambda: conn.fetchval(WAITING))
        await conn.execute("update users set session_epoch = session_epoch + 1")
    with pytest.raises(aiohttp.ClientPayloadError):
        await exporting


async def test_account_has_one_export_at_a_time(client: Client, conn: Any) -> None:
    account, other = await register(client), await register(client)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(send(client, "GET", "/users/me/export", by=account))
        await eventually(lambda: conn.fetchval(WAITING))
        second = await send(client, "GET", "/users/me/export", by=account)
        await assert_problem(second, 409, "export_in_progress")
        others = asyncio.ensure_future(send(client, "GET", "/users/me/export", by=other))
        await eventually(lambda: len(exports(client)) == 2)
    assert (await exporting).status == (await others).status == 200
    assert (await send(client, "GET", "/users/me/export", by=account)).status == 200


async def test_number_of_exports_at_a_time_is_limited(
    client: Client, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "EXPORTS_MAX", 1)
    account, other = await register(client), await register(client)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(send(client, "GET", "/users/me/export", by=account))
        await eventually(lambda: conn.fetchval(WAITING))
        second = await send(client, "GET", "/users/me/export", by=other)
        await assert_problem(second, 503, "too_many_exports")
    assert (await exporting).status == 200


async def test_head_of_an_export_has_no_body(client: Client) -> None:
    account = await register(client)
    response = await send(client, "HEAD", "/users/me/export", by=account)
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert (response.status, await response.read()) == (200, b"")
    assert not exports(client)


async def test_export_is_sent_in_chunks(client: Client) -> None:
    account = await register(client)
    async with connected(client, account) as reader:
        received = await reader.read()
        while more := await reader.read(65536):
            received += more
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert body.endswith(b"\r\n0\r\n\r\n")
    assert json.loads(b"".join(body.split(b"\r\n")[1::2]))["account"] == account.profile
