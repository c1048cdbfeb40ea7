"""Findings of ``shinkei doctor`` about real mail servers."""

import dataclasses
import socket
import ssl
from pathlib import Path

import pytest

from service.doctor.findings import Finding
from service.doctor.mail import check_mail
from service.settings import MailServer, Settings
from tests.support.processes import reserved_port
from tests.support.smtp import PASSWORD, USER, Listen, Mailbox, saying, sign_in
from tests.support.waiting import DEADLINE_S

FROM = "Shinkei <no-reply@app.example>"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the deadline, so that a busy machine does not fail the check."""
    monkeypatch.setattr("service.doctor.mail.DEADLINE_S", DEADLINE_S)


async def look(server: MailServer | None, **settings: object) -> list[Finding]:
    given: dict[str, object] = {"mail_from": FROM, "mail_server": server, **settings}
    findings = await check_mail(Settings(**given))  # type: ignore[arg-type]
    assert PASSWORD not in str(findings)
    return findings


async def test_healthy_server_receives_no_mail(listen: Listen) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        (finding,) = await look(server)
    assert finding.status == "ok"
    assert finding.detail.endswith("accepts mail from no-reply@app.example, without TLS")
    assert mailbox.recipients == ["postmaster@app.example"]
    assert mailbox.taken == []
    assert mailbox.resets == 1


async def test_server_is_greeted_with_the_name_that_is_set(listen: Listen) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        await look(server, mail_ehlo="mail.app.example")
    assert mailbox.names == ["mail.app.example"]


@pytest.mark.parametrize(
    ("step", "answer", "detail", "fix"),
    [
        ("RCPT", "554 5.7.1 relaying denied", "rejects recipients from here (554 5.7.1)", "Allow"),
        ("RCPT", "504 5.5.2 full name please", "rejects recipients from here", "set MAIL_EHLO"),
        ("RCPT", "550 no", "rejects recipients from here (550)", "Allow this machine"),
        ("EHLO", "504 5.5.2 what", "rejects the name of this machine (504 5.5.2)", "Set MAIL_EHLO"),
        ("MAIL", "550 5.1.8 no", "rejects MAIL_FROM as the sender (550 5.1.8)", "Set MAIL_FROM"),
    ],
)
async def test_refusal_at_any_step_fails(
    listen: Listen, step: str, answer: str, detail: str, fix: str
) -> None:
    async with listen(Mailbox(answers={step: answer})) as server:
        (finding,) = await look(server)
    assert (finding.check, finding.status) == ("mail", "fail")
    assert detail in finding.detail
    assert fix in finding.fix


@pytest.mark.parametrize("answer", ["550 5.1.1 no postmaster", "450 4.2.0 greylisted"])
async def test_server_without_a_postmaster_is_healthy(listen: Listen, answer: str) -> None:
    async with listen(Mailbox(answers={"RCPT": answer})) as server:
        (finding,) = await look(server)
    assert finding.status == "ok"


async def test_tls_and_sign_in_are_checked(listen: Listen, tls_context: ssl.SSLContext) -> None:
    options = {"tls_context": tls_context, "authenticator": sign_in, "auth_required": True}
    async with listen(Mailbox(), security="starttls", **options) as server:
        signed_in = dataclasses.replace(server, user=USER, password=PASSWORD)
        (finding,) = await look(signed_in)
        assert finding.detail.endswith(f"with STARTTLS, signed in as {USER}")
        (finding,) = await look(dataclasses.replace(signed_in, password="wrong"))
        assert (finding.status, "rejects user or password (535 5.7.8)" in finding.detail) == (
            "fail",
            True,
        )
        assert "MAIL_URL" in finding.fix
        plain = dataclasses.replace(signed_in, security="none")
        (finding,) = await look(plain)
        assert "does not accept sign-in over this connection" in finding.detail
        assert "smtp+starttls://" in finding.fix
        (finding,) = await look(dataclasses.replace(server, security="tls"))
        assert "does not speak TLS from the first byte" in finding.detail
        assert "smtp+starttls://" in finding.fix


async def test_server_without_starttls_fails(listen: Listen) -> None:
    async with listen(Mailbox(), security="starttls") as server:
        (finding,) = await look(server)
    assert (finding.check, finding.status) == ("mail", "fail")
    assert "does not offer STARTTLS, which MAIL_URL requires" in finding.detail
    assert "Turn STARTTLS on there" in finding.fix


async def test_untrusted_certificate_fails(
    listen: Listen, tls_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    for security in ("starttls", "tls"):
        async with listen(Mailbox(), security=security, tls_context=tls_context) as server:
            (finding,) = await look(server)
        assert "has an untrusted certificate" in finding.detail
        assert "SSL_CERT_FILE" in finding.fix


@pytest.mark.parametrize(
    ("lines", "detail", "fix"),
    [
        ([b"554 go away"], "responds with 554 and accepts no mail from here", "Check its log"),
        ([b"220 hello", b"250 hello", b"550 not you"], "rejects MAIL_FROM", "Set MAIL_FROM to"),
        ([b"220 hello"], "closes the connection", "Correct host and port"),
    ],
)
async def test_server_that_refuses_mail_fails(lines: list[bytes], detail: str, fix: str) -> None:
    async with saying(*lines) as server:
        (finding,) = await look(server)
    assert (finding.check, finding.status) == ("mail", "fail")
    assert detail in finding.detail
    assert fix in finding.fix


@pytest.mark.usefixtures("no_invalid_names")
async def test_unreachable_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_port() as port:
        (finding,) = await look(MailServer("127.0.0.1", port, "none"))
    assert finding.detail == f"the mail server at 127.0.0.1:{port} refuses the connection"
    (finding,) = await look(MailServer("nowhere.invalid", 25, "none"))
    assert finding.fix == "Correct the host in MAIL_URL."
    monkeypatch.setattr("service.doctor.mail.DEADLINE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (finding,) = await look(MailServer("127.0.0.1", silent.getsockname()[1], "none"))
    assert finding.detail.endswith("does not respond")


@pytest.mark.usefixtures("no_invalid_names")
async def test_other_mail_problems_are_reported(
    listen: Listen, settings: Settings, tmp_path: Path
) -> None:
    async with listen(Mailbox()) as server:
        sender, _ = await look(server, mail_from="no-reply@localhost")
        assert sender.fix == "Set MAIL_FROM to an email address in your domain."
    elsewhere = MailServer("nowhere.invalid", 25, "none", USER, PASSWORD)
    open_, _ = await look(elsewhere)
    assert open_.detail == "the password in MAIL_URL is sent over the network in the clear"
    (unsent,) = await look(None, database=settings.database)
    assert (unsent.status, unsent.fix) == ("warn", "Set MAIL_URL to your mail server.")
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "verify_email.txt").write_text("$nonsense")
    template, _ = await look(None, mail_templates_dir=tmp_path)
    assert template.status == "fail"
