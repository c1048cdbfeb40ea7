"""Keyset pages: a cursor holds the last row's place in the order, and belongs to its filters."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import orjson
from aiohttp import web
from marshmallow import Schema

from service.encoding import encode
from service.errors import Problem
from service.fields import Digits, Text
from service.keys import SETTINGS
from service.requests import json_response
from service.sealing import derive_key

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
FROM_TIME = {"description": "From this time on, itself included."}
BEFORE_TIME = {"description": "Before this time."}
_MAC_BYTES = 16
# SQL and its arguments.
Statement: TypeAlias = tuple[Any, ...]
Columns: TypeAlias = Mapping[str, Callable[[Any], object]]
# What may differ from one page of a list to its next.
_FREE = {"cursor", "limit", "count"}


class Keyset(NamedTuple):
    """The columns that order a list, together unique, and what makes their values of JSON's."""

    columns: Columns
    descending: bool

    def order_by(self) -> str:
        """``created_at desc, id desc``."""
        return ", ".join(f"{name}{' desc' if self.descending else ''}" for name in self.columns)

    def beyond(self, first: int) -> str:
        """``(created_at, id) < ($3, $4)``, with parameters from the number ``first``."""
        places = ", ".join(f"${first + n}" for n in range(len(self.columns)))
        return f"({', '.join(self.columns)}) {'<' if self.descending else '>'} ({places})"


def page_conditions(
    templates: Mapping[str, str],
    filters: Mapping[str, Any],
    keyset: Keyset | None = None,
    after: list[object] | None = None,
) -> tuple[dict[str, str], list[object]]:
    """The conditions of a page's place and of the filters that are given, and their arguments.

    The place is the first: of several conditions on a column PostgreSQL (18) began its scan at the
    first, and where that was ``created_at < $1`` it skipped what is between that and the place one
    by one: half a million entries of an index, 20 ms.
    """
    conditions, arguments = {}, list(after or ())
    if keyset and after:
        conditions["after"] = keyset.beyond(1)
    for name, template in templates.items():
        if name in filters:
            arguments.append(filters[name])
            conditions[name] = template.format(f"${len(arguments)}")
    return conditions, arguments


def all_of(conditions: Mapping[str, str]) -> str:
    """What follows ``where``."""
    return " and ".join(conditions.values()) or "true"


def planned_anew(arguments: list[object]) -> str:
    """A condition that is true, whose argument it adds, for a query that needs a plan of its own.

    PostgreSQL keeps a plan for any arguments, from a statement's sixth time on, where that seems no
    dearer (the manual, PREPARE); such a one read a year's accounts to find one address, 80 ms
    instead of 3. With this condition it seems dear. A plan for the arguments knows that the
    condition is true, and another would count nothing either. ``plan_cache_mode`` says the same,
    but to a whole session, where it has users/me planned for each read, or to a transaction.
    """
    arguments.append(True)
    known = f"${len(arguments)}"
    return (
        f"({known} or (select count(*) from generate_series(1, 1000000000) where not {known}) = 1)"  # noqa: S608
    )


class PageSchema(Schema):
    """The parameters that every list has."""

    limit = Digits(1, LIMIT_MAX, load_default=LIMIT_DEFAULT)
    cursor = Text(
        1,
        4000,
        metadata={"description": "`next_cursor` of the page before, which had the same filters."},
    )


PAGE = PageSchema()


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
        raise Problem(400, "invalid_cursor", "Expected a cursor as an earlier page gave it.")
    belongs_to, values = orjson.loads(payload)
    if belongs_to != _fingerprint(path, query):
        detail = "This cursor is another list's: begin again without it after changing filters."
        raise Problem(400, "cursor_mismatch", detail)
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
