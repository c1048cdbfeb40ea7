"""Mails to the owner of an account."""

import asyncpg
from aiohttp import hdrs, web

from service.context import REQUEST_CONTEXT, USER
from service.db.connection import Connection
from service.mail.languages import choose_language
from service.mail.outbox import LIFETIME_S, enqueue
from service.mail.rendering import MAIL_TEMPLATES


async def send_mail(
    conn: Connection,
    app: web.Application,
    user: asyncpg.Record,
    template: str,
    *,
    to: str = "",
    lifetime_s: float = LIFETIME_S,
    **values: str,
) -> None:
    """Enqueue a mail to the account's email, or to ``to``, in the owner's language.

    If the owner has not set one, it is the language that the request asks for.
    """
    language = user["settings"].get("language") or _requested_language(app, user, template)
    await enqueue(
        conn,
        app,
        template=template,
        to=to or user["email"],
        language=language,
        lifetime_s=lifetime_s,
        values={"name": user["name"], **values},
    )


def _requested_language(app: web.Application, user: asyncpg.Record, template: str) -> str | None:
    """Return the language that the owner's browser asks for, if the template has it.

    A request of someone else who is signed in, such as an administrator, does not say.
    """
    context = REQUEST_CONTEXT.get(None)
    request = context.request if context else None
    if request is None or (USER in request and request[USER]["id"] != user["id"]):
        return None
    available = {language for language, name in app[MAIL_TEMPLATES] if name == template}
    accepted = ",".join(request.headers.getall(hdrs.ACCEPT_LANGUAGE, ()))
    return choose_language(accepted, available)
