"""Raw connections: smuggled requests, pipelines and fragments, on both of aiohttp's parsers.

``tests/http/test_raw_requests.py`` has the responses to single requests.
"""

import asyncio
import random
import re

import pytest

from tests.support.attacks import report
from tests.support.clients import Client
from tests.support.factories import register
from tests.support.raw_requests import (
    GZIPPED,
    JSON,
    PARSERS,
    ROWS,
    choose_parser,
    chunked,
    coded,
    get,
    length,
    method,
    raw,
    receive,
    send_parts,
    sign_in,
)
from tests.support.waiting import DEADLINE_S
from tests.support.wire import connected

# A second request that is found only if the first one ends where a lenient parser thinks.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = get("Connection: close")
STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9]) ")


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose_parser(request.param, monkeypatch)


async def exchange(client: Client, *parts: bytes) -> bytes:
    """Send the parts one after the other; return all that is received until the end."""
    # Before KEEPALIVE_TIMEOUT_S would end it.
    async with asyncio.timeout(DEADLINE_S / 2), connected(client) as wire:
        await send_parts(wire, parts)
        return await wire.reader.read()


async def exchange_in_turn(client: Client, first: bytes, rest: bytes) -> bytes:
    """Send the rest once the head of the first response has arrived; return all that is received."""
    async with asyncio.timeout(DEADLINE_S / 2), connected(client) as wire:
        wire.writer.write(first)
        head = await wire.reader.readuntil(b"\r\n\r\n")
        await send_parts(wire, [rest])
        return head + await wire.reader.read()


def statuses(received: bytes) -> list[int]:
    """Return the status of each response. No body here has such a line."""
    return [int(found) for found in STATUS.findall(received)]


async def test_nothing_after_a_refused_head_is_answered(client: Client, parser: str) -> None:
    """A request whose end is unknown is the last one of its connection."""
    token = (await register(client)).tokens["access_token"].encode()
    wrong: list[str] = []
    count = 0
    for row in ROWS:
        sent = row.sent.replace(b"TOKEN", token)
        expected = row.python if parser == "Python" and row.python else row.expected
        if not expected.endswith(("malformed_request", "_not_implemented", "_not_supported")):
            continue
        if sent.startswith(b"CONNECT"):
            continue  # What follows is no request, and the parser in Python waits for more of it.
        count += 1
        try:
            found = statuses(await exchange(client, sent + SMUGGLED))
        except (TimeoutError, ConnectionError) as error:
            wrong.append(f"{row.sent[:160]!r}: {type(error).__name__}")
            continue
        # With more bytes after it, the parser in C calls another version a malformed line.
        if found not in ([int(expected[:3])], [400]):
            wrong.append(f"{row.sent[:160]!r}: {found}")
    report(wrong, count, 95)


def both_lengths(*fields: str) -> bytes:
    """Return a request whose body ends early by one header, and has a second one by the other."""
    body = b"0\r\n\r\n" + SMUGGLED
    return sign_in(JSON, *(field.format(len(body)) for field in fields), body=body)


