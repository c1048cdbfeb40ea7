"""Conditional requests: If-Match, If-None-Match and 304 (RFC 9110 §13)."""

import functools
import re

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from service.http.problems import (
    INVALID_ETAG,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    Problem,
)
from service.http.request_heads import text_of_list

_TAG = r'(?:W/)?"[!#-~\x80-\U0010ffff]*"'
_TAGS = re.compile(_TAG)
_LIST = re.compile(rf"[ \t,]*(?:{_TAG}[ \t]*(?:,[ \t,]*|$))*")
_KNOWN = "If-None-Match includes the current version."
_WEAKENED = (
    "If-Match needs a strong ETag, but this one is weak (W/). A proxy that compresses responses"
    " weakens their ETags. Send it without W/, or turn off compression in the proxy."
)
# A 304 has no content, so it describes none (RFC 9110 §15.4.5).
_OF_THE_CONTENT = (hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING, hdrs.CONTENT_LENGTH)


def etag_of(version: int) -> str:
    """Return the strong ETag of a row's version."""
    return f'"{version}"'


def check_preconditions(request: web.Request, version: int) -> None:
    """Raise Problem 412 if If-Match or If-None-Match rules out a change of this version.

    Raises Problem 400 if either is malformed, and 431 if it lists too many ETags.
    """
    _check_if_match(request, etag_of(version))
    if _is_known(request, etag_of(version)):
        raise Problem(PRECONDITION_FAILED, _KNOWN)


def require_if_match(request: web.Request) -> None:
    """Raise Problem 428 if the request has no If-Match (RFC 6585 §3)."""
    if not request.headers.get(hdrs.IF_MATCH):
        raise Problem(PRECONDITION_REQUIRED)


def revalidate(handler: Handler) -> Handler:
    """Wrap the handler of a GET, so that the client is not sent again what it has (304).

    Raises Problem 412 if If-Match does not match, and 400 or 431 if it is invalid. An invalid
    If-None-Match has no effect: the whole response is right for any client.
    """

    @functools.wraps(handler)
    async def comparing(request: web.Request) -> web.StreamResponse:
        response = await handler(request)
        etag = response.headers[hdrs.ETAG]
        _check_if_match(request, etag)
        try:
            known = _is_known(request, etag)
        except Problem:
            known = False
        if not known:
            return response
        headers = CIMultiDict(response.headers)
        for name in _OF_THE_CONTENT:
            headers.pop(name, None)
        return web.Response(status=304, headers=headers)

    return comparing


def _check_if_match(request: web.Request, etag: str) -> None:
    """Raise Problem 412 if If-Match does not include this ETag, compared strongly (§8.8.3.2).

    Call this before ``_is_known`` (§13.2.2).
    """
    expected = _read(request, hdrs.IF_MATCH)
    if expected is not None and expected.isdisjoint(("*", etag)):
        raise Problem(PRECONDITION_FAILED, _WEAKENED if f"W/{etag}" in expected else None)


def _is_known(request: web.Request, etag: str) -> bool:
    """Return whether If-None-Match includes this ETag, compared weakly."""
    known = _read(request, hdrs.IF_NONE_MATCH)
    return known is not None and not known.isdisjoint(("*", etag, f"W/{etag}"))


def _read(request: web.Request, name: str) -> set[str] | None:
    """Return the ETags in a header, as sent, or None without it. Raises Problem 400 or 431."""
    if name not in request.headers:
        return None
    given = text_of_list(request, name)
    if given == "*":
        return {"*"}
    if not _LIST.fullmatch(given):
        raise Problem(INVALID_ETAG, f'{name} must be *, or quoted ETags such as "1", "2".')
    return {*_TAGS.findall(given)}
