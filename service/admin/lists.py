"""The list of accounts: a bounded walk in page order, then an index search if that falls short."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import asyncpg

from service.accounts.queries import ACCOUNT
from service.admin.search import indexed_part
from service.db.connection import Connection
from service.db.listing import Columns, Keyset, Statement, all_of, page_conditions
from service.db.transactions import own_plans
from service.http.problems import SEARCH_TOO_BROAD, Problem
from service.json_codec import plain

_BY_TIME: Columns = {"created_at": datetime.fromisoformat, "id": uuid.UUID}
_BY_EMAIL: Columns = {"email_folded": str}
SORTS = {
    "created_at": Keyset(_BY_TIME, descending=False),
    "-created_at": Keyset(_BY_TIME, descending=True),
    "email": Keyset(_BY_EMAIL, descending=False),
    "-email": Keyset(_BY_EMAIL, descending=True),
}

# Settings are passed through as JSON text, without parsing. See ``pool._set_codecs``.
_SHOWN = ACCOUNT.replace("users.settings", "users.settings::json as settings")

# Every filter has an index: see migrations 0011, 0014, 0016 and 0025.
_CONDITIONS = {
    "email": "email_folded = {}",
    "role": "role = {}",
    "status": "status = {}",
    "created_after": "created_at >= {}",
    "created_before": "created_at < {}",
    "settings": "settings @> {}",
    # See _where.
    "has_second_factor": "",
    "q": "",
}

# Accounts that a walk reads per row of the page. Rarer matches are few enough to find by index and
# sort.
WALK_PER_ROW = 40


async def list_accounts(
    conn: Connection,
    filters: Mapping[str, Any],
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Return a page of the accounts that match all filters, after a place in ``keyset``.

    The planner assumes that matches are evenly spread. If only the last accounts match, it would
    walk the whole table in page order. So the walk is bounded. If it leaves the page short, an
    index finds all matches, which are then sorted.

    Raises Problem 422 if a filtered search takes too long.
    """
    page = (filters, keyset, after, limit)
    with _timeout_as_problem(filters):
        if not _late_filters(filters, keyset):
            return await conn.fetch(*walk_accounts(*page))
        async with own_plans(conn):
            rows = await conn.fetch(*walk_accounts(*page))
            return rows if len(rows) == limit else await conn.fetch(*find_accounts(*page))


async def count_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """Count the accounts that match all filters. Raises Problem 422 if that takes too long."""
    conditions, arguments = _where(filters)
    statement = f"select count(*) from users where {all_of(conditions)}"  # noqa: S608
    with _timeout_as_problem(filters):
        async with own_plans(conn):
            count: int = await conn.fetchval(statement, *arguments)
            return count


async def estimate_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """Estimate the matching accounts from the planner's statistics, without reading any."""
    conditions, arguments = _where(filters)
    statement = f"explain (format json) select 1 from users where {all_of(conditions)}"  # noqa: S608
    plans = plain(await conn.fetchval(statement, *arguments))
    rows: int = plans[0]["Plan"]["Plan Rows"]
    return rows


def walk_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """Build the query for a page from the next ``WALK_PER_ROW * limit`` accounts in page order.

    Filters that the ordering index covers apply before that bound. The others apply after it and
    may leave the page short.
    """
    conditions, arguments = _where(filters, keyset, after)
    late = {name: conditions.pop(name) for name in _late_filters(filters, keyset)}
    order = keyset.order_by()
    statement = f"""
        select {_SHOWN} from (
            select * from users where {all_of(conditions)}
            order by {order} limit {WALK_PER_ROW} * ${len(arguments) + 1}
        ) as users
        where {all_of(late)}
        order by {order} limit ${len(arguments) + 1}
    """  # noqa: S608
    return statement, *arguments, limit


def find_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """Build the query for a page from all matches: sort their keys, then read the page's rows.

    ``offset 0`` is an optimization fence: it keeps the planner from walking in page order.
    """
    conditions, arguments = _where(filters, keyset, after)
    order = keyset.order_by()
    statement = f"""
        select {_SHOWN} from users where id in (
            select id from (
                select id, created_at, email_folded from users
                where {all_of(conditions)} offset 0
            ) as found
            order by {order} limit ${len(arguments) + 1}
        )
        order by {order}
    """  # noqa: S608
    return statement, *arguments, limit


def _late_filters(filters: Mapping[str, Any], keyset: Keyset) -> list[str]:
    """Return the filters that no index combines with this sort order.

    Nearly all accounts are active and of role ``user``, so a walk of those with or without a second
    factor finds them. Other roles and statuses are few enough to find by index and sort.
    """
    if "email" in filters:
        return []  # An email belongs to at most one account.
    names = ["q", "settings"]
    if "has_second_factor" in filters:
        names += ["role", "status"]
    if "created_at" not in keyset.columns:
        names += ["created_after", "created_before"]
    return [name for name in names if name in filters]


def _where(
    filters: Mapping[str, Any], keyset: Keyset | None = None, after: list[object] | None = None
) -> tuple[dict[str, str], list[object]]:
    """Return the conditions for the page's place and the given filters, with their arguments."""
    templates, values = {**_CONDITIONS}, {**filters}
    if "q" in filters:
        templates["q"], values["q"] = _search(*filters["q"])
    if "has_second_factor" in filters:
        # Without an argument, so that any plan can use the partial indexes.
        templates["has_second_factor"] = (
            "has_second_factor" if filters["has_second_factor"] else "not has_second_factor"
        )
        values["has_second_factor"] = ()
    return page_conditions(templates, values, keyset, after)


def _search(emails: Sequence[str], name: str) -> tuple[str, tuple[str, ...]]:
    """Build the condition for any of the emails, or the name, to contain the text.

    May look up only part of an email in the trigram index, and then checks all of it.
    """
    conditions, values = [], []
    for email in emails:
        part = indexed_part(email)
        conditions.append("email_folded like {}")
        values.append(_pattern(part))
        if part != email:
            conditions[-1] += " and strpos(email_folded, {}) > 0"
            values.append(email)
    conditions.append("lower(name) like lower({})")
    return f"({' or '.join(conditions)})", (*values, _pattern(name))


def _pattern(text: str) -> str:
    """Return the LIKE pattern for values that contain the text."""
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"


@contextmanager
def _timeout_as_problem(filters: Mapping[str, Any]) -> Iterator[None]:
    """Raise Problem 422 if PostgreSQL cancels a filtered query."""
    try:
        yield
    except asyncpg.QueryCanceledError as error:
        if filters.keys().isdisjoint(_CONDITIONS):
            raise
        raise Problem(SEARCH_TOO_BROAD) from error
