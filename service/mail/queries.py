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


async def claim_due(
    conn: Connection, limit: int, first_retry_s: float, last_retry_s: float
) -> list[asyncpg.Record]:
    """Take up to ``limit`` mails that are due, and put off the next attempt at each.

    It is put off by ``first_retry_s``, twice as long each time, up to ``last_retry_s``, all of it
    give or take a quarter. Rows that another replica is just claiming are passed over.
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
            next_attempt_at = now() + make_interval(
                secs => least($2 * 2 ^ attempts, $3) * (0.75 + random() / 2)
            )
        from due
        where mail_outbox.id = due.id
        returning mail_outbox.id, message, attempts, created_at, expires_at <= now() as expired
        """,
        limit,
        first_retry_s,
        last_retry_s,
    )


async def measure_outbox(conn: Connection) -> tuple[int, float]:
    """How many mails are not sent yet, and the age of the oldest in seconds; 0 without any."""
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
