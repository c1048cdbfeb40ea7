"""SQL for sessions and their refresh tokens."""

import uuid
from collections.abc import Sequence

import asyncpg

from service.accounts.queries import PROFILE
from service.db.connection import Connection
from service.db.listing import Keyset, Statement
from service.http.client_ip import IpAddress

SESSION = """
    id, created_at, last_seen_at, least(expires_at, idle_expires_at) as expires_at, user_agent,
    host(ip) as ip
"""
SESSIONS_NEWEST_FIRST = Keyset({"id": uuid.UUID}, descending=True)


async def list_sessions_page(
    conn: Connection, user_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    return await conn.fetch(*select_sessions_page(user_id, after, limit))


def select_sessions_page(user_id: uuid.UUID, after: list[object] | None, limit: int) -> Statement:
    """Build the query for a page of live sessions after a place in SESSIONS_NEWEST_FIRST."""
    beyond = SESSIONS_NEWEST_FIRST.beyond(3) if after else "true"
    statement = f"""
        select {SESSION} from sessions
        where user_id = $1 and least(expires_at, idle_expires_at) > now() and {beyond}
        order by {SESSIONS_NEWEST_FIRST.order_by()}
        limit $2
    """  # noqa: S608
    return statement, user_id, limit, *(after or ())


async def insert_session(
    conn: Connection,
    *,
    session_id: uuid.UUID,
    user_id: uuid.UUID,
    refresh_token_hash: bytes,
    ttl_s: int,
    idle_ttl_s: int,
    user_agent: str,
    ip: IpAddress | None,
) -> None:
    """Insert a session that ends after ``ttl_s``, or after ``idle_ttl_s`` without a refresh."""
    await conn.execute(
        """
        with session as (
            insert into sessions (id, user_id, expires_at, idle_expires_at, user_agent, ip)
            values (
                $1, $2, now() + make_interval(secs => $3), now() + make_interval(secs => $4), $5, $6
            )
            returning id
        )
        insert into refresh_tokens (token_hash, session_id)
        select $7, id from session
        """,
        session_id,
        user_id,
        ttl_s,
        idle_ttl_s,
        user_agent,
        ip,
        refresh_token_hash,
    )


async def find_signed_in(
    conn: Connection, session_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, asyncpg.Record]:
    """Return each live session's user profile and session id, keyed by session id.

    The ids are sent as text. For an array of another type, asyncpg would introspect the catalog
    once per connection, which is slow.
    """
    rows = await conn.fetch(
        f"""
        select {PROFILE}, sessions.id as session_id
        from sessions
        join users on users.id = sessions.user_id
        where sessions.id = any($1::text[]::uuid[])
          and sessions.expires_at > now() and sessions.idle_expires_at > now()
        """,  # noqa: S608
        [str(session_id) for session_id in session_ids],
    )
    return {row["session_id"]: row for row in rows}


async def lock_family(conn: Connection, refresh_token_hash: bytes) -> asyncpg.Record | None:
    """Return the token's live session, locked so that concurrent refreshes queue up."""
    return await conn.fetchrow(
        """
        select sessions.id, sessions.user_id
        from refresh_tokens
        join sessions on sessions.id = refresh_tokens.session_id
        where refresh_tokens.token_hash = $1
          and sessions.expires_at > now() and sessions.idle_expires_at > now()
        for update of sessions
        """,
        refresh_token_hash,
    )


async def use_refresh_token(conn: Connection, refresh_token_hash: bytes) -> bool:
    """Mark the token as used. Return whether this was its first use."""
    status = await conn.execute(
        """
        update refresh_tokens set used_at = clock_timestamp()
        where token_hash = $1 and used_at is null
        """,
        refresh_token_hash,
    )
    return status == "UPDATE 1"


async def is_retry(
    conn: Connection, refresh_token_hash: bytes, successor_hash: bytes, grace_s: float
) -> bool:
    """Return whether the token was used within ``grace_s`` and its successor is still unused."""
    found = await conn.fetchval(
        """
        select 1
        from refresh_tokens as used, refresh_tokens as successor
        where used.token_hash = $1 and successor.token_hash = $2
          and used.used_at > clock_timestamp() - make_interval(secs => $3)
          and successor.used_at is null
        """,
        refresh_token_hash,
        successor_hash,
        grace_s,
    )
    return found is not None


async def extend_session(
    conn: Connection,
    session_id: uuid.UUID,
    *,
    refresh_token_hash: bytes,
    idle_ttl_s: int,
    user_agent: str,
    ip: IpAddress | None,
) -> None:
    """Update when and where the session was seen, and store its next refresh token."""
    await conn.execute(
        """
        with session as (
            update sessions
            set last_seen_at = now(), idle_expires_at = now() + make_interval(secs => $3),
                user_agent = $4, ip = $5
            where id = $1
            returning id
        )
        insert into refresh_tokens (token_hash, session_id)
        select $2, id from session
        """,
        session_id,
        refresh_token_hash,
        idle_ttl_s,
        user_agent,
        ip,
    )


async def list_sessions(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return the user's live sessions, most recently seen first."""
    return await conn.fetch(
        f"""
        select {SESSION} from sessions
        where user_id = $1 and expires_at > now() and idle_expires_at > now()
        order by last_seen_at desc, id desc
        """,  # noqa: S608
        user_id,
    )


async def export_sessions(conn: Connection, user_id: uuid.UUID) -> list[asyncpg.Record]:
    """Return all of the user's sessions, oldest first, with expired ones not yet purged."""
    return await conn.fetch(
        f"select {SESSION} from sessions where user_id = $1 order by created_at",  # noqa: S608
        user_id,
    )


async def delete_session(conn: Connection, user_id: uuid.UUID, session_id: uuid.UUID) -> bool:
    """End the session if it belongs to the user. Return whether it did."""
    status = await conn.execute(
        "delete from sessions where id = $1 and user_id = $2", session_id, user_id
    )
    return status == "DELETE 1"


async def delete_sessions(
    conn: Connection, user_id: uuid.UUID, *, but: uuid.UUID | None = None
) -> int:
    """End all of the user's sessions except ``but``. Return how many ended."""
    status = await conn.execute(
        "delete from sessions where user_id = $1 and id is distinct from $2", user_id, but
    )
    return int(status.split()[1])
