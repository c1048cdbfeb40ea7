"""The mails that the application has written, as their readers would find them."""

import asyncio
import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path


async def next_mail(data_dir: Path, to: str) -> EmailMessage:
    """The oldest mail to ``to`` that was not read yet, as soon as it is there; it is removed."""
    async with asyncio.timeout(10):
        while True:
            for path in sorted((data_dir / "mail").glob("*.eml")):
                content = path.read_bytes()
                mail = email.message_from_bytes(content, policy=email.policy.default)
                if isinstance(mail, EmailMessage) and mail["To"] == to:
                    path.unlink()
                    return mail
            await asyncio.sleep(0.02)


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def token_of(mail: EmailMessage) -> str:
    """The token in the mail's link."""
    found = re.search(r"#token=([A-Za-z0-9_-]+)", text_of(mail))
    assert found is not None, text_of(mail)
    return found[1]