# Headers with which a proxy and a server may disagree about the length of a body.
DISAGREEING = {
    "length, then chunked": ("Content-Length: {}", "Transfer-Encoding: chunked"),
    "chunked, then length": ("Transfer-Encoding: chunked", "Content-Length: {}"),
    "length 0 and chunked": ("Content-Length: 0", "Transfer-Encoding: chunked"),
    "length of the chunk": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "capitals": ("CONTENT-LENGTH: {}", "TRANSFER-ENCODING: CHUNKED"),
    "two codings": ("Content-Length: {}", "Transfer-Encoding: x, chunked"),
    "coding twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "coding and identity": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "identity and coding": ("Transfer-Encoding: identity", "Transfer-Encoding: chunked"),
    "chunked, identity": ("Transfer-Encoding: chunked, identity",),
    "identity with a length": ("Transfer-Encoding: identity", "Content-Length: {}"),
    "space before the colon": ("Content-Length: {}", "Transfer-Encoding : chunked"),
    "tab before the colon": ("Content-Length: {}", "Transfer-Encoding\t: chunked"),
    "space before the name": ("Content-Length: {}", " Transfer-Encoding: chunked"),
    "vertical tab": ("Content-Length: {}", "Transfer-Encoding: \x0bchunked"),
    "form feed": ("Content-Length: {}", "Transfer-Encoding: chunked\x0c"),
    "NUL": ("Content-Length: {}", "Transfer-Encoding: \0chunked"),
    "delete": ("Content-Length: {}", "Transfer-Encoding: chunked\x7f"),
    "line feed before": ("Content-Length: {}", "A: b\nTransfer-Encoding: chunked"),
    "return before": ("Content-Length: {}", "A: b\rTransfer-Encoding: chunked"),
    "folded": ("Content-Length: {}", "Transfer-Encoding:\r\n chunked"),
    "folded length": ("Content-Length:\r\n {}", "Transfer-Encoding: chunked"),
    "quotes": ("Content-Length: {}", 'Transfer-Encoding: "chunked"'),
    "parameter": ("Content-Length: {}", "Transfer-Encoding: chunked;a=b"),
    "comma after": ("Content-Length: {}", "Transfer-Encoding: chunked,"),
    "other word": ("Content-Length: {}", "Transfer-Encoding: xchunked"),
    "letter that folds": ("Content-Length: {}", "Transfer-Encoding: chun\xe9ked"),
    "empty coding": ("Content-Length: {}", "Transfer-Encoding:"),
    "two lengths": ("Content-Length: 5", "Content-Length: {}"),
    "two lengths, turned round": ("Content-Length: {}", "Content-Length: 5"),
    "same length twice": ("Content-Length: {}", "Content-Length: {}"),
    "list of lengths": ("Content-Length: 5, {}",),
    "list of the same": ("Content-Length: {0}, {0}",),
    "plus": ("Content-Length: +5",),
    "minus": ("Content-Length: -5",),
    "hexadecimal": ("Content-Length: 0x5",),
    "fraction": ("Content-Length: 5.0",),
    "exponent": ("Content-Length: 5e0",),
    "underscore": ("Content-Length: 0_5",),
    "other digits": ("Content-Length: \xb2",),
    "space within": ("Content-Length: 0 5",),
    "length and a letter": ("Content-Length: 5x",),
    "space before the colon of a length": ("Content-Length : 5",),
    "length in quotes": ('Content-Length: "5"',),
    "no digits": ("Content-Length: ",),
}


async def test_disagreement_about_the_length_of_a_body_smuggles_no_request(
    client: Client, parser: str
) -> None:
    """Nothing but one refusal is sent, and the connection ends."""
    wrong: list[str] = []
    for name, fields in DISAGREEING.items():
        received = await exchange(client, both_lengths(*fields))
        found = statuses(received)
        if (
            len(found) != 1
            or found[0] not in (400, 413, 501)
            or b"\r\nConnection: close" not in received
        ):
            wrong.append(f"{name}: {found} {received[:300]!r}")
    report(wrong, len(DISAGREEING), 44)
    # Each of the two alone is clear: the second request is seen in one and is body in the other.
    assert statuses(await exchange(client, both_lengths("Content-Length: {}") + LAST)) == [400, 200]
    assert statuses(await exchange(client, both_lengths("Transfer-Encoding: chunked") + LAST)) == [
        400,
        404,
        200,
    ]


# Chunks of which a lenient parser would find another end.
CHUNKS = {
    "negative size": b"-1\r\n{}\r\n0\r\n\r\n",
    "prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "plus": b"+2\r\n{}\r\n0\r\n\r\n",
    "space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "underscore": b"0_2\r\n{}\r\n0\r\n\r\n",
    "no hexadecimal": b"2g\r\n{}\r\n0\r\n\r\n",
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "size too small": b"1\r\n{}\r\n0\r\n\r\n",
    "line feeds": b"2\n{}\n0\n\n",
    "line feed after the size": b"2\n{}\r\n0\r\n\r\n",
    "line feed after the data": b"2\r\n{}\n0\r\n\r\n",
    "return alone": b"2\r{}\r0\r\r",
    "line feed in an extension": b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "NUL": b"2\0\r\n{}\r\n0\r\n\r\n",
    "other digits": "\u0662\r\n{}\r\n0\r\n\r\n".encode(),
    "trailer without a colon": b"2\r\n{}\r\n0\r\nabc\r\n\r\n",
    "trailer with a line feed": b"2\r\n{}\r\n0\r\nA: b\nC: d\r\n\r\n",
}


async def test_malformed_chunks_smuggle_no_request(client: Client, parser: str) -> None:
    wrong: list[str] = []
    for name, body in CHUNKS.items():
        received = await exchange(client, chunked(body=body + SMUGGLED))
        found = statuses(received)
        if found not in ([400], [413]):
            wrong.append(f"{name}: {found} {received[:200]!r}")
    report(wrong, len(CHUNKS), 17)
    valid = chunked(body=b"2;a=b\r\n{}\r\n0\r\nA: b\r\n\r\n") + SMUGGLED + LAST
    assert statuses(await exchange(client, valid)) == [422, 404, 200]


