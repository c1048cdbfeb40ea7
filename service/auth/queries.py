"""SQL of signing keys and of the credentials that a sign-in checks."""

import uuid

import asyncpg

from service.database import Connection

# Whether the account may sign in; a suspension that has passed is none.
_STANDING = """
    status, email_verified_at is not null as email_verified,
    status = 'suspended' and coalesce(suspended_until > now(), true) as suspended
"""


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
    """The id, password hash and standing of the account with this address."""
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
