"""Moves all that the database holds sealed to SECRET_KEY, when it replaces SECRET_KEY_PREVIOUS.

A table may have a million rows, so they are moved in slices, each in a short transaction of its
own. A row that has changed or gone in the meantime is left alone: whoever changed it has sealed it.
So this can be stopped, repeated, and run beside the service.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import asyncpg
from aiohttp import web

from service.audit.events import Operator, record
from service.auth import signing_keys
from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import write
from service.factors import codes
from service.http import idempotency
from service.mail import outbox
from service.sealing import SealError, seal, unseal
from service.settings import Settings

# The values of a primary key; empty before the first row.
Key: TypeAlias = tuple[Any, ...]

# Stored responses and emails have some kilobytes each.
ROWS_AT_ONCE = 500


class SealedColumn(NamedTuple):
    """A column of sealed values.

    ``purpose`` is that of ``seal``, and names the values to operators. ``key`` holds the columns of
    the primary key with their SQL types; ``bound_to`` makes the name of the row from their values.
    """

    purpose: str
    table: str
    column: str
    key: Mapping[str, str]
    bound_to: Callable[..., str]


SEALED = (
    SealedColumn(signing_keys.PURPOSE, "signing_keys", "encrypted_key", {"id": "text"}, str),
    SealedColumn(outbox.PURPOSE, "mail_outbox", "message", {"id": "uuid"}, str),
    SealedColumn(codes.SECRET_PURPOSE, "factors", "sealed_secret", {"id": "uuid"}, str),
    SealedColumn(codes.RECOVERY_PURPOSE, "users", "recovery_key", {"id": "uuid"}, str),
    SealedColumn(
        idempotency.PURPOSE,
        "idempotency_keys",
        "answer",
        {"caller": "bytea", "key": "text"},
        idempotency.bound_to,
    ),
)


class Resealed(NamedTuple):
    """How many values of a kind were moved, and how many neither key opens."""

    kind: str
    moved: int
    unopened: int


async def reseal(app: web.Application, by: Operator, column: SealedColumn) -> Resealed:
    """Seal with SECRET_KEY what SECRET_KEY_PREVIOUS has sealed in the column.

    Each slice that moves a row leaves an audit event. Raises DatabaseUnavailable.
    """
    moved = unopened = 0
    after: Key | None = ()
    while after is not None:
        done, after = await write(app, _reseal_slice, app[SETTINGS], by, column, after)
        moved, unopened = moved + done.moved, unopened + done.unopened
    return Resealed(column.purpose, moved, unopened)


async def _reseal_slice(
    conn: Connection, settings: Settings, by: Operator, column: SealedColumn, after: Key
) -> tuple[Resealed, Key | None]:
    """Move the slice after ``after``. Return its counts, and its last key if more may follow."""
    rows = await _list_rows(conn, column, ROWS_AT_ONCE, after)
    unopened, changes = 0, []
    for row in rows:
        try:
            plain = _open_previous(settings, column, row)
        except SealError:
            unopened += 1
            continue
        if plain is not None:
            bound_to = column.bound_to(*row[:-1])
            changes.append((*row, seal(settings.secret_key, column.purpose, bound_to, plain)))
    moved = await _replace(conn, column, changes) if changes else 0
    if moved:
        counted = {"kind": column.purpose, "moved": moved}
        await record(conn, by, "key.reseal", None, after=counted)
    last = rows[-1][:-1] if len(rows) == ROWS_AT_ONCE else None
    return Resealed(column.purpose, moved, unopened), last


async def count_previous(
    conn: Connection, settings: Settings, column: SealedColumn, rows_max: int
) -> tuple[int, bool]:
    """Return how many values SECRET_KEY_PREVIOUS has sealed, and whether there are more rows.

    Looks at ``rows_max`` rows, those that ``reseal`` comes to last.
    """
    rows = await _list_rows(conn, column, rows_max + 1, descending=True)
    found = 0
    for row in rows[:rows_max]:
        with contextlib.suppress(SealError):
            found += _open_previous(settings, column, row) is not None
    return found, len(rows) > rows_max


def _open_previous(settings: Settings, column: SealedColumn, row: asyncpg.Record) -> bytes | None:
    """Open what SECRET_KEY_PREVIOUS has sealed; None if it was SECRET_KEY. Raises SealError."""
    bound_to, sealed = column.bound_to(*row[:-1]), row[-1]
    try:
        unseal((settings.secret_key,), column.purpose, bound_to, sealed)
    except SealError:
        return unseal((settings.secret_key_previous,), column.purpose, bound_to, sealed)
    return None


async def _list_rows(
    conn: Connection,
    column: SealedColumn,
    limit: int,
    after: Key = (),
    *,
    descending: bool = False,
) -> list[asyncpg.Record]:
    """Return keys with their sealed values, in the order of the keys."""
    names = ", ".join(column.key)
    places = ", ".join(f"${number}" for number in range(2, 2 + len(after)))
    order = ", ".join(f"{name} desc" if descending else name for name in column.key)
    return await conn.fetch(
        f"""
        select {names}, {column.column} from {column.table}
        where {column.column} is not null and {f"({names}) > ({places})" if after else "true"}
        order by {order} limit $1
        """,  # noqa: S608
        limit,
        *after,
    )


async def _replace(conn: Connection, column: SealedColumn, changes: list[Key]) -> int:
    """Replace values that are still as they were, and return how many were.

    Each change is a key, the value as it was, and the new value.
    """
    table = column.table
    types = [*column.key.values(), "bytea", "bytea"]
    arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(types, 1))
    same = " and ".join(f"{table}.{name} = change.{name}" for name in column.key)
    status = await conn.execute(
        f"""
        update {table} set {column.column} = change.sealed
        from unnest({arrays}) as change ({", ".join(column.key)}, was, sealed)
        where {same} and {table}.{column.column} = change.was
        """,  # noqa: S608
        *zip(*changes, strict=True),
    )
    return int(status.removeprefix("UPDATE "))
