"""Lists of worlds, stories, events and beats: JSON arrays, in bounded memory."""

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import asyncpg
from aiohttp import web
from marshmallow import Schema

from service.context import SETTINGS
from service.db.connection import Connection
from service.db.listing import Keyset
from service.db.replica import read_replica
from service.db.transactions import snapshot
from service.http.descriptions import array_of
from service.http.fields import Digits, Text
from service.http.pages import link_to_next, make_cursor, open_cursor
from service.http.responses import JsonResponse
from service.http.streaming import stream_json
from service.json_codec import encode
from service.worlds.spool import open_spool, send, write_spool

# Of a list without ``limit``, too.
LIST_MAX = 1000
# Rows that are in memory at once. Each may have some pages of text.
SLICE = 100

Row: TypeAlias = Mapping[str, Any] | asyncpg.Record
# Called with the position after which to begin, and how many rows to return.
Fetch: TypeAlias = Callable[[Connection, list[object] | None, int], Awaitable[Sequence[Row]]]
# Makes rows what the response has.
Dump: TypeAlias = Callable[[Sequence[Any]], list[Any]]


class WholeListSchema(Schema):
    """Query parameters of a list whose ``limit`` is not described."""

    cursor = Text(
        1,
        4000,
        metadata={"description": "From the `Link` of the previous page, with the same filters."},
    )


class ListSchema(WholeListSchema):
    """Query parameters of a list."""

    limit = Digits(
        1, LIST_MAX, metadata={"description": f"At most this many rows; {LIST_MAX} by default."}
    )


LIST = ListSchema()
WHOLE_LIST = WholeListSchema()


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
    *,
    around: tuple[bytes, bytes] = (b"[", b"]"),
    slice_: int | None = None,
    path: str | None = None,
) -> web.StreamResponse:
    """Respond with an array of up to ``limit`` rows, and with a Link if there are more.

    A list of more than ``slice_`` rows is read as it is at one moment, into a temporary file, and
    sent from there. ``around`` is put before and after the rows. ``path`` is that of the list, if
    the request has another.
    """
    path, size = path or request.path, slice_ or SLICE
    limit = query.get("limit", LIST_MAX)
    settings = request.app[SETTINGS]
    start = open_cursor(settings.secret_keys, path, query, keyset)

    def link(row: Row) -> dict[str, str]:
        url = request.rel_url.with_path(path, keep_query=True)
        return link_to_next(url, make_cursor(settings.secret_key, path, query, keyset, row))

    rows = await read_replica(request.app, fetch, start, min(limit, size) + 1)
    if len(rows) <= size or limit <= size:
        headers = link(rows[limit - 1]) if len(rows) > limit else {}
        return JsonResponse(around[0] + _join(dump, rows[:limit]) + around[1], headers=headers)

    async def read_list(conn: Connection) -> Row | None:
        """Write the rows into the spool. Return the last one, if the list goes on."""
        spool.seek(0)
        spool.truncate()
        left, position, before = limit, start, around[0]
        async with snapshot(conn):
            while True:
                wanted = min(left, size)
                rows = await fetch(conn, position, wanted + 1)
                await write_spool(spool, before + _join(dump, rows[:wanted]))
                left -= wanted
                if len(rows) <= wanted or not left:
                    break
                position = [rows[wanted - 1][name] for name in keyset.columns]
                before = b","
        await write_spool(spool, around[1])
        return rows[wanted - 1] if len(rows) > wanted else None

    with open_spool() as spool:
        last = await read_replica(request.app, read_list)
        return await stream_json(request, send(spool), link(last) if last else {})


def _join(dump: Dump, rows: Sequence[Row]) -> bytes:
    """Return the rows as members of an array."""
    return encode(dump(rows))[1:-1]
