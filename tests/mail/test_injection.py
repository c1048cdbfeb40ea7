"""Nothing that a client wrote can add a header to a mail, or begin its body."""

from string import Template
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.mail.message import compose
from service.mail.rendering import MailTemplate, render
from service.settings import Settings
from tests.support import heads
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, pointers, register
from tests.support.logbook import logged
from tests.support.smtp import Listen, Mailbox, is_empty, send
from tests.support.steps import change_password
from tests.support.waiting import eventually

# Python 3.11.7 and 3.12.1 decode these in an email, line break included.
ENCODED_WORDS = [
    "=?utf-8?q?a=0d=0aBcc=3a_x=40evil.example?=@example.com",
    "=?utf-8?b?YQ0KQmNjOiB4QGV2aWwuZXhhbXBsZQ==?=@example.com",
    "=?us-ascii?q?a=0aX=3ay?=@example.com",
    "ada=?utf-8?q?=0d=0a?=@example.com",
    "ada.=?x?=@example.com",
]
INJECTED = "Ada\r\nBcc: eve@evil.example\r\n\r\nbody\x00\u2028=?utf-8?q?=0d=0aBcc=3a_eve?="
VALUES = {"link": "https://app.example/#token=a", "date": "2030-01-31", "minutes": "30"}

# Quick to generate: ``st.emails()`` needs seconds for its list of domains.
common_emails = st.from_regex(
    r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,30}(\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,30})?"
    r"@([a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\.){1,8}[a-z]{2,20}",
    fullmatch=True,
)
text = st.lists(st.sampled_from(heads.PIECES) | st.characters(), max_size=8).map("".join)


@pytest.mark.parametrize("email", ENCODED_WORDS)
async def test_email_with_an_encoded_word_is_refused(client: Client, email: str) -> None:
    body = {"email": email, "password": PASSWORD, "name": "Ada"}
    response = await client.post("/api/v1/auth/register", json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/email"}


async def test_account_whose_email_is_an_encoded_word_gets_no_mail(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    """It may have registered before such emails were refused. Its requests succeed."""
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        account = await register(client)
        await eventually(lambda: is_empty(conn))
        mailbox.taken.clear()
        await conn.execute("update users set email = $1", ENCODED_WORDS[0])
        with logged() as logs:
            await change_password(client, account, account.password)
            assert await is_empty(conn)
    (entry,) = [entry for entry in logs if entry["event"].startswith("mail")]
    assert entry["event"] == "mail given up: its email cannot be written in a header"
    assert (entry["level"], entry["template"]) == ("error", "password_changed")
    assert not mailbox.taken


async def test_values_of_a_mail_add_no_header(
    start_app: StartApp, listen: Listen, conn: Any, settings: Settings
) -> None:
    own = settings.data_dir / "templates" / "en"
    own.mkdir(parents=True)
    (own / "verify_email.subject").write_text("Hi $name $date $link\r\n")
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, mail_templates_dir=own.parent)
        await send(client, name=INJECTED, date=INJECTED, link=INJECTED)
        await eventually(lambda: is_empty(conn))
    (taken,) = mailbox.taken
    names = [line.split(b":")[0].decode() for line in taken.head_lines]
    assert names == [*heads.NAMES[:6], "MIME-Version", "Content-Type"]
    assert b"evil" not in b"".join(taken.head_lines)


@pytest.mark.property
@given(name=text, email=text, link=text, date=text, local=text)
def test_head_has_as_many_lines_as_headers(
    name: str, email: str, link: str, date: str, local: str
) -> None:
    everything = Template("$name $email $link $date")
    templates = {("en", "verify_email"): MailTemplate(everything, everything, everything)}
    values = {"name": name, "email": email, "link": link, "date": date}
    subject = render(templates, "verify_email", None, values).subject
    assert heads.check_head(subject=subject, name=name, to="ada@example.com")
    assert heads.check_head(subject=f"{name}{email}", name=link, to="ada@example.com")
    heads.check_head(subject=subject, name=name, to=f"{local}@example.com")


@pytest.mark.property
@given(to=common_emails)
def test_common_email_is_written_as_it_is(to: str) -> None:
    assume("=?" not in to)
    assert heads.check_head(subject="Hi", name="", to=to)


def test_mail_with_another_header_is_not_composed() -> None:
    with pytest.raises(RuntimeError, match="exactly its headers"):
        compose(
            sender=heads.SENDER,
            to="ada@example.com",
            subject="Hi",
            text="Hi",
            html="Hi",
            mail_id="id\r\nBcc: eve@evil.example",
        )
