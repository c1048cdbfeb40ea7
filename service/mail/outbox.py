"""The outbox: mails are enqueued in the transaction of the change that they report."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

import orjson
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.context import LOG_CONTEXT, SETTINGS
from service.db.connection import Connection
from service.mail import queries
from service.mail.rendering import MAIL_TEMPLATES, Rendered, render
from service.sealing import seal

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
) -> None:
    """Render the mail ``template`` for the email ``to`` and enqueue it.

    It is sent once the transaction commits, and dropped if that fails for ``LIFETIME_S``.
    ``values`` holds ``name`` and the values that ``rendering.VALUES`` lists for the template; dates
    are already formatted. ``language`` is a language tag (RFC 5646), or None for English.
    """
    settings = app[SETTINGS]
    recipient = _to_ascii(to)
    rendered = render(app[MAIL_TEMPLATES], template, language, {"name": "", **values, "email": to})
    mail_id = uuid_utils.uuid7()
    message = _compose(rendered, settings.mail_from, recipient, str(mail_id))
    payload = {
        "template": template,
        "from": message["From"].addresses[0].addr_spec,
        "to": recipient,
        "link": values.get("link"),
        "message": message.as_bytes().decode(),
        # Log lines of the sender carry the id of the request that caused the mail.
        "request": dict(LOG_CONTEXT.get()),
    }
    sealed = seal(settings.secret_key, PURPOSE, str(mail_id), orjson.dumps(payload))
    await queries.insert_mail(conn, mail_id, sealed, LIFETIME_S)


def _to_ascii(to: str) -> str:
    """Return the email in ASCII, which any server accepts, if its local part allows that."""
    from email_validator import validate_email

    return validate_email(to, check_deliverability=False, test_environment=True).ascii_email or to


def _compose(rendered: Rendered, sender: str, recipient: str, mail_id: str) -> EmailMessage:
    # Every server accepts 7-bit bodies; only a non-ASCII recipient needs SMTPUTF8 (RFC 6531).
    policy = (SMTP if recipient.isascii() else SMTPUTF8).clone(cte_type="7bit")
    message = EmailMessage(policy)
    message["From"] = sender
    local, _, domain = recipient.rpartition("@")
    message["To"] = Address(username=local, domain=domain)
    message["Subject"] = rendered.subject
    message["Date"] = datetime.now(UTC)
    # The same at each attempt, so that duplicates can be recognized (RFC 5322 §3.6.4).
    message["Message-ID"] = f"<{mail_id}@{message['From'].addresses[0].domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(rendered.text)
    message.add_alternative(rendered.html, subtype="html")
    return message
