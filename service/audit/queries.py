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
