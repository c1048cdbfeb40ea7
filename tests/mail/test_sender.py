"""Delivery from the outbox to a real SMTP server or to files, including failures."""

import asyncio
import dataclasses
import ssl
from collections import Counter
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from service.db.connection import Connection
from service.db.transactions import write
from service.mail import queries, sender, smtp
from service.mail.outbox import enqueue
from service.settings import Database, MailServer, Settings
from tests.support.clients import StartApp, pool_of
from tests.support.factories import register
from tests.support.logbook import logged
from tests.support.processes import reserved_port
from tests.support.smtp import (
    LINK,
    PASSWORD,
    TO,
    USER,
    VALUES,
    Listen,
    Mailbox,
    is_empty,
    send,
    settled_s,
    sign_in,
    was_tried,
)
from tests.support.waiting import DEADLINE_S, eventually

MAKE_DUE = "update mail_outbox set next_attempt_at = now()"


def text_of(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


async def test_mail_arrives_complete(start_app: StartApp, listen: Listen, conn: Any) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, mail_from="Acme <no-reply@acme.example>")
        await send(client, name="Zoë <b>")
        await eventually(lambda: is_empty(conn))
    (taken,) = mailbox.taken
    message = taken.message
    assert taken.recipients == [TO]
    assert (message["From"], message["To"]) == ("Acme <no-reply@acme.example>", TO)
    assert message["Subject"] == "Confirm your email address"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@acme.example>")
    assert message["Date"].datetime is not None
    assert message.get_content_type() == "multipart/alternative"
    assert text_of(message).startswith("Hello Zoë <b>,")
    assert LINK in text_of(message)
    html = message.get_body(("html",))
    assert html is not None
    assert "Zoë &lt;b&gt;" in html.get_content()


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
async def test_sender_signs_in_on_every_kind_of_connection(
    start_app: StartApp, listen: Listen, conn: Any, tls_context: ssl.SSLContext, security: str
) -> None:
    mailbox = Mailbox()
    options: dict[str, Any] = {"authenticator": sign_in, "auth_require_tls": False}
    if security != "none":
        options |= {"tls_context": tls_context, "require_starttls": security == "starttls"}
    async with listen(mailbox, security=security, **options) as server:
        account = dataclasses.replace(server, user=USER, password=PASSWORD)
        client = await start_app(mail_server=account)
        await send(client)
        await eventually(lambda: is_empty(conn))
    (taken,) = mailbox.taken
    assert taken.signed_in
    if security == "starttls":
        assert taken.encrypted


