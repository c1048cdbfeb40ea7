"""Content codings of requests and responses (RFC 9110 §8.4, §12.5.3)."""

import re
import zlib

from aiohttp import hdrs, web

from service.http.problems import (
    CONTENT_TOO_LARGE,
    MALFORMED_BODY,
    UNSUPPORTED_CONTENT_ENCODING,
    Problem,
)
from service.http.request_heads import list_of

# As sent and after decompression; well above the largest valid body, which sets preferences.
BODY_MAX_BYTES = 64 * 1024
# What a body may decompress to: so much in any case, and this many times its size.
COMPRESSED_FREE_BYTES = 4 * 1024
COMPRESSION_MAX_RATIO = 100
MEMBERS_MAX = 16
_WEIGHTED = re.compile(r"([^\s;]+)(?:[ \t]*;[ \t]*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?", re.ASCII)


async def read_decoded(request: web.Request) -> bytes:
    """Return the body without its content codings.

    Raises Problem 415 for other codings than one of gzip and deflate, 400 if the body cannot be
    decompressed, and 413 if it is compressed beyond ``COMPRESSION_MAX_RATIO`` or in too many parts.
    """
    body = await request.read()
    codings = [coding for coding in list_of(request, hdrs.CONTENT_ENCODING) if coding != "identity"]
    if not codings or not body:
        return body
    if codings in (["gzip"], ["x-gzip"]):
        return _decompress(body, "gzip", 31)
    if codings == ["deflate"]:
        # Some clients send it without the header and checksum of zlib.
        return _decompress(body, "deflate", 15 if body[0] & 0xF == 8 else -15)
    raise Problem(UNSUPPORTED_CONTENT_ENCODING)


def _decompress(body: bytes, coding: str, window_bits: int) -> bytes:
    """Decompress the body, which in gzip may be several members in a row (RFC 1952 §2.2)."""
    free = COMPRESSED_FREE_BYTES + COMPRESSION_MAX_RATIO * len(body)
    found, rest = b"", body
    for _ in range(MEMBERS_MAX if coding == "gzip" else 1):
        member = zlib.decompressobj(window_bits)
        try:
            found += member.decompress(rest, BODY_MAX_BYTES + 1 - len(found))
        except zlib.error:
            break
        if len(found) > min(free, BODY_MAX_BYTES):
            detail = "The body is compressed too much." if len(found) > free else None
            raise Problem(CONTENT_TOO_LARGE, detail)
        rest = member.unused_data
        if member.eof and not rest:
            return found
        if not member.eof:
            break
    else:
        if coding == "gzip":
            detail = f"The body has more than {MEMBERS_MAX} members of gzip. Send one."
            raise Problem(CONTENT_TOO_LARGE, detail)
    raise Problem(MALFORMED_BODY, f"The body is not complete, valid {coding}.")


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a client prefers gzip to no coding, from its Accept-Encoding."""
    weights = {}
    for part in accept_encoding.lower().split(","):
        if found := _WEIGHTED.fullmatch(part.strip(" \t")):
            weights[found[1].replace("x-gzip", "gzip")] = float(found[2] or 1)
    others = weights.get("*", 0)
    gzip = weights.get("gzip", others)
    return gzip > 0 and gzip >= weights.get("identity", 0)
