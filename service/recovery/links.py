"""Single-use links that prove control of an email.

The token is in the link's fragment, which browsers never send to a server or put in Referer. Links
start with PUBLIC_ORIGIN, never with the request's Host.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

import asyncpg
from aiohttp import web

from service.context import SETTINGS
from service.db.connection import Connection
from service.mail.notices import send_mail
from service.mail.outbox import LIFETIME_S
from service.recovery import queries

RESET_MINUTES = 30
VERIFY_MINUTES = 24 * 60
REVERT_MINUTES = 7 * 24 * 60
# What a used link has done, by its purpose. Kept for ``VERIFY_MINUTES``, so that opening the link
# again is not an error.
OUTCOMES = {"email_verify": "email_verified", "email_change": "email_changed"}


def hash_token(token: str) -> bytes:
    """Return the SHA-256 hash. 256 random bits cannot be guessed, so a slow hash adds nothing."""
    return hashlib.sha256(token.encode()).digest()


async def start_password_reset(
    conn: Connection, app: web.Application, user: asyncpg.Record
) -> None:
    """Send a link that sets a new password. Earlier links stop working."""
    await queries.delete_tokens(conn, user["id"], "password_reset")
    await _send_link(conn, app, user, "password_reset", user["email"], RESET_MINUTES)


async def create_password_reset_link(
    conn: Connection, app: web.Application, user: asyncpg.Record
) -> str:
    """Return a link that sets a new password, and mail nothing. Earlier links stop working."""
    await queries.delete_tokens(conn, user["id"], "password_reset")
    return await _create_link(conn, app, user, "password_reset", user["email"], RESET_MINUTES)


async def start_email_verification(
    conn: Connection, app: web.Application, user: asyncpg.Record
) -> None:
    """Send a link that verifies the account's email. Earlier links stop working."""
    await queries.delete_tokens(conn, user["id"], "email_verify")
    await _send_link(conn, app, user, "email_verify", user["email"], VERIFY_MINUTES)


async def start_email_change(
    conn: Connection, app: web.Application, user: asyncpg.Record, email: str
) -> None:
    """Send a link to ``email`` that makes it the account's. Earlier links stop working."""
    await queries.delete_tokens(conn, user["id"], "email_change")
    await _send_link(conn, app, user, "email_change", email, VERIFY_MINUTES)


async def keep_outcome(conn: Connection, token_hash: bytes, token: asyncpg.Record) -> str:
    """Keep a used token under the purpose that says what it did, and return that."""
    outcome = OUTCOMES[token["purpose"]]
    await queries.insert_token(
        conn,
        token_hash=token_hash,
        purpose=outcome,
        user_id=token["user_id"],
        email=token["email"],
        ttl_s=VERIFY_MINUTES * 60,
    )
    return outcome


async def offer_email_revert(conn: Connection, app: web.Application, user: asyncpg.Record) -> None:
    """Notify the account's previous email, with a link that restores it."""
    await _send_link(conn, app, user, "email_revert", user["email"], REVERT_MINUTES)


# The mail template and the front-end page of each purpose.
_MAILS = {
    "password_reset": ("password_reset", "/password/reset"),
    "email_verify": ("verify_email", "/email/verify"),
    "email_change": ("email_change", "/email/verify"),
    # A page of its own, because it undoes a change and must ask first.
    "email_revert": ("email_changed", "/email/revert"),
}


async def _send_link(
    conn: Connection,
    app: web.Application,
    user: asyncpg.Record,
    purpose: str,
    email: str,
    minutes: int,
) -> None:
    template, _ = _MAILS[purpose]
    link = await _create_link(conn, app, user, purpose, email, minutes)
    date = f"{datetime.now(UTC) + timedelta(minutes=minutes):%Y-%m-%d %H:%M} UTC"
    await send_mail(
        conn,
        app,
        user,
        template,
        to=email,
        # After that, the link would no longer work.
        lifetime_s=min(LIFETIME_S, minutes * 60),
        link=link,
        minutes=str(minutes),
        date=date,
    )


async def _create_link(
    conn: Connection,
    app: web.Application,
    user: asyncpg.Record,
    purpose: str,
    email: str,
    minutes: int,
) -> str:
    _, page = _MAILS[purpose]
    token = secrets.token_urlsafe(32)
    await queries.insert_token(
        conn,
        token_hash=hash_token(token),
        purpose=purpose,
        user_id=user["id"],
        email=email,
        ttl_s=minutes * 60,
    )
    return f"{app[SETTINGS].public_origin}{page}#token={token}"
