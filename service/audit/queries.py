"""SQL of the audit."""

import uuid
from typing import Any

from service.addresses import Address
from service.database import Connection


async def insert_event(
    conn: Connection,
    *,
    event_id: uuid.UUID,
    action: str,
    actor_id: uuid.UUID | None,
    actor_role: str | None,
    subject_id: uuid.UUID | None,
    address: Address | None,
    user_agent: str,
    request_id: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    await conn.execute(
        """
        insert into audit_events (
            id, action, actor_id, actor_role, subject_id, address, user_agent, request_id,
            before, after
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        event_id,
        action,
        actor_id,
        actor_role,
        subject_id,
        address,
        user_agent,
        request_id,
        before,
        after,
    )


async def pseudonymise(conn: Connection, user_id: uuid.UUID) -> None:
    """Take out of the events what says more of a user than an id that nothing resolves any more."""
    await conn.execute("select set_config('shinkei.pseudonymise', 'on', true)")
    await conn.execute(
        """
        update audit_events
        set before = case when subject_id = $1 then null else before end,
            after = case when subject_id = $1 then null else after end,
            address = case when actor_id = $1 then null else address end,
            user_agent = case when actor_id = $1 then null else user_agent end
        where subject_id = $1 or actor_id = $1
        """,
        user_id,
    )
