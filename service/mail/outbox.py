"""The outbox: mails are enqueued in the transaction of the change that they report."""

import logging
from collections.abc import Mapping

import orjson
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.context import LOG_CONTEXT, SETTINGS
from service.db.connection import Connection
from service.mail import queries
from service.mail.message import UnsafeEmailError, compose
from service.mail.rendering import MAIL_TEMPLATES, render
from service.sealing import seal
from service.settings import split_sender

log = logging.getLogger(__name__)

PURPOSE = "mail"
LIFETIME_S = 24 * 3600


async def enqueue(
    conn: Connection,
    app: web.Application,
    *,
    template: str,
    to: str,
    language: str | None,
    values: Mapping[str, str],
    lifetime_s: float = LIFETIME_S,
) -> None:
    """Render the mail ``template`` for the email ``to`` and enqueue it.

    It is sent once the transaction commits, and dropped if that fails for ``lifetime_s``. A mail to
    an email that is unsafe in a header is dropped at once.
    ``values`` holds ``name`` and the values that ``rendering.VALUES`` lists for the template; dates
    are already formatted. ``language`` is a language tag (RFC 5646), or None for English.
    """
    settings = app[SETTINGS]
    recipient = _to_ascii(to)
    rendered = render(app[MAIL_TEMPLATES], template, language, {"name": "", **values, "email": to})
    mail_id = uuid_utils.uuid7()
    sender = split_sender(settings.mail_from)
    try:
        message = compose(sender=sender, to=recipient, mail_id=str(mail_id), **rendered._asdict())
    except UnsafeEmailError:
        # An account from before such emails were refused. Its requests must not fail for that.
        log.error(
            "mail given up: its email cannot be written in a header", extra={"template": template}
        )
        return
    payload = {
        "template": template,
        "from": sender[1],
        "to": recipient,
        "link": values.get("link"),
        "message": message.decode(),
        # Log lines of the sender carry the id of the request that caused the mail.
        "request": dict(LOG_CONTEXT.get()),
    }
    sealed = seal(settings.secret_key, PURPOSE, str(mail_id), orjson.dumps(payload))
    await queries.insert_mail(conn, mail_id, sealed, lifetime_s)


def _to_ascii(to: str) -> str:
    """Return the email in ASCII, which any server accepts, if its local part allows that."""
    from email_validator import validate_email

    return validate_email(to, check_deliverability=False, test_environment=True).ascii_email or to
