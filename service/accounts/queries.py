"""SQL for accounts, the rows of the ``users`` table."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg

from service.db.connection import Connection

STATUSES = ("active", "suspended", "deleting")

# The columns that owners see.
PROFILE = """
    users.id, users.email, users.email_verified_at is not null as email_verified, users.name,
    users.role, users.settings, users.version, users.created_at, users.updated_at
"""
# The columns that administrators see, and the folded email that lists are ordered by.
ACCOUNT = f"""
    {PROFILE}, users.status, users.suspended_until, users.suspension_reason, users.purge_at,
    users.status = 'deleting' and users.deleted_by_admin as deleted_by_admin,
    users.has_second_factor,
    users.email_folded, coalesce(users.suspended_until <= now(), false) as suspension_over,
    coalesce(users.purge_at <= now(), false) as purge_due
"""
# The current epoch of the account $1; sessions of earlier ones have ended.
EPOCH_OF_ACCOUNT = "(select session_epoch from users where users.id = $1)"


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
    """Insert an account and return it.

    Raises UniqueViolationError on users_email_folded_key if the email is taken.
    """
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
    """Return the account, locked against changes until the transaction ends."""
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
    """Lock all active administrators and return their ids.

    A concurrent demotion waits here and then sees the remaining administrators.
    """
    rows = await conn.fetch(
        """
        select id from users
        where role = 'admin' and status = 'active'
        order by id
        for no key update
        """
    )
    return [row["id"] for row in rows]


async def count_administrators_without_factor(conn: Connection, at_most: int) -> int:
    count: int = await conn.fetchval(
        """
        select count(*) from (
            select from users
            where role = 'admin' and status = 'active' and not has_second_factor
            limit $1
        ) as found
        """,
        at_most,
    )
    return count


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
    """Make the account active, whether it was suspended or scheduled for deletion."""
    return await _update(
        conn,
        """
        status = 'active', suspension_reason = null, suspended_until = null,
        purge_at = null, deleted_by_admin = false
        """,
        user_id,
    )


async def schedule_deletion(
    conn: Connection, user_id: uuid.UUID, grace_days: int, *, by_admin: bool
) -> asyncpg.Record:
    """Schedule the deletion. If it already is, ``purge_at`` stays."""
    return await _update(
        conn,
        """
        status = 'deleting', deleted_by_admin = $3,
        purge_at = coalesce(purge_at, now() + $2 * interval '24 hours'),
        suspension_reason = null, suspended_until = null
        """,
        user_id,
        grace_days,
        by_admin,
    )


async def _update(
    conn: Connection, change: str, user_id: uuid.UUID, *arguments: object
) -> asyncpg.Record:
    """Apply ``change`` and increment the version."""
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
    """Lock up to 100 accounts whose suspension has expired and return their ids."""
    rows = await conn.fetch(
        """
        select id from users where suspended_until <= now()
        order by id limit 100 for no key update skip locked
        """
    )
    return [row["id"] for row in rows]


async def insert_user(
    conn: Connection,
    *,
    user_id: uuid.UUID,
    email: str,
    email_folded: str,
    name: str,
    password_hash: str,
) -> asyncpg.Record | None:
    """Insert an account and return its profile, or None if the email is taken."""
    return await conn.fetchrow(
        f"""
        insert into users (id, email, email_folded, name, password_hash)
        values ($1, $2, $3, $4, $5)
        on conflict on constraint users_email_folded_key do nothing
        returning {PROFILE}
        """,  # noqa: S608
        user_id,
        email,
        email_folded,
        name,
        password_hash,
    )


async def lock_profile(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """Return the profile, locked against changes until the transaction ends."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where id = $1 for no key update",  # noqa: S608
        user_id,
    )


async def start_epoch(conn: Connection, user_id: uuid.UUID) -> int:
    """Start a new epoch of sessions, which ends all of the account's, and return its number."""
    epoch: int = await conn.fetchval(
        """
        update users set session_epoch = session_epoch + 1 where id = $1 returning session_epoch
        """,
        user_id,
    )
    return epoch


async def update_profile(
    conn: Connection, user_id: uuid.UUID, name: str, settings: dict[str, Any]
) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        update users
        set name = $2, settings = $3, version = version + 1, updated_at = now()
        where id = $1
        returning {PROFILE}
        """,  # noqa: S608
        user_id,
        name,
        settings,
    )


async def find_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """Return the profile of the account with this email."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def lock_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """Return the profile of the account with this email, locked as by ``lock_profile``."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where email_folded = $1 for no key update",  # noqa: S608
        email_folded,
    )


async def verify_email(conn: Connection, user_id: uuid.UUID) -> None:
    await conn.execute(
        """
        update users
        set email_verified_at = now(), version = version + 1, updated_at = now()
        where id = $1 and email_verified_at is null
        """,
        user_id,
    )


async def claim_account(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record:
    """Verify the email for an owner who did not know the password, and return the profile.

    Anyone may have registered the email, so this clears the name and settings that came with the
    password. An account that was created without a password keeps them.
    """
    row = await conn.fetchrow(
        f"""
        update users
        set name = case when password_hash is null then name else '' end,
            settings = case when password_hash is null then settings else '{{}}' end,
            email_verified_at = now(), version = version + 1, updated_at = now()
        where id = $1
        returning {PROFILE}
        """,  # noqa: S608
        user_id,
    )
    assert row is not None  # noqa: S101
    return row


async def update_email(conn: Connection, user_id: uuid.UUID, email: str, email_folded: str) -> None:
    """Set a verified email. Raises UniqueViolationError if another account has it."""
    await conn.execute(
        """
        update users
        set email = $2, email_folded = $3, email_verified_at = now(), version = version + 1,
            updated_at = now()
        where id = $1
        """,
        user_id,
        email,
        email_folded,
    )
