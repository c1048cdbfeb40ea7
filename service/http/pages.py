"""Pages of lists: a cursor holds the place of a page's last row, and belongs to its filters."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import orjson
from aiohttp import web
from marshmallow import Schema

from service.context import SETTINGS
from service.db.listing import Keyset
from service.http.descriptions import Shape, array_of, object_of
from service.http.fields import Digits, Text
from service.http.problems import CURSOR_MISMATCH, INVALID_CURSOR, Problem
from service.http.requests import json_response
from service.json_codec import encode
from service.sealing import derive_key

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
FROM_TIME = {"description": "From this time on, inclusive."}
BEFORE_TIME = {"description": "Before this time, exclusive."}
_MAC_BYTES = 16
# What may differ from one page of a list to its next.
_FREE = {"cursor", "limit", "count"}


class PageSchema(Schema):
    """The parameters that every list has."""

    limit = Digits(1, LIMIT_MAX, load_default=LIMIT_DEFAULT)
    cursor = Text(
        1,
        4000,
        metadata={"description": "`next_cursor` of the previous page, with the same filters."},
    )


PAGE = PageSchema()


def page_of(schema: Schema, *, counted: bool = False) -> Shape:
    """The shape of a page of what ``schema`` dumps."""
    page = object_of(
        items={**array_of(schema), "maxItems": LIMIT_MAX},
        next_cursor={
            "type": ["string", "null"],
            "description": "Send as `cursor`, with the same filters.",
        },
        has_more={"type": "boolean"},
    )
    if counted:
        page["properties"]["count"] = {
            "type": "integer",
            "minimum": 0,
            "description": "Only if `count` was requested.",
        }
    return Shape(f"{type(schema).__name__.removesuffix('Schema')}Page", page)


def page_example(item: object, **members: object) -> dict[str, object]:
    """A page of one item."""
    return {"items": [item], "next_cursor": None, "has_more": False, **members}


def read_cursor(
    request: web.Request, query: Mapping[str, Any], keyset: Keyset
) -> list[object] | None:
    """The place after which the page begins: see ``open_cursor``."""
    return open_cursor(request.app[SETTINGS].secret_key, request.path, query, keyset)


def render_page(
    request: web.Request,
    query: Mapping[str, Any],
    keyset: Keyset,
    rows: Sequence[asyncpg.Record],
    schema: Schema,
    **members: object,
) -> web.Response:
    """The page with a Link to the next one (RFC 8288), from up to ``limit`` + 1 rows."""
    secret_key = request.app[SETTINGS].secret_key
    body = make_page(secret_key, request.path, query, keyset, rows, schema)
    headers = {}
    if body["has_more"]:
        url = request.rel_url.update_query(cursor=body["next_cursor"])
        headers["Link"] = f'<{url}>; rel="next"'
    return json_response({**body, **members}, headers=headers)


def open_cursor(
    secret_key: str, path: str, query: Mapping[str, Any], keyset: Keyset
) -> list[object] | None:
    """The place after which the page begins, or None for the first page.

    Raises Problem 400 for a cursor that is not ours, and for one of another list or other filters.
    """
    if "cursor" not in query:
        return None
    try:
        sealed = base64.b64decode(query["cursor"].encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        sealed = b""
    mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(secret_key, payload)):
        raise Problem(INVALID_CURSOR)
    belongs_to, values = orjson.loads(payload)
    if belongs_to != _fingerprint(path, query):
        raise Problem(CURSOR_MISMATCH)
    return [read(value) for read, value in zip(keyset.columns.values(), values, strict=True)]


def make_page(
    secret_key: str,
    path: str,
    query: Mapping[str, Any],
    keyset: Keyset,
    rows: Sequence[asyncpg.Record],
    schema: Schema,
) -> dict[str, Any]:
    """``{items, next_cursor, has_more}`` from up to ``limit`` + 1 rows."""
    shown = rows[: query["limit"]]
    body = {"items": schema.dump(shown, many=True), "next_cursor": None, "has_more": False}
    if len(rows) > len(shown):
        place = [shown[-1][name] for name in keyset.columns]
        payload = encode([_fingerprint(path, query), place])
        cursor = base64.urlsafe_b64encode(_mac(secret_key, payload) + payload).decode()
        body |= {"next_cursor": cursor, "has_more": True}
    return body


def _mac(secret_key: str, payload: bytes) -> bytes:
    return hmac.digest(derive_key(secret_key, "cursors"), payload, "sha256")[:_MAC_BYTES]


def _fingerprint(path: str, query: Mapping[str, Any]) -> str:
    """What a cursor belongs to: the path, the filters and the sort."""
    filters = {name: value for name, value in query.items() if name not in _FREE}
    canonical = orjson.dumps([path.rstrip("/"), filters], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]
