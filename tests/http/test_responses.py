"""Responses on the fast path match those that aiohttp would write."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.context import REQUEST_CONTEXT, RequestContext
from service.http.headers import RESPONSE_HEADERS, ResponseHeaders
from service.http.responses import JsonResponse
from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register_as
from tests.support.logbook import logged

ORIGIN = "https://app.example.com"
# Headers that differ between requests or between HTTP/1.0 and 1.1.
OF_ONE_REQUEST = {"date", "connection"}
PATHS = {
    "/health/live": 200,
    "/health/nothing": 404,
    "/.well-known/jwks.json": 200,
    "/.well-known/webauthn": 200,
    "/api/v1/users/me": 200,
    "/api/v1/users?limit=1": 200,
    "/api/v1/users?limit=0": 422,
}


async def _ask(
    client: Client, method: str, path: str, version: str, headers: dict[str, str]
) -> tuple[int, dict[str, list[str]], bytes]:
    """Return the status, headers and body of the response on the wire."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    lines = [f"{method} {path} {version}", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    found: dict[str, list[str]] = {}
    for name, value in (field.split(": ", 1) for field in fields):
        if name.lower() not in OF_ONE_REQUEST:
            found.setdefault(name.lower(), []).append(value)
    return int(status.split(" ")[1]), found, body


@pytest.mark.parametrize("cors", [(), (ORIGIN,)])
@pytest.mark.parametrize("public_origin", ["http://localhost:8080", "https://example.com"])
async def test_fast_path_matches_aiohttp(
    start_app: StartApp, cors: tuple[str, ...], public_origin: str
) -> None:
    client = await start_app(cors_origins=cors, public_origin=public_origin)
    admin = await register_as(client, "admin")
    await register_as(client, "user")
    headers = {**admin.headers, "X-Request-ID": "the-same", "Origin": ORIGIN}
    for path, status in PATHS.items():
        fast = await _ask(client, "GET", path, "HTTP/1.1", headers)
        by_aiohttp = await _ask(client, "GET", path, "HTTP/1.0", headers)
        assert fast == by_aiohttp
        assert fast[0] == status
        assert int(fast[1]["content-length"][0]) == len(fast[2])
        head = await _ask(client, "HEAD", path, "HTTP/1.1", headers)
        assert head == (*fast[:2], b"")


async def test_connection_stays_open_until_the_client_sends_close(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
    writer.write((request + b"\r\n") * 3 + request + b"Connection: close\r\n\r\n")
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert received.count(b"Connection: close\r\n") == 1


@pytest.mark.parametrize(
    "value", ["a\r\nX-Forged: b", "a\nX-Forged: b", "a\rb", "a\0b", "a\x1b[2J", "a\x7f"]
)
async def test_header_value_cannot_inject_a_header(settings: Settings, value: str) -> None:
    async def forge(request: web.Request) -> web.Response:
        REQUEST_CONTEXT.set(RequestContext("id"))
        return JsonResponse(b"{}", headers={"ETag": value})

    app = web.Application()
    app[RESPONSE_HEADERS] = ResponseHeaders(settings)
    app.router.add_get("/", forge)
    client = TestClient(TestServer(app))
    await client.start_server()
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    writer.write_eof()
    received = await reader.read()
    writer.close()
    await client.close()
    assert b"\r\n\r\n{}" not in received
    assert b"X-Forged: b" not in received


async def test_large_response_arrives_complete(client: Client) -> None:
    """The response exceeds the socket buffer and is read slowly."""
    admin = await register_as(client, "admin")
    note = "x" * 15_000
    for _ in range(60):
        body = {"email": f"a{_}@example.com", "settings": {"note": note}}
        response = await client.post("/api/v1/users", headers=admin.headers, json=body)
        assert response.status == 201
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=1024)
    token = admin.headers["Authorization"]
    writer.write(
        f"GET /api/v1/users?limit=200 HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    received = b""
    while piece := await reader.read(1024):
        received += piece
        await asyncio.sleep(0)
    writer.close()
    assert received.count(note.encode()) == 60
    assert received.endswith(b"}")


@pytest.mark.parametrize("calls_first", [True, False])
async def test_error_outside_the_middleware_is_a_problem_with_one_request_id(
    settings: Settings, aiohttp_client: AiohttpClient, calls_first: bool
) -> None:
    @web.middleware
    async def fail(request: web.Request, handler: Handler) -> web.StreamResponse:
        if calls_first:
            await handler(request)
        raise ZeroDivisionError

    app = create_app(settings)
    app.middlewares.insert(0, fail)
    client = await aiohttp_client(app)
    with logged() as events:
        response = await client.get("/health/live", headers={"X-Request-ID": "given"})
    await assert_problem(response, 500, "internal_error")
    (error,) = [event for event in events if event["event"] == "unexpected error"]
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert (error["request_id"] == "given") == calls_first
