"""SQL of signing keys."""

import asyncpg

from service.db.connection import Connection

# A key stops verifying $1 seconds after its successor starts to sign. The newest key has no
# successor, so its retires_at is null.
_KEYS = """
    with keys as (
        select id, encrypted_key, created_at, signs_from,
               lead(signs_from) over (order by signs_from, created_at, id)
                   + make_interval(secs => $1) as retires_at
        from signing_keys
    )
"""


async def list_signing_keys(conn: Connection, verifies_s: float) -> list[asyncpg.Record]:
    """Return the keys that verify, in signing order.

    ``signs_in_s`` is positive for keys that do not sign yet. A key verifies until ``verifies_s``
    seconds after its successor starts to sign.
    """
    return await conn.fetch(
        f"""
        {_KEYS}
        select id, encrypted_key, created_at, signs_from, retires_at,
               extract(epoch from signs_from - now())::float8 as signs_in_s
        from keys
        where coalesce(retires_at > now(), true)
        order by signs_from, created_at, id
        """,  # noqa: S608
        verifies_s,
    )


async def lock_signing_keys(conn: Connection) -> None:
    """Let one transaction at a time change the keys; readers do not wait."""
    await conn.execute("lock table signing_keys in share row exclusive mode")


async def insert_signing_key(
    conn: Connection, key_id: str, encrypted_key: bytes, signs_in_s: float
) -> asyncpg.Record:
    """Insert a key that signs in ``signs_in_s`` seconds; return its id and ``signs_from``."""
    row = await conn.fetchrow(
        """
        insert into signing_keys (id, encrypted_key, signs_from)
        values ($1, $2, now() + make_interval(secs => $3))
        returning id, signs_from
        """,
        key_id,
        encrypted_key,
        signs_in_s,
    )
    assert row is not None  # noqa: S101
    return row


async def start_signing(conn: Connection, key_id: str) -> asyncpg.Record:
    """Let a key sign from now on; return its id and ``signs_from``."""
    row = await conn.fetchrow(
        "update signing_keys set signs_from = now() where id = $1 returning id, signs_from", key_id
    )
    assert row is not None  # noqa: S101
    return row


async def delete_signing_keys_but(conn: Connection, key_id: str) -> list[str]:
    """Delete all other keys and return their ids."""
    rows = await conn.fetch("delete from signing_keys where id <> $1 returning id", key_id)
    return [row["id"] for row in rows]


async def delete_retired_keys(conn: Connection, verifies_s: float) -> None:
    """Delete the keys that no longer verify: see ``list_signing_keys``."""
    await conn.execute(
        f"""
        {_KEYS}
        delete from signing_keys where id in (select id from keys where retires_at <= now())
        """,  # noqa: S608
        verifies_s,
    )
