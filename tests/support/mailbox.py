"""Mail that the application wrote to files."""

import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path

from tests.support.waiting import eventually


async def next_mail(data_dir: Path, to: str) -> EmailMessage:
    """Wait for the oldest mail to ``to``, remove it and return it."""
    mail: EmailMessage = await eventually(lambda: _take_mail(data_dir, to))
    return mail


def _take_mail(data_dir: Path, to: str) -> EmailMessage | None:
    for path in sorted((data_dir / "mail").glob("*.eml")):
        content = path.read_bytes()
        # Parsing takes long, and this runs many times while the mail is awaited.
        if f"\r\nTo: {to}\r\n".encode() in content:
            path.unlink()
            return email.message_from_bytes(content, EmailMessage, policy=email.policy.default)
    return None


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def token_of(mail: EmailMessage) -> str:
    """Return the token in the mail's link."""
    found = re.search(r"#token=([A-Za-z0-9_-]+)", text_of(mail))
    assert found is not None, text_of(mail)
    return found[1]
