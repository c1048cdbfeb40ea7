"""SQL for sessions and their refresh tokens."""

import uuid
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from service.accounts import queries as accounts
from service.accounts.queries import EPOCH_OF_ACCOUNT, PROFILE
from service.db.connection import Connection
from service.db.listing import Keyset, Statement
from service.http.client_ip import IpAddress

SESSION = """
    id, created_at, last_seen_at, least(expires_at, idle_expires_at) as expires_at, user_agent,
    host(ip) as ip
"""
SESSIONS_NEWEST_FIRST = Keyset({"id": uuid.UUID}, descending=True)


def _level(has_second_factor: str) -> str:
    """Return the level of a session: at most 1 once the account has no second factor.

    ``has_second_factor`` is SQL for whether the session's account has one.
    """
    return f"least(sessions.aal, 1 + ({has_second_factor})::int)"


_LEVEL = _level("users.has_second_factor")
_PROVED_AT = f"case {_LEVEL} when 2 then sessions.aal2_at else sessions.aal1_at end"
# What a session proves, for queries that join users: see auth.assurance.
ASSURANCE = f"sessions.amr, {_LEVEL} as aal, {_PROVED_AT} as proved_at, sessions.created_at"


def _live(epoch: str) -> str:
    """Return the condition that a session has neither expired nor ended.

    ``epoch`` is SQL for the current epoch of the session's account: see ``end_sessions``.
    """
    return f"""
        sessions.epoch = {epoch}
        and sessions.expires_at > now() and sessions.idle_expires_at > now()
    """


# For queries that join users, and for queries about the account $1.
LIVE = _live("users.session_epoch")
LIVE_OF_ACCOUNT = f"sessions.user_id = $1 and {_live(EPOCH_OF_ACCOUNT)}"
# Ends a session. Unlike now(), it has passed for transactions that started before.
ENDED = "'-infinity'"
# A statement that waits for a session's row compares its new epoch with the account's old one. So
# a session that moved to a new epoch meanwhile only looks live to the next statement.
TRIES = 2


async def list_sessions(
    conn: Connection,
    user_id: uuid.UUID,
    after: list[object] | None,
    limit: int,
    current: uuid.UUID | None = None,
) -> list[asyncpg.Record]:
    return await conn.fetch(*select_sessions(user_id, after, limit, current))


def select_sessions(
    user_id: uuid.UUID,
    after: list[object] | None,
    limit: int,
    current: uuid.UUID | None = None,
) -> Statement:
    """Build the query for a page of live sessions after a place in SESSIONS_NEWEST_FIRST."""
    beyond = SESSIONS_NEWEST_FIRST.beyond(4) if after else "true"
    statement = f"""
        select {SESSION}, id = $3 as current, amr,
               'aal' || {_level("select has_second_factor from users where users.id = $1")} as acr
        from sessions
        where {LIVE_OF_ACCOUNT} and {beyond}
        order by {SESSIONS_NEWEST_FIRST.order_by()}
        limit $2
    """  # noqa: S608
    return statement, user_id, limit, current, *(after or ())


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
    amr: Sequence[str],
    aal: int,
) -> datetime:
    """Insert a session that ends after ``ttl_s``, or after ``idle_ttl_s`` without a refresh.

    Its owner has just proved the level ``aal``, and the one below it. Returns that time.
    """
    proved_at: datetime = await conn.fetchval(
        f"""
        with session as (
            insert into sessions (
                user_id, id, epoch, expires_at, idle_expires_at, user_agent, ip,
                amr, aal, aal1_at, aal2_at
            )
            values (
                $1, $2, {EPOCH_OF_ACCOUNT}, now() + make_interval(secs => $3),
                now() + make_interval(secs => $4), $5, $6,
                $8, $9::smallint, now(), case when $9 = 2 then now() end
            )
            returning id
        )
        insert into refresh_tokens (token_hash, session_id)
        select $7, id from session
        returning now()
        """,  # noqa: S608
        user_id,
        session_id,
        ttl_s,
        idle_ttl_s,
        user_agent,
        ip,
        refresh_token_hash,
        amr,
        aal,
    )
    return proved_at


async def find_signed_in(
    conn: Connection, session_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, asyncpg.Record]:
    """Return each live session's user profile, id and assurance, keyed by session id.

    ``proved_s_ago`` is null for a session whose owner proved its level before such times were kept.

    The ids are sent as text. For an array of another type, asyncpg would introspect the catalog
    once per connection, which is slow.
    """
    rows = await conn.fetch(
        f"""
        select {PROFILE}, users.has_second_factor, sessions.id as session_id, {_LEVEL} as aal,
               extract(epoch from now() - {_PROVED_AT})::float8 as proved_s_ago
        from sessions
        join users on users.id = sessions.user_id
        where sessions.id = any($1::text[]::uuid[]) and {LIVE}
        """,  # noqa: S608
        [str(session_id) for session_id in session_ids],
    )
    return {row["session_id"]: row for row in rows}


async def lock_family(conn: Connection, refresh_token_hash: bytes) -> asyncpg.Record | None:
    """Return the token's live session, locked so that concurrent refreshes queue up."""
    for _ in range(TRIES):
        row = await conn.fetchrow(
            f"""
            select sessions.id, sessions.user_id, {ASSURANCE}
            from refresh_tokens
            join sessions on sessions.id = refresh_tokens.session_id
            join users on users.id = sessions.user_id
            where refresh_tokens.token_hash = $1 and {LIVE}
            for update of sessions
            """,  # noqa: S608
            refresh_token_hash,
        )
        if row is not None:
            return row
    return None


