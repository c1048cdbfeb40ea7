"""The head of a request: what makes it invalid (RFC 9110, RFC 9112), and how clients are told.

aiohttp has two parsers, in C and in Python, which reject different requests. What either accepts
by mistake is checked here. ``tests/support/raw_requests.py`` lists the differences that remain.
"""

import functools
import ipaddress
import itertools
import re

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
    TransferEncodingError,
)
from multidict import istr

from service.http.problems import (
    EXPECTATION_FAILED,
    HEADERS_TOO_LARGE,
    HTTP_VERSION_NOT_SUPPORTED,
    MALFORMED_REQUEST,
    METHOD_NOT_IMPLEMENTED,
    TARGET_TOO_LONG,
    TRANSFER_CODING_NOT_IMPLEMENTED,
    Problem,
)

# The two differ because only the limit in aiohttp's error tells which line is too long.
TARGET_MAX_BYTES = 8190
HEADER_MAX_BYTES = 8192
HEADERS_MAX = 128
# The target and all headers, which the parsers do not limit together.
HEAD_MAX_BYTES = 32 * 1024
# More than any client sends in one list, empty elements included (RFC 9110 §5.6.1).
ELEMENTS_MAX = 100

# Those of RFC 9110, without CONNECT, and PATCH. The rest are unknown on any path.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"))
# The parsers know most of the headers that may not be repeated, but not these.
_ONCE = (hdrs.AUTHORIZATION, istr("Idempotency-Key"))
_PATH = re.compile(r"/[!\"$-~]*|\*")
_URL = re.compile(r"https?://([^/?]*)[!\"$-~]*", re.IGNORECASE)
# uri-host [":" port] (RFC 9110 §7.2, RFC 3986 §3.2.2), but neither empty nor with commas, which
# would mean that several were combined.
_HOST = re.compile(
    r"(?:(?:[a-z0-9._~!$&'()*+;=-]|%[0-9a-f]{2})+"
    r"|\[(?:(?P<ipv6>[0-9a-f:.]+)|v[0-9a-f]+\.[a-z0-9._~!$&'()*+,;=:-]+)\])(?::[0-9]*)?",
    re.IGNORECASE | re.ASCII,
)
# How the parser in C reports a method that it does not know, if the line is otherwise valid.
_UNKNOWN_METHOD = re.compile(
    r"(?:Invalid method encountered|Expected space after method):\n\n"
    r"  b(?:'[!#$%&*+.^_`|~0-9A-Za-z-]+|\"[!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/1\.[01]['\"]\n"
)
_OTHER_VERSION = re.compile("Invalid HTTP version|Pause on PRI")
_NOT_ONE = re.compile(r"(?:Missing '|Duplicate '?)([A-Za-z-]+)")
_FIELD_START = re.compile(rb"[^\s:/]+:(?!//)")

_BAD_LINE = "Start with a line such as 'GET /health HTTP/1.1', and end each line with CR LF."
_BAD_TARGET = "Send a path such as /health, percent-encoded in ASCII, as the request target."
_BAD_HOST = "The Host header must be a host name or IP, with or without a port."
_BAD_LENGTH = "Content-Length must be a whole number of bytes, in digits."
_BAD_FIELD = "Send each header as 'Name: value' on a line of its own, without control characters."
_BAD_CHUNKS = "The chunked body is invalid. Send the size of each chunk in hexadecimal, and CR LF."
_NOT_CHUNKED = "The last transfer coding must be chunked. Send it alone, or Content-Length."
# Parts of the reasons that the parsers give, and what to tell the client.
_DETAILS = {
    "can't be present with": "Send Content-Length or Transfer-Encoding, not both.",
    "Transfer-Encoding`": _NOT_CHUNKED,
    "Content-Length": _BAD_LENGTH,
    "chunk": _BAD_CHUNKS,
    "Chunk": _BAD_CHUNKS,
    "header": _BAD_FIELD,
    "Bad line ending": _BAD_LINE,
}


def check_head(request: web.Request) -> None:
    """Raise a Problem if a parser of aiohttp has accepted a head that is invalid or unsupported.

    The connection is closed then: the client may mean another end of the request.
    """
    headers = request.headers
    if _size_of_head(request) > HEAD_MAX_BYTES:
        detail = f"The headers are longer than {HEAD_MAX_BYTES} bytes in all. Send fewer."
        raise Problem(HEADERS_TOO_LARGE, detail, close=True)
    if request.version not in (HttpVersion11, HttpVersion10):
        raise Problem(HTTP_VERSION_NOT_SUPPORTED, close=True)
    if request.method not in _METHODS:
        raise Problem(METHOD_NOT_IMPLEMENTED, close=True)
    if not _PATH.fullmatch(request.raw_path):
        url = _URL.fullmatch(request.raw_path)
        if url is None or not _is_host(url[1]):
            raise _malformed(_BAD_TARGET)
    # Only HTTP/1.0 may leave it out.
    host = headers.get(hdrs.HOST)
    if host is not None and not _is_host(host):
        raise _malformed(_BAD_HOST)
    for name in _ONCE:
        if name in headers and len(headers.getall(name)) > 1:
            raise _malformed(_send_one(name))
    if hdrs.TRANSFER_ENCODING in headers:
        _check_transfer_codings(request)
    if hdrs.EXPECT in headers and not can_meet_expectations(request):
        raise Problem(EXPECTATION_FAILED, close=True)


