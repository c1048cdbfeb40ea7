"""Lists of worlds and of what is in them: a JSON array, of bounded memory."""

import functools
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import asyncpg
from aiohttp import web
from marshmallow import Schema

from service.context import SETTINGS
from service.db.connection import Connection
from service.db.listing import Keyset
from service.db.transactions import read
from service.http.descriptions import array_of
from service.http.fields import Digits, Text
from service.http.pages import link_to_next, make_cursor, read_cursor
from service.http.responses import JsonResponse
from service.http.streaming import stream_json
from service.json_codec import encode

# Of a list without ``limit``, too.
LIST_MAX = 1000
# Rows that are in memory at once. Each may have some pages of text.
SLICE = 100

# Called with the position after which to begin, how many rows to return, and how many to skip.
Row: TypeAlias = Mapping[str, Any]
Fetch: TypeAlias = Callable[
    [Connection, list[object] | None, int, int], Awaitable[Sequence[asyncpg.Record | Row]]
]
# Makes rows what the response has.
Dump: TypeAlias = Callable[[Sequence[Any]], list[Any]]


class ListSchema(Schema):
    """Query parameters of a list."""

    limit = Digits(
        1, LIST_MAX, metadata={"description": f"At most this many rows; {LIST_MAX} by default."}
    )
    cursor = Text(
        1,
        4000,
        metadata={"description": "From the `Link` of the previous page, with the same filters."},
    )


LIST = ListSchema()


def dump_with(schema: Schema) -> Dump:
    """Return a function that serializes rows through the schema."""
    return functools.partial(schema.dump, many=True)


def list_of(schema: Schema) -> dict[str, Any]:
    """Return the shape of a list."""
    return {**array_of(schema), "maxItems": LIST_MAX}


async def respond_with_list(
    request: web.Request,
    query: Mapping[str, Any],
    keyset: Keyset,
    fetch: Fetch,
    dump: Dump,
    around: tuple[bytes, bytes] = (b"[", b"]"),
) -> web.StreamResponse:
    """Respond with an array of up to ``limit`` rows, and with a Link if there are more.

    A long list is streamed, one slice at a time. ``around`` is put before and after the rows.
    """
    before, after = around
    limit = query.get("limit", LIST_MAX)
    start = read_cursor(request, query, keyset)
    rows = await read(request.app, fetch, start, min(limit, SLICE) + 1, 0)
    if len(rows) <= SLICE or limit <= SLICE:
        shown = rows[:limit]
        headers = _link(request, query, keyset, shown[-1]) if len(rows) > limit else {}
        return JsonResponse(before + _members(dump, shown) + after, headers=headers)
    # The last row of the page, and another one if the list goes on.
    edge = await read(request.app, fetch, start, 2, limit - 1)
    headers = _link(request, query, keyset, edge[0]) if len(edge) > 1 else {}
    within = _up_to(keyset, edge[0]) if len(edge) > 1 else bool
    chunks = _chunks(request.app, keyset, fetch, dump, around, rows, within)
    return await stream_json(request, chunks, headers)


async def _chunks(
    app: web.Application,
    keyset: Keyset,
    fetch: Fetch,
    dump: Dump,
    around: tuple[bytes, bytes],
    rows: Sequence[asyncpg.Record | Row],
    within: Callable[[asyncpg.Record | Row], bool],
) -> AsyncGenerator[bytes, None]:
    """Yield the list, one slice at a time, until a row is not ``within`` the page."""
    yield around[0] + _members(dump, rows[:SLICE])
    while len(rows) > SLICE:
        position = [rows[SLICE - 1][name] for name in keyset.columns]
        rows = await read(app, fetch, position, SLICE + 1, 0)
        shown = list(itertools.takewhile(within, rows[:SLICE]))
        if shown:
            yield b"," + _members(dump, shown)
        if len(shown) < SLICE:
            break
    yield around[1]


def _members(dump: Dump, rows: Sequence[asyncpg.Record | Row]) -> bytes:
    return encode(dump(rows))[1:-1]


def _up_to(keyset: Keyset, last: asyncpg.Record | Row) -> Callable[[asyncpg.Record | Row], bool]:
    """Return a condition that holds for ``last`` and the rows before it."""

    def position(row: asyncpg.Record | Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in keyset.columns)

    end = position(last)
    if keyset.descending:
        return lambda row: position(row) >= end
    return lambda row: position(row) <= end


def _link(
    request: web.Request, query: Mapping[str, Any], keyset: Keyset, row: asyncpg.Record | Row
) -> dict[str, str]:
    secret_key = request.app[SETTINGS].secret_key
    return link_to_next(request, make_cursor(secret_key, request.path, query, keyset, row))