async def prove_level(
    conn: Connection,
    user_id: uuid.UUID,
    session_id: uuid.UUID,
    *,
    method: str,
    levels: Sequence[int],
) -> asyncpg.Record | None:
    """Note that the session's owner has just proved ``levels``, and return its assurance.

    Its level rises to the highest of them, and never falls. ``method`` is added to the methods
    unless it is among them. Returns None if the session has ended.
    """
    return await conn.fetchrow(
        f"""
        update sessions
        set aal = greatest(aal, $3::smallint),
            aal1_at = case when $4 then now() else aal1_at end,
            aal2_at = case when $5 then now() else aal2_at end,
            amr = case when $6 = any(amr) then amr else amr || $6::text end
        from users
        where sessions.id = $2 and sessions.user_id = $1 and users.id = $1 and {LIVE}
        returning {ASSURANCE}
        """,  # noqa: S608
        user_id,
        session_id,
        max(levels),
        1 in levels,
        2 in levels,
        method,
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


async def end_session(conn: Connection, user_id: uuid.UUID, session_id: uuid.UUID) -> bool:
    """End the session if it is a live one of the user. Return whether it was.

    The row stays for a job to delete, because thousands of refresh tokens may belong to it.
    """
    for _ in range(TRIES):
        status = await conn.execute(
            f"update sessions set expires_at = {ENDED} where id = $2 and {LIVE_OF_ACCOUNT}",  # noqa: S608
            user_id,
            session_id,
        )
        if status == "UPDATE 1":
            return True
    return False


async def end_sessions_beyond(
    conn: Connection, user_id: uuid.UUID, newest: int, at_most: int
) -> list[uuid.UUID]:
    """End live sessions of the user but the ``newest``, ``at_most`` at once; return their ids."""
    rows = await conn.fetch(
        f"""
        update sessions set expires_at = {ENDED} where id in (
            select id from sessions where {LIVE_OF_ACCOUNT}
            order by {SESSIONS_NEWEST_FIRST.order_by()} offset $2 limit $3
        )
        returning id
        """,  # noqa: S608
        user_id,
        newest,
        at_most,
    )
    return [row["id"] for row in rows]


async def end_sessions(
    conn: Connection, user_id: uuid.UUID, *, but: uuid.UUID | None = None
) -> bool:
    """End all of the user's sessions except ``but``, however many there are.

    Only sessions of the account's current epoch are live, so a new epoch ends them all. ``but``
    moves to the new epoch, unless it has ended in the meantime; then this returns False. A job
    deletes the other rows.
    """
    epoch = await accounts.start_epoch(conn, user_id)
    if but is None:
        return True
    status = await conn.execute(
        """
        update sessions set epoch = $3
        where id = $2 and user_id = $1 and epoch = $3 - 1 and expires_at > now()
        """,
        user_id,
        but,
        epoch,
    )
    return status == "UPDATE 1"


async def delete_ended_sessions(conn: Connection, sessions_max: int, rows_max: int) -> bool:
    """Delete some sessions that have expired or ended one by one. Return whether any were found."""
    rows = await conn.fetch(
        """
        select id from sessions where least(expires_at, idle_expires_at) < now()
        order by least(expires_at, idle_expires_at)
        limit $1 for update skip locked
        """,
        sessions_max,
    )
    return await _delete_sessions(conn, rows, rows_max)


async def delete_sessions_of_past_epochs(
    conn: Connection, user_id: uuid.UUID, sessions_max: int, rows_max: int
) -> bool:
    """Delete some of the user's sessions that ended together. Return whether any were found."""
    rows = await conn.fetch(
        f"""
        select id from sessions where user_id = $1 and epoch < {EPOCH_OF_ACCOUNT}
        limit $2 for update skip locked
        """,  # noqa: S608
        user_id,
        sessions_max,
    )
    return await _delete_sessions(conn, rows, rows_max)


async def delete_sessions_of_user(
    conn: Connection, user_id: uuid.UUID, sessions_max: int, rows_max: int
) -> bool:
    """Delete some of the user's sessions, live ones too. Return whether any were found."""
    rows = await conn.fetch(
        "select id from sessions where user_id = $1 limit $2", user_id, sessions_max
    )
    return await _delete_sessions(conn, rows, rows_max)


async def _delete_sessions(conn: Connection, rows: Sequence[asyncpg.Record], rows_max: int) -> bool:
    """Delete up to ``rows_max`` refresh tokens of the sessions, then those without any.

    So the foreign key never has to delete the thousands of tokens that a session may have.
    """
    ids = [str(row["id"]) for row in rows]
    await conn.execute(
        """
        delete from refresh_tokens where token_hash in (
            select token_hash from refresh_tokens
            where session_id = any($1::text[]::uuid[]) limit $2
        )
        """,
        ids,
        rows_max,
    )
    await conn.execute(
        """
        delete from sessions
        where id = any($1::text[]::uuid[])
          and not exists (select from refresh_tokens where session_id = sessions.id)
        """,
        ids,
    )
    return bool(ids)
