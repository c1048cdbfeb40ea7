"""SQL for challenges: of sign-ins that need a second factor, and of passkeys that were used."""

import uuid
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from service.db.connection import Connection


async def insert_challenge(
    conn: Connection,
    *,
    token_hash: bytes,
    user_id: uuid.UUID,
    amr: Sequence[str],
    tries: int,
    ttl_s: int,
    throttle_counts: object,
    newest: int,
) -> None:
    """Insert a challenge, and delete those of the account but the ``newest`` before it."""
    await conn.execute(
        """
        delete from sign_in_challenges where token_hash in (
            select token_hash from sign_in_challenges where user_id = $1
            order by created_at desc offset $2
        )
        """,
        user_id,
        newest,
    )
    await conn.execute(
        """
        insert into sign_in_challenges (
            token_hash, user_id, epoch, amr, tries_left, throttle_counts, expires_at
        )
        select $2, id, session_epoch, $3, $4, $5, now() + make_interval(secs => $6)
        from users where id = $1
        """,
        user_id,
        token_hash,
        amr,
        tries,
        throttle_counts,
        ttl_s,
    )


_LIVE_CHALLENGE = """
    token_hash = $1 and tries_left > 0 and sign_in_challenges.expires_at > now()
    and users.id = sign_in_challenges.user_id and users.session_epoch = sign_in_challenges.epoch
"""


async def find_challenge(conn: Connection, token_hash: bytes) -> asyncpg.Record | None:
    """Return the live challenge's account, with its email."""
    return await conn.fetchrow(
        f"""
        select users.id as user_id, users.email, users.email_folded
        from sign_in_challenges, users where {_LIVE_CHALLENGE}
        """,  # noqa: S608
        token_hash,
    )


async def take_try(conn: Connection, token_hash: bytes) -> bool:
    """Take one of the live challenge's tries. Return whether one was left."""
    status = await conn.execute(
        f"""
        update sign_in_challenges set tries_left = tries_left - 1 from users
        where {_LIVE_CHALLENGE}
        """,  # noqa: S608
        token_hash,
    )
    return status == "UPDATE 1"


async def use_sign_in_challenge(conn: Connection, token_hash: bytes) -> asyncpg.Record:
    """Delete the challenge of a sign-in that succeeds, whose account is locked, and return it.

    ``age`` is how long ago the first step was.
    """
    row = await conn.fetchrow(
        """
        delete from sign_in_challenges where token_hash = $1
        returning sign_in_challenges.amr, sign_in_challenges.throttle_counts,
                  now() - sign_in_challenges.created_at as age
        """,
        token_hash,
    )
    assert row is not None  # noqa: S101
    return row


async def delete_challenges(conn: Connection, user_id: uuid.UUID) -> None:
    """End the account's sign-ins that need a second factor."""
    await conn.execute("delete from sign_in_challenges where user_id = $1", user_id)


async def get_time(conn: Connection) -> datetime:
    """Return the database's time."""
    time: datetime = await conn.fetchval("select clock_timestamp()")
    return time


async def use_challenge(
    conn: Connection, challenge_hash: bytes, expires_at: datetime, kept_s: float
) -> bool:
    """Note that a passkey's challenge has been used. Return whether it could be.

    The note is kept for ``kept_s`` longer: the clock of a server that is promoted may be behind.
    """
    status = await conn.execute(
        """
        insert into used_challenges (challenge_hash, expires_at)
        select $1, $2::timestamptz + make_interval(secs => $3)
        where $2 > clock_timestamp()
        on conflict on constraint used_challenges_pkey do nothing
        """,
        challenge_hash,
        expires_at,
        kept_s,
    )
    return status == "INSERT 0 1"


async def delete_expired(conn: Connection, rows_max: int) -> None:
    """Delete some of the expired challenges."""
    for table, key in (("sign_in_challenges", "token_hash"), ("used_challenges", "challenge_hash")):
        await conn.execute(
            f"""
            delete from {table} where {key} in (
                select {key} from {table} where expires_at < now() limit $1
            )
            """,  # noqa: S608
            rows_max,
        )
