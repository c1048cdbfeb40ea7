"""Mails to an account."""

import asyncpg
from aiohttp import web

from service.db.connection import Connection
from service.mail.outbox import enqueue


async def send_mail(
    conn: Connection,
    app: web.Application,
    user: asyncpg.Record,
    template: str,
    *,
    to: str = "",
    **values: str,
) -> None:
    """Put a mail to the user, or to another address of theirs, into the outbox."""
    language = user["settings"].get("language")
    await enqueue(
        conn,
        app,
        template=template,
        to=to or user["email"],
        language=language,
        values={"name": user["name"], **values},
    )
