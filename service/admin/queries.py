"""SQL of administration: accounts as administrators see and change them."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncpg

from service.admin.search import SAMPLE_MAX, WALK_PER_ROW, Sample, Shares, find_rare_part, is_common
from service.database import Connection
from service.encoding import plain
from service.pages import Columns, Keyset

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

# Each has its index: see 0011.index-users and 0014.index-users-by-address.
_CONDITIONS = {
    "email": "email_folded = {}",
    "status": "status = {}",
    "role": "role = {}",
    "created_after": "created_at >= {}",
    "created_before": "created_at < {}",
    "settings": "settings @> {}",
}


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
    sample = await sample_texts(conn) if "q" in filters else Sample()
    first, *others = select_accounts(filters, sample, keyset, after, limit)
    rows = await conn.fetch(*first)
    for statement in others:
        if len(rows) < limit:
            rows = await conn.fetch(*statement)
    return rows


def select_accounts(
    filters: Mapping[str, Any],
    sample: Sample,
    keyset: Keyset,
    after: list[object] | None,
    limit: int,
) -> list[tuple[Any, ...]]:
    """The statements of a page and their arguments: the first that fills it has it, or the last.

    ``after`` is a place in ``keyset``.
    """
    order = keyset.order_by()
    conditions, arguments = _where(filters, sample)
    if after:
        conditions["after"] = keyset.beyond(len(arguments) + 1)
        arguments += after
    arguments.append(limit)
    searches = [f"select {_STORED} from users where {_all(conditions)}"]  # noqa: S608
    if "q" in conditions:
        # `offset 0` keeps the two queries apart: PostgreSQL cannot walk in the outer one's order.
        searches = [f"select * from ({searches[0]} offset 0) as matching"]  # noqa: S608
        # An address is one account's: no walk fills a page with it.
        if "email" not in conditions and is_common(sample, *filters["q"]):
            searches.insert(0, _walk(conditions, keyset, f"{WALK_PER_ROW} * ${len(arguments)}"))
    # Found first, shown then: what is shown would be computed for all that are found and sorted, a
    # quarter of the time where those are a thousand. The second order costs nothing.
    return [
        (
            f"""
            select {_SHOWN_ACCOUNT}
            from ({search} order by {order} limit ${len(arguments)}) as page
            order by {order}
            """,  # noqa: S608
            *arguments,
        )
        for search in searches
    ]


def _walk(conditions: Mapping[str, str], keyset: Keyset, length: str) -> str:
    """Those that are found among the first ``length`` accounts of the role and the status."""
    inside = {"after", "role", "status"}
    if "created_at" in keyset.columns:
        inside |= {"created_after", "created_before"}
    walked, compared = dict[str, str](), dict[str, str]()
    for name, condition in conditions.items():
        (walked if name in inside else compared)[name] = condition
    return f"""
        select * from (
            select {_STORED} from users
            where {_all(walked)}
            order by {keyset.order_by()}
            limit {length}
        ) as walked
        where {_all(compared)}
    """  # noqa: S608


def _all(conditions: Mapping[str, str]) -> str:
    return " and ".join(conditions.values()) or "true"


async def count_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    sample = await sample_texts(conn) if "q" in filters else Sample()
    conditions, arguments = _where(filters, sample)
    statement = f"select count(*) from users where {_all(conditions)}"  # noqa: S608
    count: int = await conn.fetchval(statement, *arguments)
    return count


async def estimate_accounts(conn: Connection, filters: Mapping[str, Any]) -> int:
    """How many the planner expects, from its statistics, without reading them."""
    # Without a sample: the whole text is what it can guess by.
    conditions, arguments = _where(filters, Sample())
    statement = f"explain (format json) select 1 from users where {_all(conditions)}"  # noqa: S608
    plans = plain(await conn.fetchval(statement, *arguments))
    rows: int = plans[0]["Plan"]["Plan Rows"]
    return rows


async def sample_texts(conn: Connection) -> Sample:
    """What a search has to know of all addresses and names, in 0.5 ms."""
    rows = await conn.fetch(
        """
        select tablename, most_common_vals::text::text[] as common, most_common_freqs as shares,
               histogram_bounds::text::text[] as others
        from pg_stats
        where schemaname = current_schema
        and (tablename, attname) in (('users', 'email_folded'), ('users_search_idx', 'lower'))
        """
    )
    shares = {row["tablename"]: _shares(row) for row in rows}
    return Sample(shares.get("users", ()), shares.get("users_search_idx", ()))


def _shares(row: asyncpg.Record) -> Shares:
    """Common texts have a share of their own; the others divide what is left evenly."""
    common = list(zip(row["common"] or (), row["shares"] or (), strict=True))
    others = row["others"] or ()
    others = others[:: -(-len(others) // SAMPLE_MAX) or 1]
    left = 1 - sum(share for _, share in common)
    return [*common, *((text, left / len(others)) for text in others)]


def _where(filters: Mapping[str, Any], sample: Sample) -> tuple[dict[str, str], list[object]]:
    """The condition of each filter that is given, and their arguments."""
    after, before = filters.get("created_after"), filters.get("created_before")
    if after is not None and before is not None and after >= before:
        # PostgreSQL would not see that: by address it would walk through all accounts.
        return {"created_before": "false"}, []
    given = [name for name in _CONDITIONS if name in filters]
    conditions = {name: _CONDITIONS[name].format(f"${n}") for n, name in enumerate(given, 1)}
    arguments = [filters[name] for name in given]
    if "q" in filters:
        conditions["q"], patterns = _contains(filters["q"], sample, len(arguments) + 1)
        arguments += patterns
    return conditions, arguments


def _contains(q: tuple[str, str], sample: Sample, place: int) -> tuple[str, list[object]]:
    """What an address or a name contains, with arguments from ``$place`` on.

    See 0011.index-users and ``find_rare_part``.
    """
    address, name = q
    part = find_rare_part(address, sample)
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
