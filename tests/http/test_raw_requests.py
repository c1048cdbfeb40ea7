"""Requests as bytes: the table in ``tests/support/raw_requests.py``, and bodies that arrive late."""

import asyncio
import re

import orjson
import pytest
from aiohttp import EMPTY_PAYLOAD
from aiohttp.test_utils import make_mocked_request

from service.http.receiving import Receiving
from tests.support.clients import Client, StartApp
from tests.support.factories import register
from tests.support.logbook import logged
from tests.support.raw_requests import (
    JSON,
    PARSERS,
    ROWS,
    Row,
    choose_parser,
    chunked,
    get,
    method,
    receive,
    sign_in,
)
from tests.support.waiting import DEADLINE_S
from tests.support.wire import connected

PHRASES = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose_parser(request.param, monkeypatch)


def find_faults(row: Row, parser: str, head: str, body: str) -> list[str]:
    """List where a response is not that of the row."""
    expected = row.python if parser == "Python" and row.python else row.expected
    status, _, code = expected.partition(" ")
    phrase = PHRASES[int(status)]
    faults = []
    # aiohttp repeats the version of a valid request.
    if not re.match(
        f"HTTP/1.{'[01]' if b' HTTP/1.0' in row.sent else '1'} {status} {phrase}\r", head
    ):
        faults.append(head.partition("\r")[0])
    if code:
        is_problem = "\r\nContent-Type: application/problem+json\r\n" in head
        problem = orjson.loads(body) if is_problem else {}
        shown = [problem.get(name) for name in ("status", "code", "title")]
        if shown != [int(status), code, phrase]:
            faults.append(f"{shown} {problem.get('detail')}")
        if f"\r\nX-Request-ID: {problem.get('request_id')}\r\n" not in head:
            faults.append("another request id")
    if expected == row.expected and row.says not in head + body:
        faults.append(f"no {row.says!r} in {body[:200]}")
    if row.lacks in head:
        faults.append(row.lacks)
    return faults


async def test_response_to_each_request_is_as_listed(client: Client, parser: str) -> None:
    account = await register(client)
    token = account.tokens["access_token"].encode()
    wrong = []
    for row in ROWS:
        try:
            head, body = await receive(client, row.sent.replace(b"TOKEN", token))
        except (TimeoutError, EOFError, ConnectionError) as error:
            faults = [type(error).__name__]
        else:
            faults = find_faults(row, parser, head, body)
        if faults:
            wrong.append(f"{row.sent[:160]!r}, expected {row.expected}: {'; '.join(faults)}")
    assert not wrong, "\n".join(wrong)


async def test_invalid_chunks_that_arrive_later_are_rejected(
    start_app: StartApp, parser: str
) -> None:
    """The parser in C does not tell the reader, which waits for the rest of the body."""
    client = await start_app(body_timeout_s=0.2 if parser == "C" else DEADLINE_S)
    async with connected(client) as wire:
        wire.writer.write(chunked("chunked\r\nExpect: 100-continue", body=b""))
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.writer.write(b"x\r\n{}\r\n0\r\n\r\n")
        received = await wire.reader.readuntil(b"}")
    code = b"body_timeout" if parser == "C" else b"malformed_body"
    assert b'"code":"' + code in received


async def test_body_that_is_too_large_is_not_asked_for(start_app: StartApp, parser: str) -> None:
    client = await start_app()
    async with asyncio.timeout(DEADLINE_S), connected(client) as wire:
        wire.writer.write(sign_in(JSON, "Content-Length: 65537", "Expect: 100-continue"))
        head = await wire.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_pipelined_requests_do_not_count_as_part_of_a_body() -> None:
    receiving = Receiving(make_mocked_request("POST", "/", payload=EMPTY_PAYLOAD), 60)
    receiving.count(get())
    assert receiving.sent_bytes == 0


async def test_mistakes_of_clients_in_http_are_not_logged_as_warnings(client: Client) -> None:
    with logged() as events:
        for sent in (method("PROPFIND"), get(version="HTTP/2.0"), chunked("x, chunked")):
            await receive(client, sent)
    assert [(event["status"], event["level"]) for event in events] == [
        (501, "info"),
        (505, "debug"),
        (501, "info"),
    ]
