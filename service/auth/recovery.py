"""Recovery: links that let an account's owner set a password."""

import hashlib
import secrets

import asyncpg
from aiohttp import web

from service.auth import queries
from service.database import Connection
from service.keys import SETTINGS
from service.mail.outbox import enqueue

PASSWORD_RESET_TTL_S = 30 * 60


async def start_password_reset(
    conn: Connection, app: web.Application, user: asyncpg.Record
) -> None:
    """Make a link good for one use within 30 minutes, and have it sent to the account's address.

    The token is in the fragment, which browsers send to nobody.
    """
    token = secrets.token_urlsafe(32)
    await queries.insert_action_token(
        conn,
        token_hash=hashlib.sha256(token.encode()).digest(),
        purpose="password_reset",
        user_id=user["id"],
        email=user["email"],
        ttl_s=PASSWORD_RESET_TTL_S,
    )
    await enqueue(
        conn,
        app,
        template="password_reset",
        to=user["email"],
        language=user["settings"].get("language"),
        values={
            "name": user["name"],
            "link": f"{app[SETTINGS].public_origin}/password-reset#token={token}",
            "minutes": str(PASSWORD_RESET_TTL_S // 60),
        },
    )
