"""What ``shinkei doctor`` says of mail servers, real ones, in the steps of sending."""

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.doctor.findings import Finding
from service.doctor.mail import check_mail
from service.settings import MailServer, Settings
from tests.support.smtp import PASSWORD, USER, Listen, Mailbox, sign_in
from tests.support.waiting import DEADLINE_S

FROM = "Shinkei <no-reply@app.example>"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no fault of the server's."""
    monkeypatch.setattr("service.doctor.mail.DEADLINE_S", DEADLINE_S)


async def look(server: MailServer | None, **settings: object) -> list[Finding]:
    given: dict[str, object] = {"mail_from": FROM, "mail_server": server, **settings}
    findings = await check_mail(Settings(**given))  # type: ignore[arg-type]
    assert PASSWORD not in str(findings)
    return findings


@contextlib.asynccontextmanager
async def saying(*lines: bytes) -> AsyncIterator[MailServer]:
    """A server that says these, one after each line that it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in lines:
            writer.write(line + b"\r\n")
            await reader.readline()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield MailServer("127.0.0.1", server.sockets[0].getsockname()[1], "none")


async def test_a_server_that_is_well_is_sent_nothing(listen: Listen) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        (finding,) = await look(server)
    assert finding.status == "ok"
    assert finding.detail.endswith("takes mail from no-reply@app.example, without TLS")
    assert mailbox.taken == []


async def test_tls_and_a_sign_in(listen: Listen, tls_context: ssl.SSLContext) -> None:
    options = {"tls_context": tls_context, "authenticator": sign_in, "auth_required": True}
    async with listen(Mailbox(), security="starttls", **options) as server:
        signed_in = dataclasses.replace(server, user=USER, password=PASSWORD)
        (finding,) = await look(signed_in)
        assert finding.detail.endswith(f"with STARTTLS, signed in as {USER}")
        (finding,) = await look(dataclasses.replace(signed_in, password="wrong"))
        assert (finding.status, "refuses user or password (535)" in finding.detail) == (
            "fail",
            True,
        )
        assert "MAIL_URL" in finding.mend
        plain = dataclasses.replace(signed_in, security="none")
        (finding,) = await look(plain)
        assert "takes no sign-in over this connection" in finding.detail
        assert "smtp+starttls://" in finding.mend
        (finding,) = await look(dataclasses.replace(server, security="tls"))
        assert "does not speak TLS from the first byte" in finding.detail
        assert "smtp+starttls://" in finding.mend


async def test_a_server_without_starttls(listen: Listen) -> None:
    async with listen(Mailbox(), security="starttls") as server:
        (finding,) = await look(server)
    assert (finding.check, finding.status) == ("mail", "fail")
    assert "does not offer STARTTLS, which MAIL_URL asks for" in finding.detail
    assert "Turn STARTTLS on there" in finding.mend


async def test_a_certificate_that_nobody_vouches_for(
    listen: Listen, tls_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    for security in ("starttls", "tls"):
        async with listen(Mailbox(), security=security, tls_context=tls_context) as server:
            (finding,) = await look(server)
        assert "has a certificate that is not trusted" in finding.detail
        assert "SSL_CERT_FILE" in finding.mend


@pytest.mark.parametrize(
    ("lines", "detail", "mend"),
    [
        ([b"554 go away"], "answers 554 and takes no mail from here", "Look into its log"),
        ([b"220 hello", b"250 hello", b"550 not you"], "refuses MAIL_FROM", "Set MAIL_FROM to"),
        ([b"220 hello"], "ends the connection", "Mend host and port"),
    ],
)
async def test_a_server_that_refuses(lines: list[bytes], detail: str, mend: str) -> None:
    async with saying(*lines) as server:
        (finding,) = await look(server)
    assert (finding.check, finding.status) == ("mail", "fail")
    assert detail in finding.detail
    assert mend in finding.mend


async def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = await look(MailServer("127.0.0.1", 1, "none"))
    assert finding.detail == "the mail server at 127.0.0.1:1 refuses the connection"
    (finding,) = await look(MailServer("nowhere.invalid", 25, "none"))
    assert finding.mend == "Mend the host in MAIL_URL."
    monkeypatch.setattr("service.doctor.mail.DEADLINE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (finding,) = await look(MailServer("127.0.0.1", silent.getsockname()[1], "none"))
    assert finding.detail.endswith("does not answer")


async def test_what_only_works_half(listen: Listen, settings: Settings, tmp_path: Path) -> None:
    async with listen(Mailbox()) as server:
        sender, _ = await look(server, mail_from="no-reply@localhost")
        assert sender.mend == "Set MAIL_FROM to an address of your domain."
    elsewhere = MailServer("nowhere.invalid", 25, "none", USER, PASSWORD)
    open_, _ = await look(elsewhere)
    assert open_.detail == "MAIL_URL's password goes over the network in the clear"
    (unsent,) = await look(None, database=settings.database)
    assert (unsent.status, unsent.mend) == ("warn", "Set MAIL_URL to your mail server.")
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "verify_email.txt").write_text("$nonsense")
    template, _ = await look(None, mail_templates_dir=tmp_path)
    assert template.status == "fail"
