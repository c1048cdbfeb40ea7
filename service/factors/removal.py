"""What follows the removal of factors, whoever removed them."""

import uuid
from collections.abc import Sequence

import asyncpg

from service.accounts import credential_queries as credentials
from service.audit.events import Author, record
from service.db.connection import Connection
from service.factors import challenge_queries, queries
from service.factors.listing import event_of


async def clear_after_removal(
    conn: Connection,
    by: Author,
    user_id: uuid.UUID,
    removed: Sequence[asyncpg.Record],
    *,
    actor_id: uuid.UUID | None = None,
) -> bool:
    """Record the removal of factors, and return whether the account has any left.

    Challenges that could be answered with a removed factor go, and with the last factor the
    recovery codes. The account is locked.
    """
    has_second_factor = await queries.has_second_factor(conn, user_id)
    await credentials.set_has_second_factor(conn, user_id, has=has_second_factor)
    if not has_second_factor:
        await queries.delete_recovery_codes(conn, user_id)
    await challenge_queries.delete_challenges(conn, user_id)
    for factor in removed:
        before = event_of(factor)
        await record(conn, by, "factor.remove", user_id, actor_id=actor_id, before=before)
    return has_second_factor