async def test_server_without_required_starttls_gets_no_mail(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    mailbox = Mailbox()
    async with listen(mailbox, authenticator=sign_in, auth_require_tls=False) as server:
        account = dataclasses.replace(server, security="starttls", user=USER, password=PASSWORD)
        client = await start_app(mail_server=account)
        await send(client)
        await eventually(lambda: was_tried(conn))
        await client.close()
    assert not mailbox.taken
    assert not await is_empty(conn)


@pytest.mark.asvs("16.3.4")
async def test_server_with_an_untrusted_certificate_gets_no_mail(
    start_app: StartApp,
    listen: Listen,
    conn: Any,
    tls_context: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    mailbox = Mailbox()
    async with listen(mailbox, security="tls", tls_context=tls_context) as server:
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(lambda: was_tried(conn))
        await client.close()
    assert not mailbox.taken
    assert not await is_empty(conn)


@pytest.mark.parametrize(
    ("to", "received"),
    [
        ("zoë@exämple.test", "zoë@exämple.test"),
        ("zoe@exämple.test", "zoe@xn--exmple-cua.test"),
    ],
)
async def test_internationalised_email_is_delivered(
    start_app: StartApp, listen: Listen, conn: Any, to: str, received: str
) -> None:
    """A non-ASCII local part needs SMTPUTF8 (RFC 6531), a non-ASCII domain does not (RFC 5891)."""
    mailbox = Mailbox()
    async with listen(mailbox, enable_SMTPUTF8=not received.isascii()) as server:
        client = await start_app(mail_server=server)
        await send(client, to=to)
        await eventually(lambda: is_empty(conn))
    (taken,) = mailbox.taken
    assert taken.recipients == [received]
    assert taken.message["To"] == received
    assert to in text_of(taken.message)


async def test_mail_is_sent_once_after_the_server_was_down(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    mailbox = Mailbox()
    with reserved_port() as port, logged() as logs:
        client = await start_app(mail_server=MailServer("127.0.0.1", port, "none"))
        await send(client)
        # An attempt is counted before it is made.
        await eventually(lambda: logs)
        assert await conn.fetchval("select attempts from mail_outbox") == 1
        await settled_s(conn)
        async with listen(mailbox, port=port):
            await conn.execute(MAKE_DUE)
            await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 1
    assert [entry["event"] for entry in logs] == ["mail not sent", "mail sent"]


def test_mail_being_sent_does_not_become_due_again() -> None:
    assert sender.HANDOVER_TIMEOUT_S < sender.CLAIM_S
    assert smtp.ANSWER_TIMEOUT_S < 0.75 * sender.UNKNOWN_RETRY_S


async def test_secrets_appear_in_neither_the_outbox_nor_the_log(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    async with listen(Mailbox(), authenticator=sign_in, auth_require_tls=False) as server:
        right = dataclasses.replace(server, user=USER, password=PASSWORD)
        wrong = dataclasses.replace(server, user=USER, password=f"{PASSWORD}, but wrong")
        with logged() as logs:
            client = await start_app(mail_server=wrong)
            await send(client)
            sealed = await conn.fetchval("select message from mail_outbox")
            await eventually(lambda: logs)
            await client.close()
            await conn.execute(MAKE_DUE)
            await start_app(mail_server=right)
            await eventually(lambda: is_empty(conn))
    assert b"canary" not in sealed
    assert TO.encode() not in sealed
    refused = "mail not sent: the mail server refuses the service"
    assert [entry["event"] for entry in logs] == [refused, "mail sent"]
    assert logs[0]["smtp_code"] == 535
    assert "canary" not in str(logs)
    assert TO not in str(logs)


async def test_two_replicas_send_each_mail_once(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        clients = [await start_app(mail_server=server) for _ in range(2)]
        await asyncio.gather(*(send(clients[n % 2], to=f"user{n}@example.com") for n in range(40)))
        await eventually(lambda: is_empty(conn))
    arrived = Counter(recipient for taken in mailbox.taken for recipient in taken.recipients)
    assert arrived == {f"user{n}@example.com": 1 for n in range(40)}


async def test_replica_skips_mail_claimed_by_another(conn: Any, database: Database) -> None:
    await conn.execute(
        "insert into mail_outbox (id, message, expires_at)"
        " select gen_random_uuid(), '', now() from generate_series(1, 5)"
    )
    other = await asyncpg.connect(**database.asyncpg_arguments())
    await other.execute("set lock_timeout = '10ms'")
    async with conn.transaction():
        first = await queries.claim_due(conn, 3, sender.CLAIM_S)
        second = await queries.claim_due(other, 5, sender.CLAIM_S)
    assert (len(first), len(second)) == (3, 2)
    assert not {row["id"] for row in first} & {row["id"] for row in second}
    assert not await queries.claim_due(other, 5, sender.CLAIM_S)
    await other.close()


async def _enqueue_and_fail(conn: Connection, app: web.Application) -> None:
    await enqueue(conn, app, template="verify_email", to=TO, language="en", values=VALUES)
    raise RuntimeError("rolled back")


async def test_rolled_back_transaction_sends_nothing(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        assert client.app is not None
        with pytest.raises(RuntimeError):
            await write(client.app, _enqueue_and_fail, client.app)
        assert await is_empty(conn)
        await send(client, to="after@example.com")
        await eventually(lambda: is_empty(conn))
    assert [taken.recipients for taken in mailbox.taken] == [["after@example.com"]]


@pytest.mark.asvs("16.5.2")
async def test_silent_mail_server_blocks_nothing_else(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender holds no connection while it waits, and still stops on request."""
    monkeypatch.setattr(smtp, "STEP_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(sender, "HANDOVER_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(sender, "STOP_TIMEOUT_S", 0.1)
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with silent:
        server = MailServer("127.0.0.1", silent.sockets[0].getsockname()[1], "none")
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(connected.is_set)
        pool = pool_of(client)
        # Other tasks may be using one.
        await eventually(lambda: pool.get_idle_size() == pool.get_size())
        await register(client)
        await client.close()
        assert not await is_empty(conn), "the next replica retries it"

        monkeypatch.setattr(sender, "HANDOVER_TIMEOUT_S", 0.2)
        await conn.execute(MAKE_DUE)
        with logged() as logs:
            client = await start_app(mail_server=server)
            await eventually(lambda: _has(logs, "mail not sent"))
            await client.close()
        failed = [entry for entry in logs if entry["event"] == "mail not sent"]
        assert all(entry["reason"].endswith("TimeoutError") for entry in failed)


def _has(logs: Any, event: str) -> bool:
    return any(entry["event"] == event for entry in logs)


async def _is_waiting(conn: Any) -> bool:
    return bool(
        await conn.fetchval(
            "select exists (select from pg_locks"
            " where relation = 'mail_outbox'::regclass and not granted)"
        )
    )


async def _gave_up_waiting(conn: Any) -> bool:
    return not await _is_waiting(conn)


async def test_mail_accepted_while_the_database_is_locked_is_sent_once(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    transaction = conn.transaction()

    async def lock(*_: object) -> None:
        await transaction.start()
        await conn.execute("lock table mail_outbox in exclusive mode")

    mailbox = Mailbox(on_data=lock)
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, db_lock_timeout_s=0.1)
        with logged() as logs:
            await send(client)
            await eventually(lambda: _has(logs, "mail sent"))
            await eventually(lambda: _is_waiting(conn))
            await eventually(lambda: _gave_up_waiting(conn))
            await transaction.rollback()
            mailbox.on_data = None
            await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 1


async def test_mail_sent_twice_has_the_same_message_id(
    start_app: StartApp, listen: Listen, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row stays if a replica dies after the server accepted the mail."""
    monkeypatch.setattr(sender, "STOP_TIMEOUT_S", 0.1)
    transaction = conn.transaction()

    async def lock(*_: object) -> None:
        await transaction.start()
        await conn.execute("lock table mail_outbox in exclusive mode")

    mailbox = Mailbox(on_data=lock)
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, db_lock_timeout_s=0.1)
        with logged() as logs:
            await send(client)
            await eventually(lambda: _has(logs, "mail sent"))
        await client.close()
        await transaction.rollback()
        mailbox.on_data = None
        await conn.execute(MAKE_DUE)
        await start_app(mail_server=server)
        await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 2
    assert len({taken.message["Message-ID"] for taken in mailbox.taken}) == 1


async def test_sender_survives_database_errors(
    start_app: StartApp, listen: Listen, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PAUSE_S", 0.1)
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await conn.execute(
                "create function refuse() returns trigger language plpgsql as"
                " $$ begin raise exception using errcode = 'disk_full'; end $$;"
                "create trigger refuse before update on mail_outbox execute function refuse()"
            )
            await eventually(lambda: _has(logs, "mail waits for the database"))
            await conn.execute("drop trigger refuse on mail_outbox")
            await conn.execute("alter table mail_outbox add check (attempts < 1)")
            await send(client)
            await eventually(lambda: _has(logs, "mail cannot be read"))
            await conn.execute("alter table mail_outbox drop constraint mail_outbox_attempts_check")
            await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 1


async def test_expired_mail_is_given_up(start_app: StartApp, listen: Listen, conn: Any) -> None:
    mailbox = Mailbox()
    with reserved_port() as port:
        client = await start_app(mail_server=MailServer("127.0.0.1", port, "none"))
        # Wait for the failure, not just the claim: a restarted server would accept the mail.
        with logged() as logs:
            await send(client)
            await eventually(lambda: _has(logs, "mail not sent"))
            await settled_s(conn)
        with logged() as logs:
            async with listen(mailbox, port=port):
                await conn.execute(f"{MAKE_DUE}, expires_at = now()")
                await eventually(lambda: is_empty(conn))
                await client.close()
    assert not mailbox.taken
    (entry,) = logs
    assert (entry["event"], entry["level"]) == (
        "mail given up: it could not be sent in time",
        "error",
    )


async def test_mail_that_cannot_be_unsealed_is_retried(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        # Keep the sender from claiming the mail before it is changed.
        await conn.execute(
            "alter table mail_outbox alter next_attempt_at set default now() + interval '1 hour'"
        )
        await send(client)
        with logged() as logs:
            await conn.execute(f"{MAKE_DUE}, message = '\\x00'::bytea || message")
            await eventually(lambda: _has(logs, "mail not sent"))
        assert logs[0]["reason"] == "SealError"
        await settled_s(conn)
        await conn.execute(f"{MAKE_DUE}, message = substr(message, 2)")
        await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 1


async def test_sender_survives_unexpected_errors(start_app: StartApp, conn: Any) -> None:
    """The resolver raises UnicodeError for this host name."""
    client = await start_app(mail_server=MailServer("mail..example", 25, "none"))
    with logged() as logs:
        await send(client)
        await eventually(lambda: _has(logs, "mail not sent"))
        await settled_s(conn)
        logs.clear()
        await conn.execute(MAKE_DUE)
        await eventually(lambda: _has(logs, "mail not sent"))
    assert (logs[0]["level"], "exception" in logs[0]) == ("error", True)


async def test_mail_is_written_to_a_file_if_no_server_is_set(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    client = await start_app()
    with logged() as logs:
        await send(client, to="zoë@exämple.test")
        await eventually(lambda: is_empty(conn))
    directory = settings.data_dir / "mail"
    assert directory.stat().st_mode & 0o777 == 0o700
    (file,) = directory.iterdir()
    assert file.suffix == ".eml"
    assert file.stat().st_mode & 0o777 == 0o600
    message = message_from_bytes(file.read_bytes(), EmailMessage, policy=SMTP_POLICY)
    assert LINK in text_of(message)
    (entry,) = logs
    assert (entry["event"], entry["path"], entry["link"]) == ("mail written", str(file), LINK)


async def test_unwritable_mail_directory_is_retried(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    settings.data_dir.write_text("a file is in the way")
    client = await start_app()
    with logged() as logs:
        await send(client)
        await eventually(lambda: _has(logs, "mail not sent"))
        await settled_s(conn)
    settings.data_dir.unlink()
    await conn.execute(MAKE_DUE)
    await eventually(lambda: is_empty(conn))
    assert len(list((settings.data_dir / "mail").iterdir())) == 1
