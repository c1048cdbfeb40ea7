"""SQL of administration: accounts as administrators see and change them."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg

from service.database import Connection
from service.statements import Keyset, Statement

STATUSES = ("active", "suspended", "deleting")

ACCOUNT = """
    id, email, email_verified_at is not null as email_verified, name, role, status, suspended_until,
    suspension_reason, purge_at, settings, version, created_at, updated_at, email_folded
"""
SESSIONS_NEWEST_FIRST = Keyset({"id": uuid.UUID}, descending=True)


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
        returning {ACCOUNT}
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
    return await conn.fetchrow(f"select {ACCOUNT} from users where id = $1", user_id)  # noqa: S608


async def find_account_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"select {ACCOUNT} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def lock_account(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """The account, which no other transaction can change until this one ends."""
    return await conn.fetchrow(
        f"select {ACCOUNT} from users where id = $1 for no key update",  # noqa: S608
        user_id,
    )


async def lock_account_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"select {ACCOUNT} from users where email_folded = $1 for no key update",  # noqa: S608
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
        returning {ACCOUNT}
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
    return await conn.fetch(*select_sessions(user_id, after, limit))


def select_sessions(user_id: uuid.UUID, after: list[object] | None, limit: int) -> Statement:
    """A page of the account's live sessions; ``after`` is a place in SESSIONS_NEWEST_FIRST."""
    beyond = SESSIONS_NEWEST_FIRST.beyond(3) if after else "true"
    statement = f"""
        select id, created_at, last_seen_at, least(expires_at, idle_expires_at) as expires_at,
               user_agent, host(address) as address
        from sessions
        where user_id = $1 and least(expires_at, idle_expires_at) > now() and {beyond}
        order by {SESSIONS_NEWEST_FIRST.order_by()}
        limit $2
    """  # noqa: S608
    return statement, user_id, limit, *(after or ())
