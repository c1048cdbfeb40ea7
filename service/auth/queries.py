"""SQL of signing keys and of the credentials that a sign-in checks."""

import uuid

import asyncpg

from service.database import Connection


async def list_signing_keys(conn: Connection) -> list[asyncpg.Record]:
    """All keys that verify, the one that signs first."""
    return await conn.fetch(
        "select id, encrypted_key from signing_keys order by created_at desc, id"
    )


async def lock_signing_keys(conn: Connection) -> None:
    """Let one transaction at a time decide whether a key is to be made; readers do not wait."""
    await conn.execute("lock table signing_keys in share row exclusive mode")


async def insert_signing_key(conn: Connection, key_id: str, encrypted_key: bytes) -> None:
    await conn.execute(
        "insert into signing_keys (id, encrypted_key) values ($1, $2)", key_id, encrypted_key
    )


async def insert_action_token(
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


async def find_credentials(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The id and password hash of the account with this address, unless it is suspended."""
    return await conn.fetchrow(
        """
        select id, password_hash from users
        where email_folded = $1 and (status <> 'suspended' or suspended_until <= now())
        """,
        email_folded,
    )


async def lock_credentials(conn: Connection, user_id: uuid.UUID, password_hash: str) -> bool:
    """Whether this is still the account's hash; it stays so until the transaction ends.

    Without it, a sign-in that verified the old password could open its session just after a
    password change, or a suspension, had ended all of them.
    """
    return (
        await conn.fetchval(
            """
            select 1 from users
            where id = $1 and password_hash = $2
                and (status <> 'suspended' or suspended_until <= now())
            for share
            """,
            user_id,
            password_hash,
        )
        is not None
    )
