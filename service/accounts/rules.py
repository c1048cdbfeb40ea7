"""What holds for accounts, whoever changes them: an administrator stays, suspensions end."""

import uuid

from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record_unattended
from service.db.connection import Connection
from service.http.problems import Problem, ProblemType

LAST_ADMINISTRATOR = ProblemType(
    409,
    "last_administrator",
    "This is the last active administrator. Make another account one first.",
)


async def keep_an_administrator(conn: Connection, user_id: uuid.UUID) -> None:
    """Raise Problem 409 if this account is the only active administrator.

    To be called before the account itself is locked: administrators are always locked in one
    order, so that those who demote each other wait rather than deadlock.
    """
    if await accounts.lock_active_administrators(conn) == [user_id]:
        raise Problem(LAST_ADMINISTRATOR)


async def end_due_suspensions(app: web.Application, conn: Connection) -> None:
    """Make accounts active whose ``suspended_until`` has passed. Sign-in does not wait for this."""
    for user_id in await accounts.lock_due_suspensions(conn):
        await accounts.reactivate_account(conn, user_id)
        await record_unattended(
            conn,
            "user.reinstate",
            user_id,
            before={"status": "suspended"},
            after={"status": "active"},
        )
