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
) -> asyncpg.Record:
    """Raises UniqueViolationError on users_email_folded_key where the address is taken."""
    row = await conn.fetchrow(
        f"""
        insert into users (id, email, email_folded, name, password_hash)
        values ($1, $2, $3, $4, $5)
        returning {_PROFILE}
        """,  # noqa: S608
        user_id,
        email,
        email_folded,
        name,
        password_hash,
    )
    assert row is not None  # noqa: S101
    return row


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
