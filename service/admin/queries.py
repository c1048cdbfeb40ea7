"""SQL of administration: accounts as administrators see and change them."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg

from service.admin.search import SAMPLE_MAX, find_rare_part
from service.database import Connection
from service.encoding import plain
from service.pages import Columns, Keyset
from service.users.schemas import ROLES

STATUSES = ("active", "suspended", "deleting")

_STORED = """
    id, email, email_verified_at, name, role, status, suspended_until, suspension_reason, purge_at,
    settings, version, created_at, updated_at, email_folded
"""
_ACCOUNT = _STORED.replace("email_verified_at", "email_verified_at is not null as email_verified")
# Settings that are shown and not looked into: see ``database._set_codecs``.
_SHOWN_ACCOUNT = _ACCOUNT.replace("settings", "settings::json as settings")

_BY_TIME: Columns = {"created_at": datetime.fromisoformat, "id": uuid.UUID}
_BY_EMAIL: Columns = {"email_folded": str}
SORTS = {
    "created_at": Keyset(_BY_TIME, descending=False),
    "-created_at": Keyset(_BY_TIME, descending=True),
    "email": Keyset(_BY_EMAIL, descending=False),
    "-email": Keyset(_BY_EMAIL, descending=True),
}
SESSIONS_NEWEST_FIRST = Keyset({"id": uuid.UUID}, descending=True)

# To fill a page, so many accounts are walked through first. Where at least one in a hundred of them
# was for the page, so many for each that it has room for.
FIRST_WALK = 500
COMMON_SHARE = 0.01
WALK_PER_ROW = 200

# SQL and its arguments.
Statement: TypeAlias = tuple[Any, ...]

# Each has its index: see 0011.index-users and 0014.index-users-by-address.
_CONDITIONS = {
    "email": "email_folded = {}",
    "created_after": "created_at >= {}",
    "created_before": "created_at < {}",
    "settings": "settings @> {}",
}
# Written out, as PostgreSQL keeps a plan for any arguments: by the index of one of them, it walked
# through 300,000 accounts for what the index of the other has at once.
_ROLE_IS = {role: f"role = '{role}'" for role in ROLES}
_STATUS_IS = {status: f"status = '{status}'" for status in STATUSES}


async def insert_account(
    conn: Connection,
    *,
    user_id: uuid.UUID,
    email: str,
    email_folded: str,
    email_verified: bool,
    name: str,
    role: str,
    settings: dict[str, Any],
    password_hash: str | None,
) -> asyncpg.Record:
    """Raises UniqueViolationError on users_email_folded_key where the address is taken."""
    row = await conn.fetchrow(
        f"""
        insert into users (
            id, email, email_folded, email_verified_at, name, role, settings, password_hash
        )
        values ($1, $2, $3, case when $4 then now() end, $5, $6, $7, $8)
        returning {_ACCOUNT}
        """,  # noqa: S608
        user_id,
        email,
        email_folded,
        email_verified,
        name,
        role,
        settings,
        password_hash,
    )
    assert row is not None  # noqa: S101
    return row


async def find_account(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    return await conn.fetchrow(f"select {_ACCOUNT} from users where id = $1", user_id)  # noqa: S608


async def find_account_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"select {_ACCOUNT} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def lock_account(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """The account, which no other transaction can change until this one ends."""
    return await conn.fetchrow(
        f"select {_ACCOUNT} from users where id = $1 for no key update",  # noqa: S608
        user_id,
    )


async def lock_account_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"select {_ACCOUNT} from users where email_folded = $1 for no key update",  # noqa: S608
        email_folded,
    )


async def lock_active_administrators(conn: Connection) -> list[uuid.UUID]:
    """Their ids. Who would make them fewer waits here, and then sees who is left."""
    rows = await conn.fetch(
        """
        select id from users
        where role = 'admin' and status = 'active'
        order by id
        for no key update
        """
    )
    return [row["id"] for row in rows]


async def update_account(
    conn: Connection,
    user_id: uuid.UUID,
    *,
    name: str,
    role: str,
    email_verified: bool,
    settings: dict[str, Any],
) -> asyncpg.Record:
    return await _update(
        conn,
        """
        name = $2, role = $3, settings = $5,
        email_verified_at = case when $4 then coalesce(email_verified_at, now()) end
        """,
        user_id,
        name,
        role,
        email_verified,
        settings,
    )


async def suspend_account(
    conn: Connection, user_id: uuid.UUID, reason: str, until: datetime | None
) -> asyncpg.Record:
    return await _update(
        conn,
        "status = 'suspended', suspension_reason = $2, suspended_until = $3",
        user_id,
        reason,
        until,
    )


async def reactivate_account(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record:
    """Make it active, whether it was suspended or about to be deleted."""
    return await _update(
        conn,
        "status = 'active', suspension_reason = null, suspended_until = null, purge_at = null",
        user_id,
    )


async def schedule_deletion(
    conn: Connection, user_id: uuid.UUID, grace_days: int
) -> asyncpg.Record:
    return await _update(
        conn,
        "status = 'deleting', purge_at = now() + make_interval(days => $2)",
        user_id,
        grace_days,
    )


async def _update(
    conn: Connection, change: str, user_id: uuid.UUID, *arguments: object
) -> asyncpg.Record:
    """Set what ``change`` says, and count the version up."""
    row = await conn.fetchrow(
        f"""
        update users set version = version + 1, updated_at = now(), {change}
        where id = $1
        returning {_ACCOUNT}
        """,  # noqa: S608
        user_id,
        *arguments,
    )
    assert row is not None  # noqa: S101
    return row


async def lock_due_suspensions(conn: Connection) -> list[uuid.UUID]:
    """The accounts whose suspension is over."""
    rows = await conn.fetch(
        "select id from users where suspended_until <= now() order by id for no key update"
    )
    return [row["id"] for row in rows]


async def list_sessions(
    conn: Connection, user_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """The account's live sessions; ``after`` is a place in SESSIONS_NEWEST_FIRST."""
    beyond = SESSIONS_NEWEST_FIRST.beyond(3) if after else "true"
    return await conn.fetch(
        f"""
        select id, created_at, last_seen_at, least(expires_at, idle_expires_at) as expires_at,
               user_agent, host(address) as address
        from sessions
        where user_id = $1 and least(expires_at, idle_expires_at) > now() and {beyond}
        order by {SESSIONS_NEWEST_FIRST.order_by()}
        limit $2
        """,  # noqa: S608
        user_id,
        limit,
        *(after or ()),
    )


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
    the first accounts tell. PostgreSQL would guess, by a sample and as if what has the filters were
    evenly spread; and walk through a million accounts for settings that the oldest alone have.
    """
    page = (filters, keyset, after, limit)
    if not _unordered(filters, keyset):
        return await conn.fetch(*select_accounts(*page))
    rows = await conn.fetch(*walk_accounts(*page, FIRST_WALK))
    if COMMON_SHARE * FIRST_WALK <= len(rows) < limit:
        rows = await conn.fetch(*walk_accounts(*page, WALK_PER_ROW * limit))
    if len(rows) < limit:
        addresses = await sample_addresses(conn) if "q" in filters else ()
        rows = await conn.fetch(*find_accounts(*page, addresses))
    return rows


def select_accounts(
    filters: Mapping[str, Any], keyset: Keyset, after: list[object] | None, limit: int
) -> Statement:
    """The page by one statement, which PostgreSQL has an index for."""
    conditions, arguments = _where(filters, keyset, after)
    return _page(f"select {_STORED} from users where {_all(conditions)}", keyset, arguments, limit)  # noqa: S608


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
    walk = f"""
        select * from (
            select {_STORED} from users
            where {_all(conditions)}
            order by {keyset.order_by()}
            limit {length}
        ) as walked
        where {_all(unordered)}
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
    # `offset 0` keeps the two queries apart: PostgreSQL cannot walk in the outer one's order.
    found = f"""
        select * from (
            select {_STORED} from users where {_all(conditions)} offset 0
        ) as found
    """  # noqa: S608
    return _page(found, keyset, arguments, limit)


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
        select {_SHOWN_ACCOUNT}
        from ({query} order by {order} limit ${len(arguments) + 1}) as page
        order by {order}
    """  # noqa: S608
    return statement, *arguments, limit


def _all(conditions: Mapping[str, str]) -> str:
    return " and ".join(conditions.values()) or "true"


async def count_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    addresses = await sample_addresses(conn) if "q" in filters else ()
    conditions, arguments = _where(filters, addresses=addresses)
    statement = f"select count(*) from users where {_all(conditions)}"  # noqa: S608
    count: int = await conn.fetchval(statement, *arguments)
    return count


async def estimate_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """How many the planner expects, from its statistics, without reading them."""
    conditions, arguments = _where(filters)
    statement = f"explain (format json) select 1 from users where {_all(conditions)}"  # noqa: S608
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


def _where(
    filters: Mapping[str, Any],
    keyset: Keyset | None = None,
    after: list[object] | None = None,
    addresses: Sequence[str] = (),
) -> tuple[dict[str, str], list[object]]:
    """The condition of each filter that is given, and of the page's place, and their arguments."""
    given = [name for name in _CONDITIONS if name in filters]
    conditions = {name: _CONDITIONS[name].format(f"${n}") for n, name in enumerate(given, 1)}
    arguments = [filters[name] for name in given]
    if "role" in filters:
        conditions["role"] = _ROLE_IS[filters["role"]]
    if "status" in filters:
        conditions["status"] = _STATUS_IS[filters["status"]]
    if "q" in filters:
        conditions["q"], patterns = _contains(filters["q"], addresses, len(arguments) + 1)
        arguments += patterns
    if keyset and after:
        conditions["after"] = keyset.beyond(len(arguments) + 1)
        arguments += after
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
