"""A real SMTP server on the test's own event loop."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from service.settings import MailServer
from tests.support.smtp import Listen, Mailbox
from tests.support.tls import self_signed


@pytest.fixture(autouse=True)
def _quick(mail_at_once: None) -> None:
    pass


@pytest.fixture
def listen() -> Listen:
    """Serve a mailbox on the given port, or on a free one."""

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


@pytest.fixture
def tls_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Server TLS context with a certificate that this process trusts through SSL_CERT_FILE."""
    file = tmp_path / "certificate.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return self_signed(file)
