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


async def find_credentials(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """The id and password hash of the account with this address."""
    return await conn.fetchrow(
        "select id, password_hash from users where email_folded = $1", email_folded
    )


async def lock_credentials(conn: Connection, user_id: uuid.UUID, password_hash: str) -> bool:
    """Whether this is still the account's hash; it stays so until the transaction ends.

    Without it, a sign-in that verified the old password could open its session just after a
    password change had ended all of them.
    """
    return (
        await conn.fetchval(
            "select 1 from users where id = $1 and password_hash = $2 for no key update",
            user_id,
            password_hash,
        )
        is not None
    )


async def replace_password_hash(conn: Connection, user_id: uuid.UUID, password_hash: str) -> None:
    """Store another hash of the same password; after ``lock_credentials``."""
    await conn.execute("update users set password_hash = $2 where id = $1", user_id, password_hash)
