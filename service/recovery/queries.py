"""SQL for the tokens in mailed links."""

import uuid
from datetime import datetime

import asyncpg

from service.db.connection import Connection

# A used link says what it did only while that holds.
_HOLDS = """
    action_tokens.expires_at > now() and (
        action_tokens.purpose not in ('email_verified', 'email_changed')
        or users.email = action_tokens.email and users.email_verified_at is not null
    )
"""


async def insert_token(
    conn: Connection,
    *,
    token_hash: bytes,
    purpose: str,
    user_id: uuid.UUID,
    email: str,
    ttl_s: int,
) -> None:
    await conn.execute(
        """
        insert into action_tokens (token_hash, purpose, user_id, email, expires_at)
        values ($1, $2, $3, $4, now() + make_interval(secs => $5))
        """,
        token_hash,
        purpose,
        user_id,
        email,
        ttl_s,
    )


async def delete_tokens(conn: Connection, user_id: uuid.UUID, purpose: str) -> None:
    await conn.execute(
        "delete from action_tokens where user_id = $1 and purpose = $2", user_id, purpose
    )


async def delete_reverts_since(conn: Connection, user_id: uuid.UUID, created_at: datetime) -> None:
    """Delete revert links created since then, which restore emails that were not the owner's."""
    await conn.execute(
        """
        delete from action_tokens
        where user_id = $1 and purpose = 'email_revert' and created_at >= $2
        """,
        user_id,
        created_at,
    )


async def find_token(
    conn: Connection, token_hash: bytes, purposes: list[str]
) -> asyncpg.Record | None:
    """Return the live token's purpose and its account's id, email and name."""
    return await conn.fetchrow(
        f"""
        select action_tokens.purpose, users.id, users.email, users.name
        from action_tokens
        join users on users.id = action_tokens.user_id
        where action_tokens.token_hash = $1 and action_tokens.purpose = any($2) and {_HOLDS}
        """,  # noqa: S608
        token_hash,
        purposes,
    )


async def find_link(conn: Connection, token_hash: bytes) -> asyncpg.Record | None:
    """Return the live token's purpose, its account, the email it concerns, and when it expires."""
    return await conn.fetchrow(
        f"""
        select action_tokens.purpose, users.id as user_id, action_tokens.email,
               action_tokens.expires_at
        from action_tokens
        join users on users.id = action_tokens.user_id
        where action_tokens.token_hash = $1 and {_HOLDS}
        """,  # noqa: S608
        token_hash,
    )


async def take_token(
    conn: Connection, token_hash: bytes, purposes: list[str]
) -> asyncpg.Record | None:
    """Delete the live token and return it. Of concurrent calls, only one gets the row."""
    return await conn.fetchrow(
        """
        delete from action_tokens
        where token_hash = $1 and purpose = any($2) and expires_at > now()
        returning purpose, user_id, email, created_at
        """,
        token_hash,
        purposes,
    )
