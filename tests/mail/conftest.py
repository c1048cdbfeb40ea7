"""A real SMTP server in the test's own loop, and what a test needs to look at the outbox."""

import asyncio
import dataclasses
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.database import write
from service.mail.outbox import enqueue
from service.settings import MailServer
from tests.conftest import Client

LINK = "https://app.example/verify#token=the-canary-in-the-link"
TO = "ada@example.com"
VALUES = {"name": "Ada", "link": LINK, "date": "2030-01-31 12:00 UTC", "minutes": "30"}
USER, PASSWORD = "relay@example.com", "the canary p@ss:word"


@dataclasses.dataclass
class Taken:
    """A mail that the server took, and how it came."""

    recipients: list[str]
    message: EmailMessage
    encrypted: bool
    signed_in: bool


@dataclasses.dataclass
class Mailbox:
    """aiosmtpd's handler: keeps what it takes; ``answer`` may refuse a recipient."""

    taken: list[Taken] = dataclasses.field(default_factory=list)
    answer: str = "250 OK"
    on_data: Callable[[], Awaitable[None]] | None = None

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return self.answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.on_data is not None:
            await self.on_data()
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, EmailMessage, policy=SMTPUTF8)
        recipients = [str(recipient) for recipient in envelope.rcpt_tos]
        self.taken.append(
            Taken(recipients, message, session.ssl is not None, bool(session.authenticated))
        )
        return "250 taken"


Listen = Callable[..., AbstractAsyncContextManager[MailServer]]


@pytest.fixture
def listen() -> Listen:
    """Serve a mailbox on a port, a free one unless it is given."""

    @asynccontextmanager
    async def listening(
        mailbox: Mailbox, *, port: int = 0, security: str = "none", **options: Any
    ) -> AsyncIterator[MailServer]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(mailbox, loop=loop, hostname="localhost", **options),
            "127.0.0.1",
            port,
            ssl=options.get("tls_context") if security == "tls" else None,
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield MailServer("127.0.0.1", port, security)

    return listening


def sign_in(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
) -> AuthResult:
    """aiosmtpd's authenticator."""
    right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


@pytest.fixture
def tls_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context, whose certificate the process trusts as it would an operator's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(public + private)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def send(client: Client, template: str = "verify_email", to: str = TO, **values: str) -> None:
    """Enqueue a mail in a transaction of its own."""
    assert client.app is not None
    await write(
        client.app,
        enqueue,
        client.app,
        template=template,
        to=to,
        language="en",
        values={**VALUES, **values},
    )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for the sender, which works in the background; ten seconds at most."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def is_empty(conn: Any) -> bool:
    return not await conn.fetchval("select exists (select from mail_outbox)")


async def was_tried(conn: Any) -> bool:
    return bool(await conn.fetchval("select bool_and(attempts > 0) from mail_outbox"))
