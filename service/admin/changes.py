"""Changes to accounts by administrators, over HTTP or from the command line.

Each function runs in the caller's transaction. ``by`` is the request or the operator who makes the
change. Only a request has preconditions to check.
"""

import uuid
from datetime import datetime
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.accounts import queries as accounts
from service.accounts.rules import keep_an_administrator
from service.admin import schemas
from service.audit.events import Author, record
from service.auth.assurance import needs_second_factor
from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.factors import queries as factors
from service.factors.passkeys import keep_a_way_in
from service.factors.problems import FACTOR_NOT_FOUND, LAST_SECOND_FACTOR
from service.factors.removal import update_after_removal
from service.http.conditional import check_preconditions
from service.http.fields import fold_email
from service.http.problems import ACCOUNT_NOT_FOUND, EMAIL_TAKEN, Problem, ProblemType
from service.json_codec import same
from service.mail.notices import send_mail
from service.recovery.links import (
    create_password_reset_link,
    start_email_verification,
    start_password_reset,
)
from service.sessions import queries as session_queries

ACCOUNT_DELETING = ProblemType(
    409, "account_deleting", "This account is being deleted. Reinstate it first."
)
ACCOUNT_SUSPENDED = ProblemType(
    409, "account_suspended", "This account is suspended. Reinstate it first."
)
ACCOUNT_PURGE_DUE = ProblemType(
    409,
    "account_purge_due",
    "The grace period is over. This account can no longer be reinstated.",
)

_UNRECORDED_FIELDS = {"version", "updated_at"}


async def lock_account(conn: Connection, user_id: uuid.UUID, by: Author) -> asyncpg.Record:
    """Return the account, locked. Raises Problem 404, or 412 if a precondition fails."""
    user = await accounts.lock_account(conn, user_id)
    if user is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    if isinstance(by, web.Request):
        check_preconditions(by, user["version"])
    return user


