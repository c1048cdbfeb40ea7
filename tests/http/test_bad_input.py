"""Malformed input to every route with a body: 400, 413, 415 or 422, never 500."""

import asyncio
import gzip
import io
import json
import re

import pytest

from service.http.descriptions import description_of
from service.http.route import Route
from service.routes import ROUTES
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, pointers, register, register_as

NO_ONE = "01890000-0000-7000-8000-000000000000"


def path_of(route: Route) -> str:
    return re.sub(r"\{\w+_id\}", NO_ONE, route.path)


WITHOUT_BODY = {
    "/api/v1/auth/logout",
    "/api/v1/users/{user_id}/reinstate",
    "/api/v1/users/{user_id}/password-reset",
    "/api/v1/stories/{story_id}/clone",
    "/api/v1/stories/{story_id}/restore",
    "/api/v1/events/{event_id}/dependencies/{cause_id}",
}
# Its document is streamed: see tests/worlds/test_bad_imports.py.
IMPORT = "/api/v1/worlds/import"
OPTIONAL_BODY = f"/api/v1/worlds/{NO_ONE}/duplicate"
WITH_BODY = [
    (route.method, path_of(route))
    for route in ROUTES
    if route.method in ("POST", "PUT", "PATCH") and route.path not in (*WITHOUT_BODY, IMPORT)
]


async def test_body_that_is_not_json_is_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    headers = {**account.headers, "Content-Type": "application/json"}
    for method, path in WITH_BODY:
        for body, code in [
            (b"", "empty_body"),
            (b"{", "malformed_json"),
            (b'{"name": "x"', "malformed_json"),
            (b'{"name": "\xff"}', "malformed_json"),
            (b'\xef\xbb\xbf{"name": "x"}', "malformed_json"),
            (b'{"name": NaN}', "malformed_json"),
            (b'{"name": -Infinity}', "malformed_json"),
            (b'{"name": "x", "name": "y"}', "malformed_json"),
            (b'{"name": "line\nbreak"}', "malformed_json"),
            (b"[" * 60_000, "malformed_json"),
            (b'{"name": ' + b"9" * 60_000 + b"}", "malformed_json"),
            ('{"name": "x"}'.encode("utf-16"), "malformed_json"),
        ]:
            if body or path != OPTIONAL_BODY:
                response = await client.request(method, path, headers=headers, data=body)
                await assert_problem(response, 400, code)


async def test_json_that_is_not_an_object_is_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    headers = {**account.headers, "Content-Type": "application/json"}
    for method, path in WITH_BODY:
        for document in ([], [{"name": "x"}], "text", 7, None, True):
            body = json.dumps(document)
            response = await client.request(method, path, headers=headers, data=body)
            problem = await assert_problem(response, 422, "invalid_fields")
            assert pointers(problem) == {"#"}


async def test_missing_required_fields_are_named(client: Client) -> None:
    account = await register_as(client, "admin")
    required = {
        path: {f"#/{name}" for name, field in body.fields.items() if field.required}
        for method, path in WITH_BODY
        for route in ROUTES
        if (route.method, path_of(route)) == (method, path)
        and (body := description_of(route.handler).body) is not None
    }
    assert required["/api/v1/auth/login"] == {"#/email", "#/password"}
    assert required["/api/v1/auth/register"] == {"#/email", "#/password"}
    assert required["/api/v1/auth/refresh"] == {"#/refresh_token"}
    assert required["/api/v1/users/me/email"] == {"#/email", "#/password"}
    for path, missing in required.items():
        if missing:
            response = await client.post(path, headers=account.headers, json={})
            assert pointers(await assert_problem(response, 422, "invalid_fields")) == missing


async def test_numbers_with_huge_exponents_are_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    headers = {**account.headers, "Content-Type": "application/json"}
    for method, path in WITH_BODY:
        for number in (b"1e9999999999999999999", b"-0e-9999999999999999999"):
            body = b'{"surprise": ' + number + b"}"
            response = await client.request(method, path, headers=headers, data=body)
            await assert_problem(response, 422, "invalid_fields")


async def test_unknown_fields_and_nul_are_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    for method, path in WITH_BODY:
        body = {"surprise": 1, "a/b~c": 2, "name": "nul\0"}
        response = await client.request(method, path, headers=account.headers, json=body)
        problem = await assert_problem(response, 422, "invalid_fields")
        expected = {"#/surprise", "#/a~1b~0c", "#/name"}
        assert expected <= pointers(problem)


CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
    "application/jsonp",
    "application/json-patch+json",
    "nonsense",
    "",
]


@pytest.mark.asvs("3.5.1")
async def test_other_content_types_are_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    for method, path in WITH_BODY:
        for content_type in CONTENT_TYPES:
            headers = {**account.headers, "If-Match": "*", "Content-Type": content_type}
            response = await client.request(method, path, headers=headers, data=b'{"name": "x"}')
            await assert_problem(response, 415, "unsupported_media_type")


async def test_oversized_body_is_rejected(client: Client) -> None:
    account = await register_as(client, "admin")
    headers = {**account.headers, "Content-Type": "application/json"}
    zipped = {**headers, "Content-Encoding": "gzip"}
    big = json.dumps({"name": "x" * 2_200_000}).encode()
    bomb = gzip.compress(b'{"name": "' + b"x" * 5_000_000 + b'"}')
    for method, path in WITH_BODY:
        response = await client.request(method, path, headers=headers, data=io.BytesIO(big))
        await assert_problem(response, 413, "content_too_large")
        response = await client.request(method, path, headers=zipped, data=io.BytesIO(bomb))
        await assert_problem(response, 413, "content_too_large")


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
