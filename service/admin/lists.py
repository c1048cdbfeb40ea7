"""The list of accounts: a bounded walk in the page's order, and only then a search by index."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import asyncpg

from service.accounts.queries import ACCOUNT
from service.admin.search import indexed_part
from service.db.connection import Connection
from service.db.listing import Columns, Keyset, Statement, all_of, page_conditions
from service.db.transactions import own_plans
from service.http.problems import Problem, ProblemType
from service.json_codec import plain

SEARCH_TOO_BROAD = ProblemType(
    422,
    "search_too_broad",
    "This search matches too many accounts. Add filters or use a longer search text.",
)

_BY_TIME: Columns = {"created_at": datetime.fromisoformat, "id": uuid.UUID}
_BY_EMAIL: Columns = {"email_folded": str}
SORTS = {
    "created_at": Keyset(_BY_TIME, descending=False),
    "-created_at": Keyset(_BY_TIME, descending=True),
    "email": Keyset(_BY_EMAIL, descending=False),
    "-email": Keyset(_BY_EMAIL, descending=True),
}

# Settings are only shown: as JSON text they need not be parsed. See ``pool._set_codecs``.
_SHOWN = ACCOUNT.replace("users.settings", "users.settings::json as settings")

# Each has its index: see migrations 0011, 0014 and 0016.
_CONDITIONS = {
    "email": "email_folded = {}",
    "role": "role = {}",
    "status": "status = {}",
    "created_after": "created_at >= {}",
    "created_before": "created_at < {}",
    "settings": "settings @> {}",
    "q": "(email_folded like {} or lower(name) like lower({}))",
}
# For an email of which the index is asked for a part only.
_PART = "(email_folded like {} and strpos(email_folded, {}) > 0 or lower(name) like lower({}))"

# A walk looks at this many accounts for each row of the page. It fills a page if one account in
# forty matches; an index finds what fewer have, and sorts it, in good time.
WALK_PER_ROW = 40


async def list_accounts(
    conn: Connection,
    filters: Mapping[str, Any],
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Return a page of the accounts that match all filters, after a place in ``keyset``.

    PostgreSQL takes matches for evenly spread. Left to itself it walks through a million accounts
    in the page's order if only the last ones match. So a walk has a bound; if that does not fill
    the page, all matches are found by an index and sorted. Raises Problem 422 as ``_in_time`` does.
    """
    page = (filters, keyset, after, limit)
    with _in_time(filters):
        if not _unordered(filters, keyset):
            return await conn.fetch(*walk_accounts(*page))
        async with own_plans(conn):
            rows = await conn.fetch(*walk_accounts(*page))
            return rows if len(rows) == limit else await conn.fetch(*find_accounts(*page))


async def count_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """Count the accounts that match all filters. Raises Problem 422 as ``_in_time`` does."""
    conditions, arguments = _where(filters)
    statement = f"select count(*) from users where {all_of(conditions)}"  # noqa: S608
    with _in_time(filters):
        async with own_plans(conn):
            count: int = await conn.fetchval(statement, *arguments)
            return count


async def estimate_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """Return how many accounts the planner expects from its statistics, without reading any."""
    conditions, arguments = _where(filters)
    statement = f"explain (format json) select 1 from users where {all_of(conditions)}"  # noqa: S608
    plans = plain(await conn.fetchval(statement, *arguments))
    rows: int = plans[0]["Plan"]["Plan Rows"]
    return rows


def walk_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """The page, from the next ``WALK_PER_ROW * limit`` accounts that an index has in its order.

    Filters that this index has too leave none out; the others may leave the page short.
    """
    conditions, arguments = _where(filters, keyset, after)
    unordered = {name: conditions.pop(name) for name in _unordered(filters, keyset)}
    order = keyset.order_by()
    statement = f"""
        select {_SHOWN} from (
            select * from users where {all_of(conditions)}
            order by {order} limit {WALK_PER_ROW} * ${len(arguments) + 1}
        ) as users
        where {all_of(unordered)}
        order by {order} limit ${len(arguments) + 1}
    """  # noqa: S608
    return statement, *arguments, limit


def find_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """The page from all matches: their keys are sorted, and the page's accounts then read.

    ``offset 0`` keeps PostgreSQL from walking in the page's order after all.
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


def _unordered(filters: Mapping[str, Any], keyset: Keyset) -> list[str]:
    """The filters that no index combines with this order."""
    if "email" in filters:
        return []  # At most one account has it.
    names = ["q", "settings"]
    if "created_at" not in keyset.columns:
        names += ["created_after", "created_before"]
    return [name for name in names if name in filters]


def _where(
    filters: Mapping[str, Any], keyset: Keyset | None = None, after: list[object] | None = None
) -> tuple[dict[str, str], list[object]]:
    """The conditions of the page's place and of the given filters, and their arguments."""
    templates = _CONDITIONS
    if "q" in filters:
        email, name = filters["q"]
        part = indexed_part(email)
        filters = {**filters, "q": (_pattern(part), _pattern(name))}
        if part != email:
            templates = {**_CONDITIONS, "q": _PART}
            filters["q"] = _pattern(part), email, _pattern(name)
    return page_conditions(templates, filters, keyset, after)


def _pattern(text: str) -> str:
    """The pattern of LIKE for values that contain the text."""
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"


@contextmanager
def _in_time(filters: Mapping[str, Any]) -> Iterator[None]:
    """Raise Problem 422 if PostgreSQL runs out of time and there are filters to narrow."""
    try:
        yield
    except asyncpg.QueryCanceledError as error:
        if filters.keys().isdisjoint(_CONDITIONS):
            raise
        raise Problem(SEARCH_TOO_BROAD) from error
