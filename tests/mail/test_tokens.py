"""Signing in to the mail server with an access token that rotates (XOAUTH2, OAUTHBEARER)."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.doctor.mail import check_mail
from service.settings import MailServer, Settings
from tests.support.clients import StartApp
from tests.support.logbook import logged
from tests.support.smtp import (
    OAUTH_USER,
    Listen,
    Mailbox,
    TokenMailbox,
    is_empty,
    send,
    settled_s,
    sign_in,
)
from tests.support.waiting import DEADLINE_S, eventually

FAILURES = {"XOAUTH2": b"", "OAUTHBEARER": b"\1"}
MAKE_DUE = "update mail_outbox set next_attempt_at = now()"
REFUSED = "mail not sent: the mail server refuses the access token"
NO_TOKEN = "mail not sent: MAIL_TOKEN_FILE does not hold an access token"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("the-canary-token\n")
    return file


def write(file: Path, content: str | None) -> None:
    """Write the bytes of the text to the file, or delete it."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode("latin-1"))


@asynccontextmanager
async def serving(
    listen: Listen, mailbox: TokenMailbox, token_file: Path, mechanism: str = "XOAUTH2"
) -> AsyncIterator[MailServer]:
    others = {"LOGIN", "PLAIN", *FAILURES} - {mechanism}
    options = {"auth_exclude_mechanism": others, "auth_require_tls": False}
    async with listen(mailbox, **options) as server:
        yield dataclasses.replace(server, user=OAUTH_USER, token_file=token_file)


@pytest.mark.parametrize("mechanism", FAILURES)
async def test_sender_signs_in_with_the_token(
    start_app: StartApp, listen: Listen, conn: Any, token_file: Path, mechanism: str
) -> None:
    mailbox = TokenMailbox()
    async with serving(listen, mailbox, token_file, mechanism) as server:
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(lambda: is_empty(conn))
    assert [taken.signed_in for taken in mailbox.taken] == [True]


async def test_token_is_read_again_for_each_connection(
    start_app: StartApp, listen: Listen, conn: Any, token_file: Path
) -> None:
    mailbox = TokenMailbox()
    async with serving(listen, mailbox, token_file) as server:
        client = await start_app(mail_server=server)
        for token in ("first.token~", "second+token/=="):
            mailbox.token = token
            write(token_file, token)
            await send(client)
            await eventually(lambda: is_empty(conn))
    assert (len(mailbox.taken), mailbox.replies) == (2, [])


@pytest.mark.parametrize("mechanism", FAILURES)
async def test_mail_waits_briefly_for_another_token_after_a_refusal(
    start_app: StartApp, listen: Listen, conn: Any, token_file: Path, mechanism: str
) -> None:
    mailbox = TokenMailbox(token="the-next-token")
    async with serving(listen, mailbox, token_file, mechanism) as server:
        with logged() as logs:
            client = await start_app(mail_server=server)
            await send(client)
            await eventually(lambda: logs)
            waits_s = await settled_s(conn)
            write(token_file, "the-next-token")
            await conn.execute(MAKE_DUE)
            await eventually(lambda: is_empty(conn))
    assert [entry["event"] for entry in logs] == [REFUSED, "mail sent"]
    assert (logs[0]["smtp_code"], logs[0]["enhanced_code"]) == (535, "5.7.8")
    assert waits_s is not None
    assert waits_s <= 60
    # RFC 7628 §3.2.3, and Google's and Microsoft's pages about XOAUTH2.
    assert mailbox.replies == [FAILURES[mechanism]]
    assert "canary" not in str(logs)


@pytest.mark.parametrize("content", [None, "", "two the-canary-tokens", "a\1canary", "\xff"])
async def test_mail_waits_while_the_file_does_not_hold_a_token(
    start_app: StartApp, listen: Listen, conn: Any, token_file: Path, content: str | None
) -> None:
    mailbox = TokenMailbox()
    write(token_file, content)
    async with serving(listen, mailbox, token_file) as server:
        with logged() as logs:
            client = await start_app(mail_server=server)
            await send(client)
            await eventually(lambda: logs)
            write(token_file, "the-canary-token")
            await settled_s(conn)
            await conn.execute(MAKE_DUE)
            await eventually(lambda: is_empty(conn))
    assert [entry["event"] for entry in logs] == [NO_TOKEN, "mail sent"]
    assert "canary" not in str(logs)


async def test_token_is_not_sent_as_a_password(
    start_app: StartApp, listen: Listen, conn: Any, token_file: Path
) -> None:
    with logged() as logs:
        async with listen(Mailbox(), authenticator=sign_in, auth_require_tls=False) as plain:
            server = dataclasses.replace(plain, user=OAUTH_USER, token_file=token_file)
            await send(await start_app(mail_server=server))
            await eventually(lambda: logs)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("mail not sent", "MissingExtensionError")
    ]


@pytest.mark.parametrize(
    ("token", "mechanism", "detail", "fix"),
    [
        ("the-canary-token", "XOAUTH2", f"signed in as {OAUTH_USER}", ""),
        ("the-canary-token", "OAUTHBEARER", f"signed in as {OAUTH_USER}", ""),
        ("canary-expired", "XOAUTH2", "rejects the access token (535 5.7.8)", "Renew the token"),
        ("canary-expired", "OAUTHBEARER", "rejects the access token (535 5.7.8)", "Renew"),
        ("", "XOAUTH2", "MAIL_TOKEN_FILE does not hold an access token", "Write the token"),
        ("the-canary-token", "PLAIN", "offers neither XOAUTH2 nor OAUTHBEARER", "smtps://"),
    ],
)
async def test_doctor_signs_in_with_the_token(
    listen: Listen,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    mechanism: str,
    detail: str,
    fix: str,
) -> None:
    monkeypatch.setattr("service.doctor.mail.DEADLINE_S", DEADLINE_S)
    write(token_file, token)
    async with serving(listen, TokenMailbox(), token_file, mechanism) as server:
        settings = Settings(mail_from="no-reply@app.example", mail_server=server)
        (finding,) = await check_mail(settings)
    assert detail in finding.detail
    assert fix in finding.fix
    assert "canary" not in str(finding)
