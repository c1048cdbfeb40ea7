"""Mails to the owner of an account."""

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
    """Enqueue a mail to the account's email, or to ``to``, in the owner's language."""
    language = user["settings"].get("language")
    await enqueue(
        conn,
        app,
        template=template,
        to=to or user["email"],
        language=language,
        values={"name": user["name"], **values},
    )
