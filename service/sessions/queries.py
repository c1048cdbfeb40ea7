"""SQL of sessions and their refresh tokens."""

import uuid

import asyncpg

from service.database import Connection


async def insert_session(
    conn: Connection,
    session_id: uuid.UUID,
    user_id: uuid.UUID,
    refresh_token_hash: bytes,
    ttl_s: int,
) -> None:
    """A session that ends after ``ttl_s`` seconds at the latest, and its first refresh token."""
    await conn.execute(
        """
        with session as (
            insert into sessions (id, user_id, expires_at)
            values ($1, $2, now() + make_interval(secs => $3))
            returning id
        )
        insert into refresh_tokens (token_hash, session_id)
        select $4, id from session
        """,
        session_id,
        user_id,
        ttl_s,
        refresh_token_hash,
    )


async def find_signed_in(
    conn: Connection, session_id: uuid.UUID, user_id: uuid.UUID
) -> asyncpg.Record | None:
    """The user's profile and the session's id, where the session is that user's and alive."""
    return await conn.fetchrow(
        """
        select users.id, users.email, users.email_verified_at is not null as email_verified,
               users.name, users.role, users.settings, users.version,
               users.created_at, users.updated_at, sessions.id as session_id
        from sessions
        join users on users.id = sessions.user_id
        where sessions.id = $1 and sessions.user_id = $2 and sessions.expires_at > now()
        """,
        session_id,
        user_id,
    )
