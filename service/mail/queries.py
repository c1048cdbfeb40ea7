"""SQL of the outbox."""

import uuid

import asyncpg

from service.db.connection import Connection


async def insert_mail(
    conn: Connection, mail_id: uuid.UUID, message: bytes, lifetime_s: float
) -> None:
    await conn.execute(
        """
        insert into mail_outbox (id, message, expires_at)
        values ($1, $2, now() + make_interval(secs => $3))
        """,
        mail_id,
        message,
        lifetime_s,
    )


async def claim_due(conn: Connection, limit: int, claim_s: float) -> list[asyncpg.Record]:
    """Claim up to ``limit`` mails that are due, for ``claim_s``.

    Rows that another replica is claiming are skipped.
    """
    return await conn.fetch(
        """
        with due as (
            select id from mail_outbox
            where next_attempt_at <= now()
            order by next_attempt_at
            limit $1
            for update skip locked
        )
        update mail_outbox
        set attempts = attempts + 1,
            next_attempt_at = now() + make_interval(secs => $2)
        from due
        where mail_outbox.id = due.id
        returning mail_outbox.id, message, attempts, created_at, expires_at <= now() as expired
        """,
        limit,
        claim_s,
    )


async def postpone(conn: Connection, mail_id: uuid.UUID, attempt: int, delay_s: float) -> bool:
    """Schedule the next attempt in ``delay_s``, with a jitter of a quarter either way.

    Returns False, and changes nothing, if this attempt is no longer the latest.
    """
    postponed: bool | None = await conn.fetchval(
        """
        update mail_outbox
        set next_attempt_at = now() + make_interval(secs => $3 * (0.75 + random() / 2))
        where id = $1 and attempts = $2
        returning true
        """,
        mail_id,
        attempt,
        delay_s,
    )
    return postponed is not None


async def measure_outbox(conn: Connection) -> tuple[int, float]:
    """Return how many mails are waiting, and the age of the oldest in seconds, or 0 if none is."""
    row = await conn.fetchrow(
        """
        select count(*) as mails,
               coalesce(extract(epoch from now() - min(created_at)), 0)::float8 as oldest_age_s
        from mail_outbox
        """
    )
    assert row is not None  # noqa: S101
    return row["mails"], row["oldest_age_s"]


async def delete_mail(conn: Connection, mail_id: uuid.UUID) -> None:
    await conn.execute("delete from mail_outbox where id = $1", mail_id)