def _size_of_head(request: web.Request) -> int:
    """Return the size of the target and of the headers, each with its colon, space and CR LF."""
    fields = request.raw_headers
    text = sum(map(len, itertools.chain.from_iterable(fields)))
    return len(request.raw_path) + text + 4 * len(fields)


@functools.lru_cache(maxsize=64)
def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    if found is None:
        return False
    try:
        return found["ipv6"] is None or bool(ipaddress.IPv6Address(found["ipv6"]))
    except ValueError:
        return False


def _check_transfer_codings(request: web.Request) -> None:
    """Raise Problem 501 for codings other than chunked, and 400 if it is not sent exactly once.

    HTTP/1.0 has no transfer codings, so the end of the body is unknown (RFC 9112 §6.1).
    """
    if request.version == HttpVersion10:
        raise _malformed("HTTP/1.0 has no Transfer-Encoding. Send Content-Length.")
    codings = list_of(request, hdrs.TRANSFER_ENCODING)
    if set(codings) - {"chunked"}:
        raise Problem(TRANSFER_CODING_NOT_IMPLEMENTED, close=True)
    if codings != ["chunked"]:
        raise _malformed(_NOT_CHUNKED)


def can_meet_expectations(request: web.Request) -> bool:
    return set(list_of(request, hdrs.EXPECT)) <= {"100-continue"}


def list_of(request: web.Request, name: str) -> list[str]:
    """Return the elements of a list header in lower case, without empty ones. Raises Problem 431.

    See ``text_of_list``.
    """
    parts = text_of_list(request, name).lower().split(",")
    return [part.strip(" \t") for part in parts if part.strip(" \t")]


def text_of_list(request: web.Request, name: str) -> str:
    """Return a list header, all its lines in one (RFC 9110 §5.3).

    Raises Problem 431 if it has more than ``ELEMENTS_MAX`` elements, before any is read.
    """
    text = ",".join(request.headers.getall(name, ()))
    if text.count(",") >= ELEMENTS_MAX:
        detail = f"{name} has more than {ELEMENTS_MAX} elements. Send fewer."
        raise Problem(HEADERS_TOO_LARGE, detail, close=True)
    return text


def _send_one(name: str) -> str:
    return f"Send one {name} header, not none or several."


def _malformed(detail: str) -> Problem:
    return Problem(MALFORMED_REQUEST, detail, close=True)


def explain(error: HttpProcessingError) -> Problem:
    """Convert the error of a parser to a problem, without the request's text in its message."""
    # The parsers' own words come first; what they repeat of the request follows.
    reason = error.message.removeprefix("Bad status line:\n  ").partition("\n")[0]
    match error:
        case LineTooLong(args=(line, limit, *_)):
            if limit == HEADER_MAX_BYTES or _FIELD_START.match(line):
                detail = f"A header is longer than {HEADER_MAX_BYTES} bytes. Send a shorter one."
                return Problem(HEADERS_TOO_LARGE, detail)
            detail = f"The request target is longer than {TARGET_MAX_BYTES} bytes."
            return Problem(TARGET_TOO_LONG, f"{detail} Send a shorter path and query.")
        case InvalidURLError():
            return _malformed(_BAD_TARGET)
        case BadHttpMethod() if _UNKNOWN_METHOD.match(error.message):
            return Problem(METHOD_NOT_IMPLEMENTED)
        case BadHttpMethod() if "HTTPS" in reason[:20]:
            return _malformed("This port expects HTTP without TLS. Use a URL with http://.")
        case BadStatusLine() if not _OTHER_VERSION.match(reason):
            return _malformed(_BAD_LINE)
        case TransferEncodingError():
            return _malformed(_BAD_CHUNKS)
        case InvalidHeader():
            return _malformed(_BAD_LENGTH if error.hdr == "Content-Length" else _BAD_FIELD)
    if _OTHER_VERSION.match(reason):
        return Problem(HTTP_VERSION_NOT_SUPPORTED)
    if reason.startswith("Too many"):
        return Problem(HEADERS_TOO_LARGE, f"There are more than {HEADERS_MAX} headers. Send fewer.")
    if found := _NOT_ONE.match(reason):
        return _malformed(_send_one(found[1].title()))
    known = (detail for part, detail in _DETAILS.items() if part in reason)
    return _malformed(next(known, MALFORMED_REQUEST.detail))
