"""Requests as bytes, and their responses, on both of aiohttp's parsers (RFC 9110, RFC 9112).

To add a case, add a row to ``ROWS``.
"""

import asyncio
import gzip
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from aiohttp import http_parser, web_protocol

from tests.support.clients import Client
from tests.support.waiting import DEADLINE_S
from tests.support.wire import Wire, connected

PARSERS = {"C": "HttpRequestParserC", "Python": "HttpRequestParserPy"}


class Row(NamedTuple):
    """A request and its response: the status and problem code, and a text that it contains.

    With the parser in Python, the status and code are ``python``, if given. In ``sent``, TOKEN
    stands for the access token of a new account.
    """

    sent: bytes
    expected: str
    says: str = ""
    python: str = ""
    lacks: str = "a text in no response"


def raw(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body


def get(*fields: str, target: str = "/health/live", version: str = "HTTP/1.1") -> bytes:
    return raw(f"GET {target} {version}", "Host: localhost", *fields)


def method(name: str, target: str = "/health/live") -> bytes:
    return raw(f"{name} {target} HTTP/1.1", "Host: localhost")


def host(value: str) -> bytes:
    return raw("GET /health/live HTTP/1.1", f"Host: {value}")


def sign_in(*fields: str, body: bytes = b"{}", version: str = "HTTP/1.1") -> bytes:
    """Return a request whose body, if it can be read, is a 422 for its missing fields."""
    return raw(f"POST /api/v1/auth/login {version}", "Host: localhost", *fields, body=body)


def media(content_type: str, body: bytes = b"{}") -> bytes:
    return sign_in(f"Content-Type: {content_type}", f"Content-Length: {len(body)}", body=body)


def coded(coding: str, body: bytes = b"{}") -> bytes:
    return sign_in(JSON, f"Content-Length: {len(body)}", f"Content-Encoding: {coding}", body=body)


def length(*values: str) -> bytes:
    return sign_in(JSON, *(f"Content-Length: {value}" for value in values))


def chunked(coding: str = "chunked", body: bytes = b"2\r\n{}\r\n0\r\n\r\n") -> bytes:
    return sign_in(JSON, f"Transfer-Encoding: {coding}", body=body)


def page(accept_encoding: str) -> bytes:
    return get(f"Accept-Encoding: {accept_encoding}", target="/docs/page.css")


def me(*fields: str) -> bytes:
    return get("Authorization: Bearer TOKEN", *fields, target="/api/v1/users/me")


JSON = "Content-Type: application/json"
GZIPPED, DEFLATED = gzip.compress(b"{}", mtime=0), zlib.compress(b"{}")
# A body of a few bytes, in just more than 512 KiB with its extensions.
EXTENDED = (b"1;" + b"a" * 7000 + b"\r\n \r\n") * 75 + b"2\r\n{}\r\n0\r\n\r\n"
BOMB = gzip.compress(b'"' + b"x" * 60_000 + b'"', mtime=0)
INVALID = "400 malformed_request"
READ, BROKEN = "422 invalid_fields", "400 malformed_body"
MEDIA, CODING = "415 unsupported_media_type", "415 unsupported_content_encoding"
TARGET, LINE, FIELD = "Send a path", "Start with a line such as", "Send each header"
LENGTH, FINAL = "Content-Length", "chunked"
UNKNOWN, VERSION = "501 method_not_implemented", "505 http_version_not_supported"
TE = "501 transfer_coding_not_implemented"
TOO_LARGE = "431 headers_too_large"
GZIP = "Content-Encoding: gzip"

ROWS = (
    # Host: RFC 9112 section 3.2, RFC 3986 section 3.2.2
    *(
        Row(host(valid), "200")
        for valid in (
            *("localhost", "LOCALHOST", "localhost:8080", "localhost:", "my_service", "a%41"),
            *("192.0.2.1", "[::1]", "[::1]:8080", "[2001:db8::1]", "[v1.x]", "a.example."),
        )
    ),
    *(
        Row(host(invalid), INVALID, "Host")
        for invalid in (
            *("", "a b", "a/b", "a,b", "a@b", "a?b", "a#b", "a:b", "a:80:80", "http://a", "a\\b"),
            *("::1", "[::1", "::1]", "[::1]x", "[x]", "[1]", "a%zz", "a%4", "\xe4", "<a>", ":80"),
        )
    ),
    Row(raw("GET /health/live HTTP/1.1"), INVALID, "Send one Host header"),
    Row(raw("GET /health/live HTTP/1.1", "Host: a", "Host: a"), INVALID, "Send one Host header"),
    Row(raw("GET /health/live HTTP/1.0"), "200"),
    Row(raw("GET /health/live HTTP/1.0", "Host: a b"), INVALID, "Host"),
    # Targets: RFC 9112 section 3.2
    Row(get(target="http://other.example/health/live"), "200"),
    Row(get(target="HTTPS://[::1]:8443/health/live?a"), "200"),
    Row(raw("GET http://a/health/live HTTP/1.1"), INVALID, "Send one Host header"),
    Row(raw("GET http://a/health/live HTTP/1.1", "Host: a b"), INVALID, "Host"),
    *(
        Row(get(target=invalid), INVALID, TARGET)
        for invalid in (
            *("health/live", "*", "http:/health/live", "http:///health/live", "http://a:b/", "?"),
            *("http://user@a/health/live", "ftp://a/health/live", "/health/live#part"),
            *("/health/live?\xe4", "/health/\xc3\xa4"),
        )
    ),
    Row(get(target="/%zz"), "404 not_found"),
    Row(get(target="/health/live?" + "x" * 8000), "200"),
    Row(get(target="/?" + "x" * 9000), "414 target_too_long", "8190 bytes"),
    Row(get(target="/?" + "x" * 90_000), "414 target_too_long", "8190 bytes"),
    Row(get(target="http://a/?" + "x" * 9000), "414 target_too_long"),
    # Methods: RFC 9110 section 9.1. The parser in Python converts methods to upper case.
    Row(method("HEAD"), "200"),
    Row(method("DELETE"), "405 method_not_allowed", "Allow: GET,HEAD"),
    Row(method("OPTIONS"), "405 method_not_allowed", "Allow: GET,HEAD"),
    Row(method("TRACE"), "405 method_not_allowed", "Allow: GET,HEAD"),
    Row(method("DELETE", "/nothing"), "404 not_found"),
    Row(method("OPTIONS", "*"), "200", "Allow: GET, HEAD, POST, PUT, PATCH, DELETE"),
    *(Row(method(name), UNKNOWN, "PATCH") for name in ("PROPFIND", "QUERY", "BREW", "GETS", "G'S")),
    Row(method("BREW", "/nothing"), UNKNOWN),
    Row(method("get"), UNKNOWN, "upper case", python="200"),
    Row(method("CONNECT", "localhost:443"), UNKNOWN),
    # Versions: RFC 9110 section 2.5. The parser in Python takes a line without one for no request.
    Row(raw("GET /health/live HTTP/1.0", "Host: a"), "200"),
    *(Row(get(version=f"HTTP/{n}"), VERSION) for n in ("0.9", "1.2", "1.9", "2.0", "3.0")),
    Row(raw("PRI * HTTP/2.0", body=b"SM\r\n\r\n"), VERSION, python=INVALID),
    Row(raw("GET /health/live"), VERSION, python=INVALID),
    # Request lines: RFC 9112 section 3. The parser in C takes several spaces for one.
    *(Row(get(version=other), INVALID, LINE) for other in ("http/1.1", "HTTP/1.10", "HTTP/1", "x")),
    Row(raw("GET\t/health/live HTTP/1.1", "Host: a"), INVALID, LINE),
    Row(raw("GET  /health/live HTTP/1.1", "Host: a"), "200", python=INVALID),
    Row(raw("G(T /health/live HTTP/1.1", "Host: a"), INVALID, LINE),
    Row(raw("nonsense"), INVALID, LINE),
    Row(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", INVALID, "without TLS"),
    Row(b"GET /health/live HTTP/1.1\nHost: a\n\n", INVALID, "CR LF"),
    Row(b"\r\n" + get(), "200"),
    # Header fields: RFC 9112 section 5, RFC 9110 section 5.5
    *(
        Row(get(invalid), INVALID, FIELD)
        for invalid in (
            *("A : b", " A: b", "A: b\r\n c", "A: b\r\n\tc", "A: b\rc", "A: b\0c", "A: b\x01c"),
            *("abc", ": b", "a(b: c", "\xe4: b", "A: b\x7fc"),
        )
    ),
    Row(get("A: \xe4"), "200"),
    Row(get("A:b", "A:", "A:\t b \t"), "200"),
    Row(get("Cookie: " + "x" * 8000), "200"),
    Row(get("Cookie: " + "x" * 9000), TOO_LARGE, "8192 bytes"),
    Row(get("Cookie: /" + "x" * 90_000), TOO_LARGE, "8192 bytes"),
    Row(get("x" * 9000 + ": a"), TOO_LARGE, "8192 bytes"),
    Row(get()[:-2] + b"Cookie: " + b"x" * 9000, TOO_LARGE, "8192 bytes"),
    Row(get(*("A: b" for _ in range(140))), TOO_LARGE, "128 headers"),
    Row(
        get(*(f"A{n}: {'a' * 8000}" for n in range(3)), target="/health/live?" + "x" * 8000), "200"
    ),
    Row(get(*(f"A{n}: {'a' * 8000}" for n in range(5))), TOO_LARGE, "32768 bytes"),
    Row(get(*(f"Expect: {',' * 8000}" for _ in range(5)), target="/nothing"), TOO_LARGE, "32768"),
    # Lists: RFC 9110 section 5.6.1 asks for "a reasonable number of empty list elements".
    Row(page("br," * 99 + "gzip"), "200", GZIP),
    Row(page("br," * 100 + "gzip"), TOO_LARGE, "more than 100 elements"),
    Row(coded("," * 100), TOO_LARGE, "Content-Encoding"),
    Row(chunked("," * 100 + "chunked"), TOO_LARGE, "Transfer-Encoding"),
    Row(me("If-Match: " + '"1",' * 100), TOO_LARGE, "If-Match"),
    Row(get("User-Agent: a", "User-Agent: b"), INVALID, "Send one User-Agent header"),
    *(
        Row(get(f"{name}: a", f"{name}: a"), INVALID, f"Send one {name} header")
        for name in ("Authorization", "Idempotency-Key", "Content-Type")
    ),
    # The length of a body: RFC 9112 section 6.3, RFC 9110 section 8.6
    Row(length("2"), READ),
    Row(length("2", "2"), INVALID, "Send one Content-Length header"),
    Row(length("2", "3"), INVALID, "Send one Content-Length header"),
    *(Row(length(n), INVALID, LENGTH) for n in ("+2", "-2", "0x2", "2, 2", "2 2", "2.0", "", "x")),
    Row(length("65537"), "413 content_too_large", "Connection: close"),
    # It exceeds the 64 bits of the parser in C.
    Row(length("9" * 30), INVALID, LENGTH, python="413 content_too_large"),
    Row(get("Content-Length: 2", "A: b") + b"{}", "200"),
    # Transfer codings: RFC 9112 sections 6.1 and 7
    *(Row(chunked(valid), READ) for valid in ("chunked", "Chunked", " chunked ", ", chunked")),
    # The parser in C does not take a tab for a space here.
    Row(chunked("chunked\t"), INVALID, FINAL, python=READ),
    *(Row(chunked(c), TE, "Connection: close") for c in ("x, chunked", "gzip, chunked")),
    Row(chunked("chunked, chunked"), INVALID, FINAL),
    *(Row(chunked(c), INVALID, FINAL) for c in ("x", "identity", "chunked, x", "chunked;a=b")),
    *(Row(chunked(c), INVALID, FINAL) for c in ("chunked,", '"chunked"', "xchunked")),
    # The parser in C takes it for no Transfer-Encoding, and the body for a second request.
    Row(chunked(""), INVALID),
    Row(chunked("gzip\r\nTransfer-Encoding: chunked"), INVALID, "one Transfer-Encoding header"),
    Row(chunked("chunked\r\nContent-Length: 2"), INVALID, "not both"),
    Row(
        sign_in(JSON, "Transfer-Encoding: chunked", body=b"0\r\n\r\n", version="HTTP/1.0"),
        INVALID,
        "HTTP/1.0",
    ),
    Row(chunked(body=b"2;a=b;c\r\n{}\r\n0\r\nA: b\r\n\r\n"), READ),
    Row(chunked(body=b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), READ),
    *(
        Row(chunked(body=invalid), INVALID, "chunk")
        for invalid in (
            *(b"x\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n"),
            *(b"2\r\n{}x\r\n0\r\n\r\n", b"2\n{}\n0\n\n", b"+2\r\n{}\r\n0\r\n\r\n"),
        )
    ),
    Row(chunked(body=b"2\r\n{}\r\n0\r\nA b\r\n\r\n"), INVALID, FIELD),
    # Extensions and framing count: more than 8 bytes for each byte of the largest body.
    Row(chunked(body=EXTENDED), "413 content_too_large", "chunk"),
    # Expectations: RFC 9110 section 10.1.1
    *(
        Row(sign_in(JSON, "Content-Length: 2", f"Expect: {valid}"), READ)
        for valid in ("100-continue", "100-Continue", "")
    ),
    *(
        Row(sign_in(JSON, "Content-Length: 2", f"Expect: {unknown}"), "417 expectation_failed")
        for unknown in ("the-unexpected", "100-continue, x", "100-continue\r\nExpect: x")
    ),
    Row(get("Expect: x", target="/nothing"), "417 expectation_failed", "100-continue"),
    Row(sign_in(JSON, "Content-Length: 2", "Expect: 100-continue", version="HTTP/1.0"), READ),
    # Media types and charsets: RFC 9110 section 8.3, RFC 8259 section 11
    *(
        Row(media(f"application/json{parameters}"), READ)
        for parameters in (
            *("", ";", ";charset=utf-8", "; charset=UTF-8", "; charset=utf8", "; charset=UTF8"),
            *('; charset="utf-8"', '; a="b;c"', '; a="b"; charset=utf8', " ; Charset=Utf-8"),
        )
    ),
    Row(media("Application/JSON"), READ),
    *(
        Row(media(other), MEDIA, "Accept: application/json")
        for other in (
            *("application/json; charset=latin1", "application/json; charset=utf-16"),
            *("text/json", "text/plain", "application/jsonp", "application/json, text/plain", ""),
            *("application/x-www-form-urlencoded", "json", "*/*"),
        )
    ),
    Row(sign_in("Content-Length: 2"), MEDIA),
    Row(media("application/merge-patch+json"), MEDIA),
    Row(media("application/json\r\nContent-Type: text/json"), INVALID, "one Content-Type header"),
    Row(media("application/json", "{}".encode("utf-16")), "400 malformed_json", "UTF-8"),
    Row(media("application/json", b"\xef\xbb\xbf{}"), "400 malformed_json"),
    # Content codings: RFC 9110 section 8.4
    *(Row(coded(c, GZIPPED), READ) for c in ("gzip", "GZIP", "x-gzip", "gzip, identity", "gzip,")),
    *(Row(coded(c), READ) for c in ("", ",", "identity", "Identity", "identity, identity")),
    Row(coded("identity\r\nContent-Encoding: gzip", GZIPPED), READ),
    Row(coded("deflate", DEFLATED), READ),
    Row(coded("deflate", DEFLATED[2:-4]), READ),
    *(
        Row(coded(other, GZIPPED), CODING, "Accept-Encoding: gzip, deflate")
        for other in ("br", "zstd", "compress", "aws-chunked", "gzip, gzip", "gzip, deflate", "*")
    ),
    Row(get("Content-Encoding: br"), "200"),
    Row(coded("br", b""), "400 empty_body"),
    *(
        Row(coded("gzip", broken), BROKEN, "gzip")
        for broken in (b"{}", GZIPPED[:-4], GZIPPED[:5], GZIPPED + b"x", GZIPPED[:-1] + b"\1")
    ),
    *(Row(coded("deflate", broken), BROKEN, "deflate") for broken in (GZIPPED, DEFLATED + b"x")),
    Row(coded("gzip", gzip.compress(b"{") + gzip.compress(b"}")), READ),
    Row(coded("gzip", GZIPPED + gzip.compress(b"") * 15), READ),
    Row(
        coded("gzip", GZIPPED + gzip.compress(b"") * 16),
        "413 content_too_large",
        "more than 16 members",
    ),
    Row(coded("gzip", BOMB), "413 content_too_large", "compressed too much"),
    # Accept-Encoding: RFC 9110 section 12.5.3
    *(
        Row(page(accepted), "200", GZIP)
        for accepted in (
            *("gzip", "GZip", "x-gzip", "br, gzip", "gzip;q=0.5", "gzip ; Q=0.001", "*", "*;q=0.1"),
            *("identity;q=0.5, gzip", "identity;q=0, *", "gzip;q=1.0, identity;q=1.0", ",gzip,"),
        )
    ),
    *(
        Row(page(accepted), "200", lacks=GZIP)
        for accepted in (
            *("", "identity", "br", "gzip;q=0", "gzip;q=0.000", "gzip;q=0, *", "*;q=0", "notgzip"),
            *("identity, gzip;q=0.5", "gzip;q=x", "gzip;q=2", "gzipped", "*;q=0.5, identity"),
        )
    ),
    # Conditional requests: RFC 9110 section 13
    Row(get("If-None-Match: *", target="/openapi.json"), "304"),
    Row(get('If-None-Match: "other"', target="/openapi.json"), "200"),
    Row(me('If-None-Match: "1"'), "304", 'ETag: "1"'),
    Row(me('If-None-Match: W/"1"'), "304"),
    Row(me('If-None-Match: "2"', 'If-None-Match: "1"'), "304"),
    Row(me('If-None-Match: "2", W/"3"'), "200"),
    Row(me("If-None-Match: 1"), "200"),
    Row(me("If-None-Match: " + '"1",' * 100), "200"),
    Row(me("If-Match: 1"), "400 invalid_etag", "If-Match"),
    Row(me('If-Match: "1"'), "200"),
    Row(me('If-Match: "2"'), "412 precondition_failed"),
    Row(me('If-Match: W/"1"'), "412 precondition_failed", "weak"),
    # Fields that matter to others
    Row(get("Connection: upgrade", "Upgrade: websocket"), "200"),
    Row(get("Connection: upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"), "200"),
    Row(me(), "200", 'ETag: "1"'),
)


def choose_parser(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let aiohttp use this parser; on machines without its extension, always that in Python."""
    monkeypatch.setattr(web_protocol, "HttpRequestParser", getattr(http_parser, PARSERS[name]))
    return name


async def send_parts(wire: Wire, parts: Sequence[bytes]) -> None:
    """Send the parts one after the other, until the service closes the connection."""
    for part in parts:
        if wire.writer.transport.is_closing():
            break
        wire.writer.write(part)
        # The service, in the same event loop, reads what has arrived.
        for _ in range(3):
            await asyncio.sleep(0)


async def receive(client: Client, *parts: bytes) -> tuple[str, str]:
    """Send the bytes, in parts; return the head and the body of the final response."""
    async with asyncio.timeout(DEADLINE_S), connected(client) as wire:
        await send_parts(wire, parts)
        head = "HTTP/1.1 100 "
        while head.startswith("HTTP/1.1 100 "):
            head = (await wire.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"^Content-Length: (\d+)", head, re.MULTILINE)
        size = int(length[1]) if length and not b"".join(parts).startswith(b"HEAD ") else 0
        return head, (await wire.reader.readexactly(size)).decode("latin-1")
