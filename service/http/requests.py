"""Reading requests (body, query) and writing JSON responses."""

import asyncio
import functools
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import unquote_plus

from aiohttp import web
from marshmallow import Schema, ValidationError, missing

from service.http.codings import read_decoded
from service.http.field_errors import ERRORS_MAX, escape_pointer, field_error, field_errors
from service.http.fields import EXACT_CHARS, read_float, read_int
from service.http.media_types import accept_patch, media_types
from service.http.problems import (
    CONTENT_TOO_LARGE,
    DUPLICATE_PARAMETER,
    EMPTY_BODY,
    MALFORMED_JSON,
    MALFORMED_QUERY,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    invalid_fields,
)
from service.http.responses import JsonResponse
from service.json_codec import encode

UNIFORM_RESPONSE_S = 0.1
# Members and elements in a whole document, and levels of nesting. Settings of the largest size
# seldom hold half as many; their own limit of nesting is lower and points at the place.
VALUES_MAX = 2000
# Numbers whose digits must be compared with a float's. Settings have no room for more.
LONG_NUMBERS_MAX = 910
DEPTH_MAX = 64
_BRACKET = re.compile(r"[\[{\]}]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class TooManyValuesError(ValueError):
    """A JSON document holds more values than any request needs."""


async def read_body(request: web.Request, schema: Schema) -> dict[str, Any]:
    """Load the JSON body through ``schema``.

    Raises Problem 415 for another content type or encoding, and 400 for invalid JSON (RFC 8259)
    including duplicate names (I-JSON, RFC 7493). Missing or invalid fields are a 422 with a
    pointer for each.
    """
    if not await request.read():
        raise Problem(EMPTY_BODY)
    _check_media_type(request)
    document = _parse_json(await read_decoded(request))
    if not isinstance(document, dict):
        raise invalid_fields(field_error("#", "invalid_type", "Expected an object."))
    try:
        loaded: dict[str, Any] = schema.load(_drop_excess(document, schema))
    except ValidationError as error:
        raise field_errors(error, "#") from None
    return loaded


def read_query(request: web.Request, schema: Schema) -> dict[str, Any]:
    """Load the query parameters through ``schema``.

    Raises Problem 400 for undecodable or duplicate parameters, and 422 with a pointer such as
    ``?/limit`` for each unknown or invalid one. Parses the raw query, because the framework
    silently fixes bad escapes and replaces bad UTF-8.
    """
    raw = request.raw_path.partition("?")[2]
    given: dict[str, str] = {}
    for pair in filter(None, raw.split("&")):
        if _BAD_ESCAPE.search(pair):
            raise Problem(MALFORMED_QUERY)
        try:
            name, value = (unquote_plus(part, errors="strict") for part in pair.partition("=")[::2])
        except UnicodeDecodeError:
            raise Problem(MALFORMED_QUERY) from None
        if name in given:
            shown = field_error(f"?/{escape_pointer(name)}", "duplicate", "Given more than once.")
            raise Problem(DUPLICATE_PARAMETER, errors=[shown])
        given[name] = value
    known = frozenset(given.keys() & schema.fields.keys())
    try:
        loaded: dict[str, Any] = _narrow(schema, known).load(_drop_excess(given, schema))
    except ValidationError as error:
        raise field_errors(error, "?") from None
    return loaded


def _drop_excess(given: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Return ``given`` with no more unknown names than a problem lists, plus one."""
    if len(given) <= ERRORS_MAX:
        return given
    kept = 0
    few = {}
    for name, value in given.items():
        if name in schema.fields:
            few[name] = value
        elif kept <= ERRORS_MAX:
            few[name] = value
            kept += 1
    return few


@functools.lru_cache(maxsize=256)
def _narrow(schema: Schema, given: frozenset[str]) -> Schema:
    """Return the schema without the optional fields that are not given, to load faster."""
    wanted = (
        name
        for name, field in schema.fields.items()
        if name in given or field.required or field.load_default is not missing
    )
    return type(schema)(only=tuple(wanted))


def _check_media_type(request: web.Request) -> None:
    """Raise Problem 415 unless the body is JSON in UTF-8, which has two names (WHATWG Encoding)."""
    charset = (request.charset or "utf-8").lower()
    if request.content_type not in media_types(request.method) or charset not in ("utf-8", "utf8"):
        raise _unsupported_media_type(request.method)


def _parse_json(body: bytes) -> object:
    try:
        return load_json(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(MALFORMED_JSON, f"The body is not valid JSON ({where}).") from None
    except UnicodeDecodeError:
        raise Problem(MALFORMED_JSON, "The body is not valid UTF-8.") from None
    except TooManyValuesError as error:
        raise Problem(CONTENT_TOO_LARGE, f"The body holds more than {error}.") from None
    except (ValueError, RecursionError):
        raise Problem(MALFORMED_JSON, "The body is not valid I-JSON (RFC 7493).") from None


def _unsupported_media_type(method: str) -> Problem:
    types = media_types(method)
    detail = f"Expected Content-Type: {' or '.join(types)} in UTF-8."
    headers = {"Accept": ", ".join(types), **accept_patch([method])}
    return Problem(UNSUPPORTED_MEDIA_TYPE, detail, headers=headers)


def load_json(text: str) -> object:
    """Parse I-JSON (RFC 7493). Raises ValueError or RecursionError.

    Uses the standard library rather than orjson: it keeps integers exact and leaves lone surrogates
    to the schema, which rejects them with a pointer to the field.
    """
    _check_structure(text)
    long_numbers = 0

    def read_number(number: str) -> float:
        nonlocal long_numbers
        if len(number) > EXACT_CHARS:
            long_numbers += 1
            if long_numbers > LONG_NUMBERS_MAX:
                digits = EXACT_CHARS - 1
                raise TooManyValuesError(f"{LONG_NUMBERS_MAX} numbers of more than {digits} digits")
        return read_float(number)

    return json.loads(
        text,
        parse_int=read_int,
        parse_constant=_refuse_constant,
        parse_float=read_number,
        object_pairs_hook=_refuse_duplicate_names,
    )


def _check_structure(text: str) -> None:
    """Raise ValueError if a document is nested too deeply or holds too many values to parse.

    Most are so small that counting bytes settles it. Others are counted without their strings.
    """
    if _count_values(text) <= DEPTH_MAX:
        return
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    bare = "".join(unescaped.split('"', 4 * VALUES_MAX)[::2])
    depth = 0
    for bracket in islice(_BRACKET.finditer(bare), 2 * VALUES_MAX + 1):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH_MAX:
            raise ValueError("nested too deeply")
    if _count_values(bare) > VALUES_MAX:
        raise TooManyValuesError(f"{VALUES_MAX} values")


def _count_values(text: str) -> int:
    """Return an upper bound for the values in the document: one before each of these."""
    return text.count(",") + text.count("[") + text.count("{")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse_duplicate_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def json_response(
    data: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return ``data`` as a JSON response."""
    return JsonResponse(encode(data), status=status, headers=headers)


@asynccontextmanager
async def uniform_time() -> AsyncIterator[None]:
    """Take at least ``UNIFORM_RESPONSE_S``, so that timing does not reveal what was found."""
    earliest = asyncio.get_running_loop().time() + UNIFORM_RESPONSE_S
    try:
        yield
    finally:
        await asyncio.sleep(max(0, earliest - asyncio.get_running_loop().time()))
