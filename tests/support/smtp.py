"""A mailbox behind a real SMTP server, and helpers to inspect the outbox."""

import asyncio
import base64
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from service.db.connection import Connection
from service.db.transactions import write
from service.mail import sender
from service.mail.outbox import enqueue
from service.settings import MailServer
from tests.support.clients import Client
from tests.support.waiting import eventually

LINK = "https://app.example/verify#token=the-canary-in-the-link"
TO = "ada@example.com"
VALUES = {"name": "Ada", "link": LINK, "date": "2030-01-31 12:00 UTC", "minutes": "30"}
OAUTH_USER = "relay=a,b@example.com"
USER, PASSWORD = "relay@example.com", "the canary p@ss:word"


@dataclasses.dataclass
class Taken:
    """A mail that the server accepted, and how it arrived."""

    recipients: list[str]
    content: bytes
    encrypted: bool
    signed_in: bool

    @property
    def head_lines(self) -> list[bytes]:
        """The head's lines, each with those that continue it. No parser decodes them."""
        head = self.content.partition(b"\r\n\r\n")[0]
        return re.sub(rb"\r\n(?=[ \t])", b"", head).splitlines()

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.content, EmailMessage, policy=SMTPUTF8)


@dataclasses.dataclass
class Mailbox:
    """A handler for aiosmtpd that keeps accepted mail.

    ``answers`` replaces responses to EHLO, MAIL and RCPT, and the one to the content (``.``).
    """

    taken: list[Taken] = dataclasses.field(default_factory=list)
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    names: list[str] = dataclasses.field(default_factory=list)
    recipients: list[str] = dataclasses.field(default_factory=list)
    resets: int = 0
    on_rcpt: Callable[[], Awaitable[None]] | None = None
    on_data: Callable[[SMTP, Envelope], Awaitable[None]] | None = None

    async def handle_EHLO(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, name: str, lines: list[str]
    ) -> list[str]:
        self.names.append(name)
        session.host_name = name
        return [self.answers["EHLO"]] if "EHLO" in self.answers else lines

    async def handle_HELO(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, name: str
    ) -> str:
        return self.answers.get("EHLO", "250 OK")

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.on_rcpt is not None:
            await self.on_rcpt()
        self.recipients.append(address)
        if "RCPT" not in self.answers:
            envelope.rcpt_tos.append(address)
        return self.answers.get("RCPT", "250 OK")

    async def handle_RSET(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.resets += 1
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.on_data is not None:
            await self.on_data(server, envelope)
        assert isinstance(envelope.content, bytes)
        recipients = [str(recipient) for recipient in envelope.rcpt_tos]
        if "." not in self.answers:
            self.taken.append(
                Taken(
                    recipients,
                    envelope.content,
                    session.ssl is not None,
                    bool(session.authenticated),
                )
            )
        return self.answers.get(".", "250 taken")


@dataclasses.dataclass
class TokenMailbox(Mailbox):
    """A mailbox that OAUTH_USER signs in to with ``token``, an OAuth access token.

    ``replies`` holds what clients respond to the challenge that says why a token is refused.
    """

    token: str = "the-canary-token"
    replies: list[bytes] = dataclasses.field(default_factory=list)

    async def auth_XOAUTH2(self, server: SMTP, args: list[str]) -> AuthResult:  # noqa: N802
        wanted = f"user={OAUTH_USER}\1auth=Bearer {self.token}\1\1"
        return await self._check(server, args, wanted)

    async def auth_OAUTHBEARER(self, server: SMTP, args: list[str]) -> AuthResult:  # noqa: N802
        assert server.transport is not None
        host, port = server.transport.get_extra_info("sockname")
        user = OAUTH_USER.replace("=", "=3D").replace(",", "=2C")
        wanted = f"n,a={user},\1host={host}\1port={port}\1auth=Bearer {self.token}\1\1"
        return await self._check(server, args, wanted)

    async def _check(self, server: SMTP, args: list[str], wanted: str) -> AuthResult:
        if base64.b64decode(args[1]).decode() == wanted:
            return AuthResult(success=True)
        reply = await server.challenge_auth('{"status":"401","schemes":"bearer"}')
        assert isinstance(reply, bytes)
        self.replies.append(reply)
        return AuthResult(success=False, handled=False)


@asynccontextmanager
async def saying(*lines: bytes) -> AsyncIterator[MailServer]:
    """Run a server that sends one line on connect and one after each line it receives."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in lines:
            writer.write(line + b"\r\n")
            await reader.readline()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield MailServer("127.0.0.1", server.sockets[0].getsockname()[1], "none")


Listen = Callable[..., AbstractAsyncContextManager[MailServer]]


def sign_in(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
) -> AuthResult:
    """Authenticate USER with PASSWORD for aiosmtpd."""
    right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


async def send(
    client: Client, template: str = "verify_email", to: str = TO, *, mails: int = 1, **values: str
) -> None:
    """Enqueue a mail, or several equal ones, in a transaction."""
    app = client.app
    assert app is not None

    async def enqueue_all(conn: Connection) -> None:
        for _ in range(mails):
            await enqueue(
                conn, app, template=template, to=to, language="en", values={**VALUES, **values}
            )

    await write(app, enqueue_all)


async def is_empty(conn: Any) -> bool:
    return not await conn.fetchval("select exists (select from mail_outbox)")


async def was_tried(conn: Any) -> bool:
    return bool(await conn.fetchval("select bool_and(attempts > 0) from mail_outbox"))


async def waits_s(conn: Any) -> float | None:
    """Return the seconds until the next attempt, or None if there is none."""
    seconds: float | None = await conn.fetchval(
        "select extract(epoch from next_attempt_at - now())::float from mail_outbox"
    )
    return seconds


async def settled_s(conn: Any) -> float | None:
    """Return what ``waits_s`` does once a known outcome has replaced the claim's deadline."""

    async def settled() -> bool:
        seconds = await waits_s(conn)
        return seconds is None or seconds <= 60 or 0.7 < seconds / sender.LAST_RETRY_S < 1.3

    await eventually(settled)
    return await waits_s(conn)
