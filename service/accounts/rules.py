"""Rules for all accounts: an active administrator always remains, and suspensions expire."""

import uuid

from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record_unattended
from service.db.connection import Connection
from service.http.problems import Problem, ProblemType

LAST_ADMINISTRATOR = ProblemType(
    409,
    "last_administrator",
    "This is the last active administrator. Promote another account first.",
)


async def keep_an_administrator(conn: Connection, user_id: uuid.UUID) -> None:
    """Raise Problem 409 if this account is the only active administrator.

    Call it before locking the account itself. Administrators are always locked in the same order,
    so concurrent demotions wait for each other instead of deadlocking.
    """
    if await accounts.lock_active_administrators(conn) == [user_id]:
        raise Problem(LAST_ADMINISTRATOR)


async def end_due_suspensions(app: web.Application, conn: Connection) -> None:
    """Reactivate accounts whose ``suspended_until`` has passed. Sign-in does not wait for it."""
    for user_id in await accounts.lock_due_suspensions(conn):
        await accounts.reactivate_account(conn, user_id)
        await record_unattended(
            conn,
            "user.reinstate",
            user_id,
            before={"status": "suspended"},
            after={"status": "active"},
        )
