"""Reading a request: its body in time and through a schema, its preconditions; and the answer."""

import asyncio
import functools
import json
import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import unquote_plus

from aiohttp import HttpVersion11, web
from marshmallow import Schema, ValidationError, missing

from service.http.fields import read_float
from service.http.problems import (
    BODY_TIMEOUT,
    DUPLICATE_PARAMETER,
    EMPTY_BODY,
    MALFORMED_BODY,
    MALFORMED_JSON,
    MALFORMED_QUERY,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    UNSUPPORTED_CONTENT_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
    FieldError,
    Problem,
    invalid_fields,
)
from service.http.responses import JsonResponse
from service.json_codec import encode

UNIFORM_RESPONSE_S = 0.1
# After decompression; the largest that is of use is an account's preferences, 16 KiB.
BODY_MAX_BYTES = 64 * 1024
_TAG = re.compile(r'(W/)?"([^"]*)"')
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


async def read_in_time(request: web.Request, timeout_s: float) -> None:
    """Read the whole body, which the request keeps; aiohttp sets no limit on how long that takes.

    Raises Problem 408 where it takes longer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await request.read()
    except TimeoutError:
        raise Problem(BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(MALFORMED_BODY, close=True) from None


async def meet_expectation(request: web.Request) -> None:
    """Tell a client that waits for it to send its body; pass over any other expectation.

    RFC 9110 §10.1.1 leaves that open. aiohttp's own handler would refuse it, in text.
    """
    continues = request.headers["Expect"].lower() == "100-continue"
    if continues and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


async def read_body(request: web.Request, schema: Schema) -> dict[str, Any]:
    """The JSON body as ``schema`` loads it.

    Raises Problem 415 for another content type, 400 for what is not JSON (RFC 8259, with I-JSON's
    ban on duplicate names, RFC 7493), 422 with a pointer for each field that is missing or wrong.
    """
    document = _parse_json(request, await request.read())
    if not isinstance(document, dict):
        raise invalid_fields(FieldError("#", "Expected an object."))
    try:
        loaded: dict[str, Any] = schema.load(document)
    except ValidationError as error:
        raise field_errors(error, "#") from None
    return loaded


def read_query(request: web.Request, schema: Schema) -> dict[str, Any]:
    """The query's parameters as ``schema`` loads them.

    Raises Problem 400 for what cannot be decoded or is given twice, 422 with a pointer such as
    ``?/limit`` for each parameter that is unknown or wrong. The raw query is read, because the
    framework's own reading of it mends bad escapes and replaces bad UTF-8.
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
            shown = FieldError(f"?/{escape_pointer(name)}", "Given more than once.")
            raise Problem(DUPLICATE_PARAMETER, errors=[shown])
        given[name] = value
    known = frozenset(given.keys() & schema.fields.keys())
    try:
        loaded: dict[str, Any] = _narrow(schema, known).load(given)
    except ValidationError as error:
        raise field_errors(error, "?") from None
    return loaded


@functools.lru_cache(maxsize=256)
def _narrow(schema: Schema, given: frozenset[str]) -> Schema:
    """The schema without those optional fields that are not given: it spends 5 µs on each."""
    wanted = (
        name
        for name, field in schema.fields.items()
        if name in given or field.required or field.load_default is not missing
    )
    return type(schema)(only=tuple(wanted))


def field_errors(error: ValidationError, pointer: str) -> Problem:
    """marshmallow's nested messages as one 422, with JSON Pointers that begin at ``pointer``."""
    return invalid_fields(*_flatten(error.messages, pointer))


def _parse_json(request: web.Request, body: bytes) -> object:
    if not body:
        raise Problem(EMPTY_BODY)
    charset = (request.charset or "utf-8").lower()
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if request.content_type != "application/json" or charset != "utf-8":
        raise Problem(UNSUPPORTED_MEDIA_TYPE)
    if encoding not in ("identity", "gzip", "deflate"):
        raise Problem(UNSUPPORTED_CONTENT_ENCODING)
    try:
        return load_json(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(MALFORMED_JSON, f"The body is not valid JSON ({where}).") from None
    except UnicodeDecodeError:
        raise Problem(MALFORMED_JSON, "The body is not valid UTF-8.") from None
    except (ValueError, RecursionError):
        raise Problem(MALFORMED_JSON, "The body is not valid I-JSON (RFC 7493).") from None


def load_json(text: str) -> object:
    """I-JSON (RFC 7493) as Python values. Raises ValueError or RecursionError.

    The standard library's parser, not orjson: it keeps integers exact and lets lone surrogates
    through to the schema, which refuses them with a pointer to the field.
    """
    return json.loads(
        text,
        parse_constant=_refuse_constant,
        parse_float=read_float,
        object_pairs_hook=_refuse_duplicate_names,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse_duplicate_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def _flatten(messages: object, pointer: str) -> list[FieldError]:
    if isinstance(messages, dict):
        return [
            error
            for name, inner in messages.items()
            for error in _flatten(
                inner, pointer if name == "_schema" else f"{pointer}/{escape_pointer(name)}"
            )
        ]
    texts = messages if isinstance(messages, list) else [messages]
    return [FieldError(pointer, str(text)) for text in texts]


def escape_pointer(name: object) -> str:
    """One reference token of a JSON Pointer (RFC 6901 §3), with what cannot be shown replaced."""
    text = str(name)[:100].encode("utf-8", "replace").decode()
    shown = "".join("?" if unicodedata.category(char) == "Cc" else char for char in text)
    return shown.replace("~", "~0").replace("/", "~1")


def check_if_match(request: web.Request, version: int) -> None:
    """Raise Problem 412 where If-Match is given and names another version (RFC 9110 §13.1.1).

    A weak tag names none.
    """
    given = _if_match(request)
    if given not in ("", "*") and ("", str(version)) not in _TAG.findall(given):
        raise Problem(PRECONDITION_FAILED)


def _if_match(request: web.Request) -> str:
    """Several lines of it are one list (RFC 9110 §5.3)."""
    return ", ".join(request.headers.getall("If-Match", ())).strip()


def require_if_match(request: web.Request) -> None:
    """Raise Problem 428 where the request does not say which version it changes (RFC 6585 §3)."""
    if not _if_match(request):
        raise Problem(PRECONDITION_REQUIRED)


def json_response(
    data: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """``data`` as JSON."""
    return JsonResponse(encode(data), status=status, headers=headers)


@asynccontextmanager
async def uniform_time() -> AsyncIterator[None]:
    """Take at least ``UNIFORM_RESPONSE_S``: how long it took says nothing of what was found."""
    earliest = asyncio.get_running_loop().time() + UNIFORM_RESPONSE_S
    try:
        yield
    finally:
        await asyncio.sleep(max(0, earliest - asyncio.get_running_loop().time()))
