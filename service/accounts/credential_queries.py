"""SQL for the columns of ``users`` that accounts sign in with."""

import uuid

import asyncpg

from service.db.connection import Connection

# The grace period of the account is not over: see ``service.purge``. Afterwards nobody may sign in,
# as a part of the account may be deleted already.
_NOT_DUE = "(purge_at is null or purge_at > now())"
# Decides whether the account may sign in. An expired suspension no longer counts, and owners may
# cancel only their own deletion.
_SIGN_IN_STATE = """
    status, email_verified_at is not null as email_verified, has_second_factor,
    case status
        when 'suspended' then coalesce(suspended_until > now(), true)
        when 'deleting' then deleted_by_admin
        else false
    end as barred
"""


async def find_credentials(conn: Connection, email_folded: str) -> asyncpg.Record | None:
    """Return the id, password hash and sign-in state of the account with this email.

    Once its grace period is over, an account counts as deleted.
    """
    return await conn.fetchrow(
        f"""
        select id, password_hash, {_SIGN_IN_STATE} from users
        where email_folded = $1 and {_NOT_DUE}
        """,  # noqa: S608
        email_folded,
    )


async def find_own_credentials(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """Return the id and password hash of the account, and whether it has a second factor."""
    return await conn.fetchrow(
        "select id, password_hash, has_second_factor from users where id = $1", user_id
    )


async def lock_credentials(
    conn: Connection, user_id: uuid.UUID, password_hash: str | None
) -> asyncpg.Record | None:
    """Lock the account; return its version and sign-in state, or None if the hash has changed.

    Without this lock, a sign-in that verified the old password could open a session right after a
    password change or suspension ended them all.
    """
    return await conn.fetchrow(
        f"""
        select id, version, {_SIGN_IN_STATE} from users
        where id = $1 and password_hash is not distinct from $2 and {_NOT_DUE}
        for no key update
        """,  # noqa: S608
        user_id,
        password_hash,
    )


async def lock_sign_in(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record | None:
    """Lock the account and return its sign-in state, as ``lock_credentials`` does."""
    return await conn.fetchrow(
        f"""
        select id, version, {_SIGN_IN_STATE} from users
        where id = $1 and {_NOT_DUE}
        for no key update
        """,  # noqa: S608
        user_id,
    )


async def update_password(conn: Connection, user_id: uuid.UUID, password_hash: str | None) -> None:
    """Set the hash. None disables the password until the owner sets a new one by link."""
    await conn.execute(
        "update users set password_hash = $2 where id = $1",
        user_id,
        password_hash,
    )


async def set_has_second_factor(conn: Connection, user_id: uuid.UUID, *, has: bool) -> None:
    """Note whether the account has a second factor. If that has changed, so has its version."""
    await conn.execute(
        """
        update users set has_second_factor = $2, version = version + 1, updated_at = now()
        where id = $1 and has_second_factor <> $2
        """,
        user_id,
        has,
    )


async def find_passkey_handle(conn: Connection, user_id: uuid.UUID) -> bytes | None:
    """Return what authenticators know the account by, once it has been chosen."""
    handle: bytes | None = await conn.fetchval(
        "select passkey_handle from users where id = $1", user_id
    )
    return handle


async def set_passkey_handle(conn: Connection, user_id: uuid.UUID, handle: bytes) -> bytes:
    """Choose what authenticators know the account by, unless it has been. Return it."""
    kept: bytes = await conn.fetchval(
        """
        update users set passkey_handle = coalesce(passkey_handle, $2)
        where id = $1 returning passkey_handle
        """,
        user_id,
        handle,
    )
    return kept


async def find_recovery_key(conn: Connection, user_id: uuid.UUID) -> bytes | None:
    """Return the sealed key of the account's recovery codes."""
    key: bytes | None = await conn.fetchval("select recovery_key from users where id = $1", user_id)
    return key


async def set_recovery_key(conn: Connection, user_id: uuid.UUID, sealed_key: bytes | None) -> None:
    """Set the sealed key of the account's recovery codes; None if it has none."""
    await conn.execute("update users set recovery_key = $2 where id = $1", user_id, sealed_key)
