"""SQL of ``users`` for the jobs of ``service.purge``, and for the metric of overdue purges."""

import uuid

import asyncpg

from service.db.connection import Connection


async def list_unswept(
    conn: Connection, after: asyncpg.Record | None, limit: int
) -> list[asyncpg.Record]:
    """Return the next accounts after one that may have sessions of past epochs."""
    return await conn.fetch(
        """
        select id from users
        where session_epoch <> swept_epoch and ($1::uuid is null or id > $1)
        order by id limit $2
        """,
        after and after["id"],
        limit,
    )


async def mark_swept(conn: Connection, user_id: uuid.UUID) -> None:
    """Note that no session of a past epoch is left, unless one is."""
    await conn.execute(
        """
        update users set swept_epoch = session_epoch
        where id = $1 and not exists (
            select from sessions where user_id = $1 and epoch < users.session_epoch
        )
        """,
        user_id,
    )


async def list_due_purges(
    conn: Connection, after: asyncpg.Record | None, limit: int
) -> list[asyncpg.Record]:
    """Return the next accounts after one whose grace period is over, the longest overdue first."""
    return await conn.fetch(
        """
        select id, purge_at from users
        where purge_at <= now() and ($1::uuid is null or (purge_at, id) > ($2, $1))
        order by purge_at, id limit $3
        """,
        after and after["id"],
        after and after["purge_at"],
        limit,
    )


async def lock_due_purge(conn: Connection, user_id: uuid.UUID) -> bool:
    """Lock an account to purge it. Return False if it is not due, or if another replica has it."""
    found = await conn.fetchval(
        "select true from users where id = $1 and purge_at <= now() for update skip locked", user_id
    )
    return found is not None


async def delete_account(conn: Connection, user_id: uuid.UUID) -> None:
    await conn.execute("delete from users where id = $1", user_id)


async def measure_overdue_purges(conn: Connection) -> float:
    """Return for how many seconds the oldest due account has not been purged, or 0."""
    overdue_s: float = await conn.fetchval(
        """
        select coalesce(extract(epoch from now() - min(purge_at)), 0)::float8
        from users where purge_at <= now()
        """
    )
    return overdue_s
