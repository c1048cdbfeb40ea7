"""Recovery: links that let an account's owner set a password."""

import hashlib
import secrets

import asyncpg
from aiohttp import web

from service.auth import queries
from service.database import Connection

PASSWORD_RESET_TTL_S = 30 * 60


async def start_password_reset(
    conn: Connection, app: web.Application, user: asyncpg.Record
) -> None:
    """Make a link good for one use within 30 minutes, and have it sent to the account's address."""
    token = secrets.token_urlsafe(32)
    await queries.insert_action_token(
        conn,
        token_hash=hashlib.sha256(token.encode()).digest(),
        purpose="password_reset",
        user_id=user["id"],
        email=user["email"],
        ttl_s=PASSWORD_RESET_TTL_S,
    )
