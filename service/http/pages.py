"""Keyset pagination: a cursor holds the position of a page's last row, tied to the filters."""

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
from yarl import URL

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
FROM_TIME = {"description": "From this time, inclusive."}
BEFORE_TIME = {"description": "Up to this time, exclusive."}
_MAC_BYTES = 16
# Parameters that may change from one page to the next.
_MAY_CHANGE = {"cursor", "limit", "count"}


class PageSchema(Schema):
    """Query parameters of every list."""

    limit = Digits(1, LIMIT_MAX, load_default=LIMIT_DEFAULT)
    cursor = Text(
        1,
        4000,
        metadata={"description": "`next_cursor` of the previous page, with the same filters."},
    )


PAGE = PageSchema()


def page_of(schema: Schema, *, counted: bool = False) -> Shape:
    """Return the shape of a page of items that ``schema`` dumps."""
    page = object_of(
        items={**array_of(schema), "maxItems": LIMIT_MAX},
        next_cursor={
            "type": ["string", "null"],
            "description": "Send as `cursor`, with the same filters, to get the next page.",
        },
        has_more={"type": "boolean"},
    )
    if counted:
        page["properties"]["count"] = {
            "type": "integer",
            "minimum": 0,
            "description": "Present only if `count` was requested.",
        }
    return Shape(f"{type(schema).__name__.removesuffix('Schema')}Page", page)


def page_example(item: object, **members: object) -> dict[str, object]:
    """Return a page with one item."""
    return {"items": [item], "next_cursor": None, "has_more": False, **members}


def read_cursor(
    request: web.Request, query: Mapping[str, Any], keyset: Keyset
) -> list[object] | None:
    """Return the position after which the page begins: see ``open_cursor``."""
    return open_cursor(request.app[SETTINGS].secret_keys, request.path, query, keyset)


def render_page(
    request: web.Request,
    query: Mapping[str, Any],
    keyset: Keyset,
    rows: Sequence[asyncpg.Record],
    schema: Schema,
    **members: object,
) -> web.Response:
    """Render a page from up to ``limit`` + 1 rows, with a Link to the next one (RFC 8288)."""
    secret_key = request.app[SETTINGS].secret_key
    body = make_page(secret_key, request.path, query, keyset, rows, schema)
    headers = link_to_next(request.rel_url, body["next_cursor"]) if body["has_more"] else {}
    return json_response({**body, **members}, headers=headers)


def open_cursor(
    secret_keys: tuple[str, ...], path: str, query: Mapping[str, Any], keyset: Keyset
) -> list[object] | None:
    """Return the position after which the page begins, or None for the first page.

    Raises Problem 400 if the cursor is invalid, or belongs to another list or other filters.
    """
    if "cursor" not in query:
        return None
    try:
        sealed = base64.b64decode(query["cursor"].encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        sealed = b""
    mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
    if not any(hmac.compare_digest(mac, _mac(key, payload)) for key in secret_keys):
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
    """Build ``{items, next_cursor, has_more}`` from up to ``limit`` + 1 rows."""
    shown = rows[: query["limit"]]
    body = {"items": schema.dump(shown, many=True), "next_cursor": None, "has_more": False}
    if len(rows) > len(shown):
        cursor = make_cursor(secret_key, path, query, keyset, shown[-1])
        body |= {"next_cursor": cursor, "has_more": True}
    return body


def make_cursor(
    secret_key: str,
    path: str,
    query: Mapping[str, Any],
    keyset: Keyset,
    row: Mapping[str, Any] | asyncpg.Record,
) -> str:
    """Return the cursor of the page that begins after ``row``."""
    position = [row[name] for name in keyset.columns]
    payload = encode([_fingerprint(path, query), position])
    return base64.urlsafe_b64encode(_mac(secret_key, payload) + payload).decode()


def link_to_next(url: URL, cursor: str) -> dict[str, str]:
    """Return the Link header of the list at ``url``, which goes on (RFC 8288)."""
    return {"Link": f'<{url.update_query(cursor=cursor)}>; rel="next"'}


def _mac(secret_key: str, payload: bytes) -> bytes:
    return hmac.digest(derive_key(secret_key, "cursors"), payload, "sha256")[:_MAC_BYTES]


def _fingerprint(path: str, query: Mapping[str, Any]) -> str:
    """Hash the path, filters and sort order that a cursor is tied to."""
    filters = {name: value for name, value in query.items() if name not in _MAY_CHANGE}
    canonical = orjson.dumps([path.rstrip("/"), filters], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]
