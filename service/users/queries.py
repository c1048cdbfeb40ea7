"""SQL of accounts."""

import uuid
from typing import Any

import asyncpg

from service.database import Connection

_PROFILE = """
    id, email, email_verified_at is not null as email_verified, name, role, settings, version,
    created_at, updated_at
"""


async def insert_user(
    conn: Connection,
    *,
    user_id: uuid.UUID,
    email: str,
    email_folded: str,
    name: str,
    password_hash: str,
) -> asyncpg.Record | None:
    """The new account's profile, or None where the address is taken."""
    return await conn.fetchrow(
        f"""
        insert into users (id, email, email_folded, name, password_hash)
        values ($1, $2, $3, $4, $5)
        on conflict on constraint users_email_folded_key do nothing
        returning {_PROFILE}
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
        f"select {_PROFILE} from users where id = $1 for no key update",  # noqa: S608
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
        returning {_PROFILE}
        """,  # noqa: S608
        user_id,
        name,
        settings,
    )


async def find_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The profile of the account with this address."""
    return await conn.fetchrow(
        f"select {_PROFILE} from users where email_folded = $1",  # noqa: S608
        email_folded,
    )


async def lock_by_email(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The profile of the account with this address, locked as by ``lock_profile``."""
    return await conn.fetchrow(
        f"select {_PROFILE} from users where email_folded = $1 for no key update",  # noqa: S608
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
    """Make a verified address the account's. Raises UniqueViolationError where it is another's."""
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


async def export_rows(conn: Connection, user_id: uuid.UUID) -> dict[str, list[asyncpg.Record]]:
    """Everything held on the account beside its profile, by kind."""
    return {
        "sessions": await conn.fetch(
            """
            select id, created_at, last_seen_at, least(expires_at, idle_expires_at) as expires_at,
                   user_agent, host(address) as address
            from sessions where user_id = $1 order by created_at
            """,
            user_id,
        ),
        "known_networks": await conn.fetch(
            """
            select network::text as network, last_seen_at from known_networks
            where user_id = $1 order by last_seen_at
            """,
            user_id,
        ),
        "audit_events": await conn.fetch(
            """
            select id, occurred_at, action, actor_id = $1 as by_yourself,
                   case when actor_id = $1 then host(address) end as address,
                   case when actor_id = $1 then user_agent end as user_agent, before, after
            from audit_events where subject_id = $1 order by occurred_at, id
            """,
            user_id,
        ),
    }
