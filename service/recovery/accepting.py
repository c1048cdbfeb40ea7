"""What the endpoints that accept links share: finding a token, using it up, and its effects."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.passwords import hash_password, require_acceptable
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import read
from service.factors import queries as factors
from service.factors.removal import update_after_removal
from service.http.fields import fold_email
from service.http.problems import EMAIL_TAKEN, Problem, ProblemType
from service.mail import notices
from service.recovery import queries
from service.sessions import queries as session_queries
from service.throttle import known_networks

INVALID_LINK = ProblemType(
    400, "invalid_token", "This link is invalid or has expired. Request a new one."
)
EXAMPLE_TOKEN = "Hk3vX0m2yQ8rT5wL9bN1cJ7pF4sD6gA0zE3uI8oK2hM"  # noqa: S105


async def get_link(request: web.Request, token_hash: bytes, purposes: list[str]) -> asyncpg.Record:
    """Return the live token's purpose and account, so that made-up tokens cost no hash."""
    link = await read(request.app, queries.find_token, token_hash, purposes)
    if link is None:
        raise Problem(INVALID_LINK)
    REQUEST_CONTEXT.get().user_id = link["id"]
    return link


async def hash_new(request: web.Request, link: asyncpg.Record, password: str, pointer: str) -> str:
    require_acceptable(request.app, password, pointer, (link["email"], link["name"]))
    return await hash_password(request.app, password)


async def take_token(
    conn: Connection, token_hash: bytes, purposes: list[str]
) -> tuple[asyncpg.Record, asyncpg.Record]:
    """Consume the token and return it with its owner, locked.

    The owner is locked first, in the same order as when a link is sent. Raises Problem 400 if the
    token is invalid or has expired.
    """
    owner = await queries.find_token(conn, token_hash, purposes)
    user = await accounts.lock_profile(conn, owner["id"]) if owner else None
    token = await queries.take_token(conn, token_hash, purposes)
    if token is None or user is None:
        raise Problem(INVALID_LINK)
    REQUEST_CONTEXT.get().user_id = user["id"]
    return token, user


async def take_over(
    conn: Connection, request: web.Request, user: asyncpg.Record, password_hash: str
) -> None:
    """Set the password of whoever opened the link, and end what others may have started.

    The link proves the current email, because changing the email deletes older links. Links that
    restore an email stay: they were sent to mailboxes that had been proved before.
    """
    if not user["email_verified"]:
        await record_change(conn, request, user, "email.verify", user["email"])
        await known_networks.forget_networks_of(conn, user["id"])
        await forget_factors(conn, request, user["id"])
        user = await accounts.claim_account(conn, user["id"])
    await credentials.update_password(conn, user["id"], password_hash)
    await session_queries.end_sessions(conn, user["id"])
    # An attacker who knew the old password may have requested an email change.
    for purpose in ("email_change", "email_verify", "password_reset"):
        await queries.delete_tokens(conn, user["id"], purpose)
    # The mailbox proves ownership, and a known network has a sign-in limit of its own.
    await known_networks.remember_network(conn, request, user["id"])
    await notices.send_mail(conn, request.app, user, "password_changed")
    await record(conn, request, "password.reset", user["id"], actor_id=user["id"])


async def forget_factors(
    conn: Connection, request: web.Request, user_id: uuid.UUID, since: datetime | None = None
) -> None:
    """Remove the account's factors, or those confirmed ``since``: they may be somebody else's.

    Recovery codes go with any of them. The account is locked, and the caller ends its sessions.
    """
    removed = await factors.delete_factors(conn, user_id, since)
    if not removed:
        return
    if await update_after_removal(conn, request, user_id, removed, actor_id=user_id):
        await factors.delete_recovery_codes(conn, user_id)


async def change_email(conn: Connection, user: asyncpg.Record, email: str) -> None:
    """Set the email, and end the links that prove the old one."""
    try:
        await accounts.update_email(conn, user["id"], email, fold_email(email))
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise Problem(EMAIL_TAKEN) from None
    for purpose in ("password_reset", "email_verify"):
        await queries.delete_tokens(conn, user["id"], purpose)


async def record_change(
    conn: Connection, request: web.Request, user: asyncpg.Record, action: str, email: str
) -> None:
    before: dict[str, Any] = {"email": user["email"], "email_verified": user["email_verified"]}
    after = {"email": email, "email_verified": True}
    await record(conn, request, action, user["id"], actor_id=user["id"], before=before, after=after)
