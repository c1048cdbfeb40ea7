"""Forgetting: what has expired, and accounts whose grace has passed."""

import uuid

import structlog
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit import queries as audit_queries
from service.database import Connection
from service.idempotency import LIFETIME_H
from service.periodic import Job

log = structlog.get_logger(__name__)

ACCOUNTS_AT_ONCE = 100


async def forget_expired(app: web.Application, conn: Connection) -> None:
    """Sessions, links and idempotent answers that nobody can use any more."""
    await conn.execute("delete from sessions where least(expires_at, idle_expires_at) < now()")
    await conn.execute("delete from action_tokens where expires_at < now()")
    await conn.execute(
        "delete from idempotency_keys where created_at < now() - make_interval(hours => $1)",
        LIFETIME_H,
    )


async def reinstate_lapsed(app: web.Application, conn: Connection) -> None:
    """Accounts whose suspension has passed are active again, in lists too."""
    rows = await conn.fetch(
        """
        update users
        set status = 'active', suspended_until = null, suspension_reason = null,
            version = version + 1, updated_at = now()
        where suspended_until <= now()
        returning id
        """
    )
    for row in rows:
        await _record(conn, "user.reinstate", row["id"])


async def purge_accounts(app: web.Application, conn: Connection) -> None:
    """Delete accounts whose grace has passed, and take what names them out of the audit."""
    rows = await conn.fetch(
        """
        select id from users where purge_at <= now()
        order by purge_at limit $1 for update skip locked
        """,
        ACCOUNTS_AT_ONCE,
    )
    for row in rows:
        await audit_queries.pseudonymise(conn, row["id"])
        await conn.execute("delete from users where id = $1", row["id"])
        await _record(conn, "user.purge", row["id"])
    if rows:
        log.info("accounts purged", count=len(rows))


async def _record(conn: Connection, action: str, subject_id: uuid.UUID) -> None:
    """An event whose actor is the service itself."""
    await audit_queries.insert_event(
        conn,
        event_id=uuid_utils.uuid7(),
        action=action,
        actor_id=None,
        actor_role=None,
        subject_id=subject_id,
        address=None,
        user_agent="",
        request_id="",
        before=None,
        after=None,
    )


JOBS = (
    Job("forget expired", 300, forget_expired),
    Job("reinstate lapsed", 60, reinstate_lapsed),
    Job("purge accounts", 60, purge_accounts),
)
