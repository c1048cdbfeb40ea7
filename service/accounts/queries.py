"""SQL of accounts: the one owner of the ``users`` table."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg

from service.db.connection import Connection

STATUSES = ("active", "suspended", "deleting")

# What owners see of an account.
PROFILE = """
    users.id, users.email, users.email_verified_at is not null as email_verified, users.name,
    users.role, users.settings, users.version, users.created_at, users.updated_at
"""
# What administrators see, and the form of the email that lists are ordered by.
ACCOUNT = f"""
    {PROFILE}, users.status, users.suspended_until, users.suspension_reason, users.purge_at,
    users.email_folded
"""


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
    """Raises UniqueViolationError on users_email_folded_key if the email is taken."""
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


async def insert_user(
    conn: Connection,
    *,
    user_id: uuid.UUID,
    email: str,
    email_folded: str,
    name: str,
    password_hash: str,
) -> asyncpg.Record | None:
    """The new account's profile, or None if the email is taken."""
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
    """The profile, which no other transaction can change until this one ends."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where id = $1 for no key update",  # noqa: S608
        user_id,
    )


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
    """The profile of the account with this email."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def lock_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The profile of the account with this email, locked as by ``lock_profile``."""
    return await conn.fetchrow(
        f"select {PROFILE} from users where email_folded = $1 for no key update",  # noqa: S608
        email_folded,
    )


async def update_password(conn: Connection, user_id: uuid.UUID, password_hash: str | None) -> None:
    """Set the hash; None is for an account that has to set a password by a link first."""
    await conn.execute(
        "update users set password_hash = $2 where id = $1",
        user_id,
        password_hash,
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


async def update_email(conn: Connection, user_id: uuid.UUID, email: str, email_folded: str) -> None:
    """Set a verified email. Raises UniqueViolationError if it is another account's."""
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


# Whether the account may sign in; a suspension that has passed is none.
_STANDING = """
    status, email_verified_at is not null as email_verified,
    status = 'suspended' and coalesce(suspended_until > now(), true) as suspended
"""


async def find_credentials(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The id, password hash and standing of the account with this email."""
    return await conn.fetchrow(
        f"select id, password_hash, {_STANDING} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def find_own_credentials(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """The id and password hash of the account."""
    return await conn.fetchrow("select id, password_hash from users where id = $1", user_id)


async def lock_credentials(
    conn: Connection, user_id: uuid.UUID, password_hash: str | None
) -> asyncpg.Record | None:
    """The account's standing, where this is still its hash; both stay until the transaction ends.

    Without it, a sign-in that verified the old password could open its session just after a
    password change, or a suspension, had ended all of them.
    """
    return await conn.fetchrow(
        f"""
        select id, {_STANDING} from users
        where id = $1 and password_hash = $2
        for no key update
        """,  # noqa: S608
        user_id,
        password_hash,
    )