async def create_account(
    conn: Connection,
    app: web.Application,
    by: Author,
    *,
    email: str,
    email_verified: bool = False,
    name: str = "",
    role: str,
    settings: dict[str, Any],
    password_hash: str | None = None,
) -> asyncpg.Record:
    """Create an account. Raises Problem 409 if the email is taken.

    Without a password, its owner receives a link to set one; otherwise, a link to verify the email
    unless it already is.
    """
    given: dict[str, Any] = {"email": email, "name": name, "role": role, "settings": settings}
    try:
        user = await accounts.insert_account(
            conn,
            user_id=uuid_utils.uuid7(),
            email_folded=fold_email(email),
            email_verified=email_verified,
            password_hash=password_hash,
            **given,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise Problem(EMAIL_TAKEN) from None
    if password_hash is None:
        await start_password_reset(conn, app, user)
    elif not email_verified:
        await start_email_verification(conn, app, user)
    verified = {"email_verified": True} if email_verified else {}
    await record(conn, by, "user.create", user["id"], after={**given, **verified})
    return user


async def promote_to_administrator(conn: Connection, email: str, by: Author) -> None:
    """Make an account an administrator. Raises Problem 404 if it is unknown or inactive."""
    user = await accounts.lock_account_by_email(conn, fold_email(email))
    if user is None or user["status"] != "active":
        raise Problem(ACCOUNT_NOT_FOUND, "There is no active account with this email.")
    await set_role(conn, user["id"], by, "admin")


async def set_role(conn: Connection, user_id: uuid.UUID, by: Author, role: str) -> asyncpg.Record:
    """Give the account this role. Raises Problem 409 if no active administrator would remain."""
    if role != "admin":
        await keep_an_administrator(conn, user_id)
    user = await lock_account(conn, user_id, by)
    if user["role"] == role:
        return user
    changed = await accounts.update_account(
        conn,
        user["id"],
        name=user["name"],
        role=role,
        email_verified=user["email_verified"],
        settings=user["settings"],
    )
    await record_change(conn, by, "user.update", user, changed)
    return changed


async def reset_password(
    conn: Connection, app: web.Application, user_id: uuid.UUID, by: Author, *, mail: bool = True
) -> tuple[asyncpg.Record, str | None]:
    """Mail the owner a link to set a new password, or return the link if not ``mail``."""
    user = await lock_account(conn, user_id, by)
    link = None
    if mail:
        await start_password_reset(conn, app, user)
    else:
        link = await create_password_reset_link(conn, app, user)
    await record(conn, by, "user.password_reset", user["id"])
    return user, link


async def suspend(
    conn: Connection,
    user_id: uuid.UUID,
    by: Author,
    reason: str,
    until: datetime | None,
) -> asyncpg.Record:
    """Suspend the account, indefinitely or until a given time, and end all its sessions now."""
    await keep_an_administrator(conn, user_id)
    user = await lock_account(conn, user_id, by)
    if user["status"] == "deleting":
        raise Problem(ACCOUNT_DELETING)
    suspended = await accounts.suspend_account(conn, user["id"], reason, until)
    await session_queries.end_sessions(conn, user["id"])
    await record_change(conn, by, "user.suspend", user, suspended)
    return suspended


async def reinstate(conn: Connection, user_id: uuid.UUID, by: Author) -> asyncpg.Record:
    """Reactivate an account that is suspended or scheduled for deletion.

    Raises Problem 409 once its grace period is over, as a part of it may be deleted already.
    """
    user = await lock_account(conn, user_id, by)
    if user["purge_due"]:
        raise Problem(ACCOUNT_PURGE_DUE)
    if user["status"] == "active":
        return user
    active = await accounts.reactivate_account(conn, user["id"])
    await record_change(conn, by, "user.reinstate", user, active)
    return active


async def delete(
    conn: Connection, app: web.Application, user_id: uuid.UUID, by: Author
) -> asyncpg.Record:
    """Schedule the account's deletion, end all its sessions now and notify its owner by mail.

    If the owner has already requested the deletion, signing in no longer cancels it.
    """
    await keep_an_administrator(conn, user_id)
    user = await lock_account(conn, user_id, by)
    if user["status"] == "suspended" and not user["suspension_over"]:
        # Deletion would replace the suspension, and reinstatement would lift both.
        raise Problem(ACCOUNT_SUSPENDED)
    if user["deleted_by_admin"]:
        return user
    grace_days = app[SETTINGS].deletion_grace_days
    deleting = await accounts.schedule_deletion(conn, user["id"], grace_days, by_admin=True)
    await session_queries.end_sessions(conn, user["id"])
    date = deleting["purge_at"].date().isoformat()
    await send_mail(conn, app, user, "account_deletion_by_admin", date=date)
    await record_change(conn, by, "user.delete", user, deleting)
    return deleting


async def remove_factors(
    conn: Connection,
    app: web.Application,
    user_id: uuid.UUID,
    by: Author,
    factor_id: uuid.UUID | None = None,
) -> tuple[asyncpg.Record, int]:
    """Remove the account's factor, or all of them. Return the account and how many were removed.

    Ends all its sessions and notifies its owner by mail, unless it had none. With the last one, the
    recovery codes go too. Raises Problem 404 if there is no such factor.
    """
    user = await lock_account(conn, user_id, by)
    if factor_id is None:
        removed = await factors.delete_factors(conn, user["id"])
    else:
        removed = await factors.delete_factor(conn, user["id"], factor_id)
        if not removed:
            raise Problem(FACTOR_NOT_FOUND)
    if not removed:
        return user, 0
    has_second_factor = await update_after_removal(conn, by, user["id"], removed)
    if isinstance(by, web.Request) and by[USER]["id"] == user["id"]:
        # The rules of an owner hold for administrators' own factors.
        await keep_a_way_in(conn, user["id"])
        if not has_second_factor and needs_second_factor(app, user["role"]):
            raise Problem(LAST_SECOND_FACTOR)
    await session_queries.end_sessions(conn, user["id"])
    await send_mail(conn, app, user, "second_factor_removed")
    return user, len(removed)


async def record_change(
    conn: Connection,
    by: Author,
    action: str,
    before: asyncpg.Record,
    after: asyncpg.Record,
) -> None:
    """Record an event with the changed fields, as far as administrators see them."""
    old, new = schemas.ADMIN_USER.dump(before), schemas.ADMIN_USER.dump(after)
    names = [
        name for name in new if name not in _UNRECORDED_FIELDS and not same(new[name], old[name])
    ]
    earlier = {name: old[name] for name in names}
    later = {name: new[name] for name in names}
    await record(conn, by, action, after["id"], before=earlier, after=later)
