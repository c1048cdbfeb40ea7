"""Accounts with a long history, inserted into the database."""

from typing import Any

from tests.support.factories import Account


async def add_sessions(
    conn: Any, account: Account, count: int, *, tokens: int = 1, state: str = "live"
) -> None:
    """Add sessions that are older than the account's own, each with used refresh tokens.

    ``state`` is "live", or "expired".
    """
    lasts = {"live": "interval '1 day'", "expired": "interval '-1 second'"}[state]
    await conn.execute(
        f"""
        with added as (
            insert into sessions (id, user_id, expires_at, idle_expires_at)
            select lpad(to_hex(n), 32, '0')::uuid, $1, now() + {lasts}, now() + {lasts}
            from generate_series(1, $2) n
            returning id
        )
        insert into refresh_tokens (token_hash, session_id, used_at)
        select sha256((id::text || n)::bytea), id, now() from added, generate_series(1, $3) n
        """,
        account.profile["id"],
        count,
        tokens,
    )


async def add_events(conn: Any, account: Account, count: int) -> None:
    """Add audit events of the account, a second apart, the last of them a minute old."""
    await conn.execute(
        """
        insert into audit_events (
            id, occurred_at, action, actor_id, subject_id, ip, user_agent, after
        )
        select gen_random_uuid(), now() - interval '1 minute' - n * interval '1 second',
               'session.start', $1, $1, '192.0.2.1', 'a browser', '{"name": "Ada"}'
        from generate_series(1, $2) n
        """,
        account.profile["id"],
        count,
    )


async def versions(conn: Any, account: Account) -> set[tuple[str, str]]:
    """Return the row versions of the account's sessions and their refresh tokens."""
    rows = await conn.fetch(
        """
        select id::text, sessions.xmin::text from sessions where user_id = $1
        union all
        select token_hash::text, refresh_tokens.xmin::text
        from refresh_tokens join sessions on sessions.id = session_id where user_id = $1
        """,
        account.profile["id"],
    )
    return {tuple(row) for row in rows}
