"""What removing factors changes: for owners, administrators, and links from emails."""

import uuid
from collections.abc import Sequence

import asyncpg

from service.accounts import credential_queries as credentials
from service.audit.events import Author, record
from service.db.connection import Connection
from service.factors import queries
from service.factors.listing import event_of


async def update_after_removal(
    conn: Connection,
    by: Author,
    user_id: uuid.UUID,
    removed: Sequence[asyncpg.Record],
    *,
    actor_id: uuid.UUID | None = None,
) -> bool:
    """Update the account after factors were removed, and record each.

    Return whether it still has a second factor. Without one, its recovery codes go too. The account
    is locked. The caller must end its sessions, which also ends sign-ins in progress.
    """
    has_second_factor = await queries.has_second_factor(conn, user_id)
    await credentials.set_has_second_factor(conn, user_id, has=has_second_factor)
    if not has_second_factor:
        await queries.delete_recovery_codes(conn, user_id)
    for factor in removed:
        before = event_of(factor)
        await record(conn, by, "factor.remove", user_id, actor_id=actor_id, before=before)
    return has_second_factor
