"""Jobs that delete expired rows, and accounts whose grace period is over."""

import logging

from aiohttp import web

from service.audit import queries as audit_queries
from service.audit.events import record_unattended
from service.auth import queries as auth_queries
from service.auth.signing_keys import verifies_s
from service.context import SETTINGS
from service.db.connection import Connection
from service.http.idempotency import LIFETIME_H
from service.jobs.periodic import Job

log = logging.getLogger(__name__)

ACCOUNTS_AT_ONCE = 100
# Each session may have thousands of used refresh tokens, which are deleted with it.
SESSIONS_AT_ONCE = 500


async def forget_sessions(app: web.Application, conn: Connection) -> None:
    """Delete expired sessions with their refresh tokens."""
    await conn.execute(
        """
        delete from sessions where id in (
            select id from sessions where least(expires_at, idle_expires_at) < now()
            limit $1 for update skip locked
        )
        """,
        SESSIONS_AT_ONCE,
    )


async def forget_links(app: web.Application, conn: Connection) -> None:
    """Delete the tokens of expired links."""
    await conn.execute("delete from action_tokens where expires_at < now()")


async def forget_stored_responses(app: web.Application, conn: Connection) -> None:
    """Delete stored idempotent responses that are older than ``LIFETIME_H``."""
    await conn.execute(
        "delete from idempotency_keys where created_at < now() - make_interval(hours => $1)",
        LIFETIME_H,
    )


async def forget_keys(app: web.Application, conn: Connection) -> None:
    """Delete signing keys that no longer verify."""
    await auth_queries.delete_retired_keys(conn, verifies_s(app[SETTINGS]))


async def purge_accounts(app: web.Application, conn: Connection) -> None:
    """Delete accounts whose grace period is over, and pseudonymise their audit events."""
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
        await record_unattended(conn, "user.purge", row["id"])
    if rows:
        log.info("accounts purged", extra={"count": len(rows)})


JOBS = (
    Job("forget sessions", 30, forget_sessions),
    Job("forget links", 300, forget_links),
    Job("forget stored responses", 300, forget_stored_responses),
    Job("forget keys", 300, forget_keys),
    Job("purge accounts", 60, purge_accounts),
)
