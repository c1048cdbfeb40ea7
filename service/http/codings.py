"""Content codings of requests and responses (RFC 9110 §8.4, §12.5.3)."""

import re
import zlib
from collections.abc import Iterator

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
# What is decompressed at once of a body that is streamed.
PIECE_BYTES = 64 * 1024
_WEIGHTED = re.compile(r"([^\s;]+)(?:[ \t]*;[ \t]*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?", re.ASCII)


async def read_decoded(request: web.Request) -> bytes:
    """Return the body without its content codings.

    Raises Problem 415 for other codings than one of gzip and deflate, 400 if the body cannot be
    decompressed, and 413 if it is compressed beyond ``COMPRESSION_MAX_RATIO``, has too many parts,
    or is larger than the route accepts.
    """
    body = await request.read()
    coding = coding_of(request)
    if coding is None or not body:
        return body
    return _decompress(body, coding, request.client_max_size)


def coding_of(request: web.Request) -> str | None:
    """Return ``gzip``, ``deflate``, or None. Raises Problem 415 for other codings, or several."""
    codings = [coding for coding in list_of(request, hdrs.CONTENT_ENCODING) if coding != "identity"]
    if not codings:
        return None
    if codings in (["gzip"], ["x-gzip"]):
        return "gzip"
    if codings == ["deflate"]:
        return "deflate"
    raise Problem(UNSUPPORTED_CONTENT_ENCODING)


def window_bits_of(coding: str, body: bytes) -> int:
    """Return how zlib decompresses a body that begins like this one."""
    if coding == "gzip":
        return 31
    # Some clients send deflate without the header and checksum of zlib.
    return 15 if body[0] & 0xF == 8 else -15


def _decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Decompress the body, which in gzip may be several members in a row (RFC 1952 §2.2)."""
    free = COMPRESSED_FREE_BYTES + COMPRESSION_MAX_RATIO * len(body)
    found, rest = b"", body
    for _ in range(MEMBERS_MAX if coding == "gzip" else 1):
        member = zlib.decompressobj(window_bits_of(coding, body))
        try:
            found += member.decompress(rest, max_bytes + 1 - len(found))
        except zlib.error:
            break
        if len(found) > min(free, max_bytes):
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


class StreamDecoder:
    """Decompresses a body while it arrives, as ``read_decoded`` does with a whole one."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.members = 0
        self.member: zlib._Decompress | None = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield pieces of at most ``PIECE_BYTES``. Raises Problem 400."""
        while data:
            if self.member is None:
                if self.members == (MEMBERS_MAX if self.coding == "gzip" else 1):
                    raise self._malformed()
                self.members += 1
                self.member = zlib.decompressobj(window_bits_of(self.coding, data))
            piece = b"more"
            while piece and not self.member.eof:
                try:
                    piece = self.member.decompress(data, PIECE_BYTES)
                except zlib.error:
                    raise self._malformed() from None
                data = self.member.unconsumed_tail
                if piece:
                    yield piece
            if self.member.eof:
                data, self.member = self.member.unused_data, None

    def end(self) -> None:
        """Raise Problem 400 if the body is not complete."""
        if self.member is not None:
            raise self._malformed()

    def _malformed(self) -> Problem:
        return Problem(MALFORMED_BODY, f"The body is not complete, valid {self.coding}.")


def check_size(length: int, sent: int, max_bytes: int) -> None:
    """Raise Problem 413 if a body of ``sent`` bytes is too large, or compressed too much."""
    if length > COMPRESSED_FREE_BYTES + COMPRESSION_MAX_RATIO * sent:
        raise Problem(CONTENT_TOO_LARGE, "The body is compressed too much.", close=True)
    if length > max_bytes:
        raise Problem(CONTENT_TOO_LARGE, close=True)


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a client prefers gzip to no coding, from its Accept-Encoding."""
    weights = {}
    for part in accept_encoding.lower().split(","):
        if found := _WEIGHTED.fullmatch(part.strip(" \t")):
            weights[found[1].replace("x-gzip", "gzip")] = float(found[2] or 1)
    others = weights.get("*", 0)
    gzip = weights.get("gzip", others)
    return gzip > 0 and gzip >= weights.get("identity", 0)