READ = 422
PIPELINES: dict[str, tuple[list[bytes], list[int]]] = {
    "two": ([get(), LAST], [200, 200]),
    "a hundred": ([get()] * 99 + [LAST], [200] * 100),
    "body with a length": ([length("2"), LAST], [READ, 200]),
    "body in chunks": ([chunked(), LAST], [READ, 200]),
    "compressed body": ([coded("gzip", GZIPPED), LAST], [READ, 200]),
    "bodies of both kinds": ([length("2"), chunked(), length("2"), LAST], [READ] * 3 + [200]),
    "body to a GET": ([get("Content-Length: 2") + b"{}", LAST], [200, 200]),
    "HEAD": ([method("HEAD"), LAST], [200, 200]),
    "unknown paths": ([method("GET", "/a"), method("DELETE", "/b"), LAST], [404, 404, 200]),
    "refused body": ([coded("br"), LAST], [415, 200]),
    "empty lines between": ([get(), b"\r\n", LAST], [200, 200]),
}
# Requests of which the second ends the connection, so that the third is not answered.
ENDING: dict[str, tuple[bytes, int]] = {
    "close": (LAST, 200),
    "HTTP/1.0": (get(version="HTTP/1.0"), 200),
    "no Host": (raw("GET / HTTP/1.1"), 400),
    "two hosts": (get("Host: a"), 400),
    "space in a name": (get("A : b"), 400),
    "unknown method": (method("BREW"), 501),
    "other version": (get(version="HTTP/3.0"), 505),
    "line feeds": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "both lengths": (chunked("chunked\r\nContent-Length: 2"), 400),
    "unknown coding": (chunked("x, chunked"), 501),
    "nonsense": (b"nonsense\r\n\r\n", 400),
    "header that is too long": (get("Cookie: " + "x" * 9000), 431),
    "unknown expectation": (get("Expect: x"), 417),
}


def pieces(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


@pytest.mark.parametrize("size", [1_000_000, 7, 1], ids=["at once", "in sevens", "byte by byte"])
async def test_pipelined_requests_are_answered_in_turn(
    client: Client, parser: str, size: int
) -> None:
    """However they are cut into packets."""
    wrong: list[str] = []
    for name, (requests, expected) in PIPELINES.items():
        found = statuses(await exchange(client, *pieces(b"".join(requests), size)))
        if found != expected:
            wrong.append(f"{name}: {found}")
    report(wrong, len(PIPELINES), 11)


async def test_nothing_is_answered_after_a_request_that_ends_the_connection(
    client: Client, parser: str
) -> None:
    """The parsers drop valid requests that arrive in one packet with a malformed one, so that the
    refusal is the only response, and none of the requests is carried out."""
    wrong: list[str] = []
    for name, (ending, status) in ENDING.items():
        whole = get() + ending + SMUGGLED
        found = statuses(await exchange(client, whole))
        if found not in ([200, status], [status], [400]):
            wrong.append(f"{name}, at once: {found}")
        found = statuses(await exchange_in_turn(client, get(), ending + SMUGGLED))
        if found not in ([200, status], [200, 400]):
            wrong.append(f"{name}, one by one: {found}")
    report(wrong, len(ENDING), 13)


# The service responds and closes as soon as it sees these, so the rest may meet a reset.
AT_ONCE = ("malformed_request", "implemented", "supported", "too_large", "too_long")


async def test_request_in_fragments_gets_the_same_response(client: Client, parser: str) -> None:
    """Heads cut anywhere, and valid requests with their bodies, in three parts."""
    token = (await register(client)).tokens["access_token"].encode()
    wrong: list[str] = []
    count = 0
    for row in ROWS:
        expected = row.python if parser == "Python" and row.python else row.expected
        if expected.endswith(AT_ONCE):
            continue
        count += 1
        sent = row.sent.replace(b"TOKEN", token)
        one, two = sorted(random.sample(range(1, len(sent)), 2))
        try:
            head, _ = await receive(client, sent[:one], sent[one:two], sent[two:])
        except (TimeoutError, EOFError, ConnectionError) as error:
            head = type(error).__name__
        if not re.match(rf"HTTP/1\.[01] {expected[:3]} ", head):
            wrong.append(f"{sent[:160]!r}, cut at {one} and {two}: {head[:40]}, not {expected}")
    report(wrong, count, 120)
