"""SQL of the list of accounts: which statements fill a page of it, and what they ask for."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from service.admin.queries import ACCOUNT, STATUSES, STORED_ACCOUNT
from service.admin.search import SAMPLE_MAX, find_rare_part
from service.database import Connection
from service.encoding import plain
from service.statements import Columns, Keyset, Statement, all_of, page_conditions, planned_anew
from service.users.schemas import ROLES

_BY_TIME: Columns = {"created_at": datetime.fromisoformat, "id": uuid.UUID}
_BY_EMAIL: Columns = {"email_folded": str}
SORTS = {
    "created_at": Keyset(_BY_TIME, descending=False),
    "-created_at": Keyset(_BY_TIME, descending=True),
    "email": Keyset(_BY_EMAIL, descending=False),
    "-email": Keyset(_BY_EMAIL, descending=True),
}

# Settings that are shown and not looked into: see ``database._set_codecs``.
_SHOWN = ACCOUNT.replace("settings", "settings::json as settings")

# To fill a page so many accounts are walked through; at last so many for each that it has room for.
# Each walk begins at the page's place and goes further than the one before. It is made where one in
# WALK_PER_ROW of the accounts that the one before added was for the page: at that rate the last one
# fills it.
FIRST_WALKS = (200, 1_000)
WALK_PER_ROW = 200

# Each has its index, as roles and statuses have: see 0011, 0014 and 0016 of the migrations.
_CONDITIONS = {
    "email": "email_folded = {}",
    "created_after": "created_at >= {}",
    "created_before": "created_at < {}",
    "settings": "settings @> {}",
}
# Written out: with a plan for any role and status, which PostgreSQL may keep for arguments, all of
# a walk's accounts were read for the few of one.
_ROLE_IS = {role: f"role = '{role}'" for role in ROLES}
_STATUS_IS = {status: f"status = '{status}'" for status in STATUSES}


async def list_accounts(
    conn: Connection,
    filters: Mapping[str, Any],
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
) -> list[asyncpg.Record]:
    """A page of the accounts that have all of the filters, after a place in ``keyset``.

    Where no index has the order and all of the filters, either accounts are walked through in that
    order until the page is full, or all that have the filters are found and sorted. Which is less,
    the first accounts tell; unless none of them has what many others have: those are all found.
    PostgreSQL would guess, by a sample and as if what has the filters were evenly spread; and walk
    through a million accounts for settings that the oldest alone have.
    """
    page = (filters, keyset, after, limit)
    if not _unordered(filters, keyset):
        return await conn.fetch(*select_accounts(*page))
    met_before = length_before = 0
    for length in (*FIRST_WALKS, WALK_PER_ROW * limit):
        rows = await conn.fetch(*walk_accounts(*page, length))
        if len(rows) == limit:
            return rows
        if (len(rows) - met_before) * WALK_PER_ROW < length - length_before:
            break
        met_before, length_before = len(rows), length
    addresses = await sample_addresses(conn) if "q" in filters else ()
    return await conn.fetch(*find_accounts(*page, addresses))


def select_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """The page by one statement, which PostgreSQL has an index for."""
    conditions, arguments = _where(filters, keyset, after)
    selected = f"select {STORED_ACCOUNT} from users where {all_of(conditions)}"  # noqa: S608
    return _page(selected, keyset, arguments, limit)


def walk_accounts(
    filters: Mapping[str, Any],
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
    length: int,
) -> Statement:
    """Of the page, what is among the first ``length`` accounts that an index has in that order."""
    conditions, arguments = _where(filters, keyset, after)
    unordered = {name: conditions.pop(name) for name in _unordered(filters, keyset)}
    if {"created_after", "created_before"} <= conditions.keys():
        # A plan for any two times expects one account in 200 between them, and might sort them all.
        conditions["planned"] = planned_anew(arguments)
    # The length is no argument: a plan for any length would be one for a tenth of all accounts.
    walk = f"""
        select * from (
            select {STORED_ACCOUNT} from users
            where {all_of(conditions)}
            order by {keyset.order_by()}
            limit {length}
        ) as walked
        where {all_of(unordered)}
    """  # noqa: S608
    return _page(walk, keyset, arguments, limit)


def find_accounts(
    filters: Mapping[str, Any],
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
    addresses: Sequence[str],
) -> Statement:
    """The page from all that have the filters: see ``find_rare_part`` for ``addresses``."""
    conditions, arguments = _where(filters, keyset, after, addresses)
    conditions["planned"] = planned_anew(arguments)
    # `offset 0` keeps the two queries apart: PostgreSQL cannot walk in the outer one's order.
    found = f"""
        select * from (
            select {STORED_ACCOUNT} from users where {all_of(conditions)} offset 0
        ) as found
    """  # noqa: S608
    return _page(found, keyset, arguments, limit)


async def count_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    addresses = await sample_addresses(conn) if "q" in filters else ()
    conditions, arguments = _where(filters, addresses=addresses)
    conditions["planned"] = planned_anew(arguments)
    statement = f"select count(*) from users where {all_of(conditions)}"  # noqa: S608
    count: int = await conn.fetchval(statement, *arguments)
    return count


async def estimate_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """How many the planner expects, from its statistics, without reading them."""
    conditions, arguments = _where(filters)
    statement = f"explain (format json) select 1 from users where {all_of(conditions)}"  # noqa: S608
    plans = plain(await conn.fetchval(statement, *arguments))
    rows: int = plans[0]["Plan"]["Plan Rows"]
    return rows


async def sample_addresses(conn: Connection) -> Sequence[str]:
    """What ANALYZE has kept: a hundred by default, evenly spread in their order, or none as yet.

    See the PostgreSQL manual, pg_stats. Asking takes 0.3 ms.
    """
    bounds: list[str] | None = await conn.fetchval(
        """
        select histogram_bounds::text::text[] from pg_stats
        where schemaname = current_schema and tablename = 'users' and attname = 'email_folded'
        """
    )
    return bounds[:: -(-len(bounds) // SAMPLE_MAX)] if bounds else ()


def _unordered(filters: Mapping[str, Any], keyset: Keyset) -> list[str]:
    """The filters that no index has in this order."""
    if "email" in filters:
        return []  # There is one account of it at most.
    names = ["q", "settings"]
    if "created_at" not in keyset.columns:
        names += ["created_after", "created_before"]
    return [name for name in names if name in filters]


def _page(query: str, keyset: Keyset, arguments: list[object], limit: int) -> Statement:
    """Found first, shown then.

    What is shown would be computed for all that are found and sorted, a quarter of the time where
    those are a thousand. The second order costs nothing.
    """
    order = keyset.order_by()
    statement = f"""
        select {_SHOWN}
        from ({query} order by {order} limit ${len(arguments) + 1}) as page
        order by {order}
    """  # noqa: S608
    return statement, *arguments, limit


def _where(
    filters: Mapping[str, Any],
    keyset: Keyset | None = None,
    after: list[object] | None = None,
    addresses: Sequence[str] = (),
) -> tuple[dict[str, str], list[object]]:
    """The conditions of the page's place and of the filters that are given, and their arguments."""
    conditions, arguments = page_conditions(_CONDITIONS, filters, keyset, after)
    if "role" in filters:
        conditions["role"] = _ROLE_IS[filters["role"]]
    if "status" in filters:
        conditions["status"] = _STATUS_IS[filters["status"]]
    if "q" in filters:
        conditions["q"], patterns = _contains(filters["q"], addresses, len(arguments) + 1)
        arguments += patterns
    return conditions, arguments


def _contains(q: tuple[str, str], addresses: Sequence[str], place: int) -> tuple[str, list[object]]:
    """What an address or a name contains, with arguments from ``$place`` on.

    See 0011.index-users and ``find_rare_part``.
    """
    address, name = q
    part = find_rare_part(address, addresses)
    in_address, arguments = f"email_folded like ${place}", [_pattern(part)]
    if part != address:
        # No index is asked for this one.
        in_address += f" and strpos(email_folded, ${place + 1}) > 0"
        arguments.append(address)
    in_name = f"lower(name) like lower(${place + len(arguments)})"
    return f"({in_address} or {in_name})", [*arguments, _pattern(name)]


def _pattern(text: str) -> str:
    """The pattern of LIKE for what contains the text."""
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"
