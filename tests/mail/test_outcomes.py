"""What the sender does with each response of a mail server, and with none."""

import asyncio
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope

from service.mail import queries, sender, smtp
from tests.support.clients import StartApp
from tests.support.logbook import logged
from tests.support.smtp import TO, Listen, Mailbox, is_empty, saying, send, settled_s, waits_s
from tests.support.waiting import DEADLINE_S, eventually

MAKE_DUE = "update mail_outbox set next_attempt_at = now()"
CANARY = "said to the canary"
NOT_SENT = "mail not sent"
REFUSES = "mail not sent: the mail server refuses the service"
RECIPIENT = "mail given up: its recipient is refused"
CONTENT = "mail given up: its content is refused"
UNKNOWN = "mail outcome unknown"


@pytest.mark.parametrize(
    ("step", "answer", "event", "enhanced_code"),
    [
        ("RCPT", "550 5.1.1", RECIPIENT, "5.1.1"),
        ("RCPT", "550 5.2.1", RECIPIENT, "5.2.1"),
        ("RCPT", "553 5.1.3", RECIPIENT, "5.1.3"),
        ("RCPT", "556 5.1.10", RECIPIENT, "5.1.10"),
        ("RCPT", "550 5.1.8", REFUSES, "5.1.8"),
        ("RCPT", "504 5.5.2", REFUSES, "5.5.2"),
        ("RCPT", "530 5.7.0", REFUSES, "5.7.0"),
        ("RCPT", "554 5.7.1", REFUSES, "5.7.1"),
        ("RCPT", "552 5.2.2", REFUSES, "5.2.2"),
        ("RCPT", "550", REFUSES, None),
        ("RCPT", "550 4.1.1", REFUSES, None),
        ("RCPT", "450 4.1.1", NOT_SENT, "4.1.1"),
        ("RCPT", "450", NOT_SENT, None),
        ("MAIL", "550 5.1.1", REFUSES, "5.1.1"),
        ("MAIL", "530 5.7.0", REFUSES, "5.7.0"),
        ("MAIL", "451 4.7.1", NOT_SENT, "4.7.1"),
        ("EHLO", "504 5.5.2", REFUSES, "5.5.2"),
        (".", "554 5.6.0", CONTENT, "5.6.0"),
        (".", "550 5.7.1", CONTENT, "5.7.1"),
        (".", "554", CONTENT, None),
        (".", "550 5.1.1", RECIPIENT, "5.1.1"),
        (".", "451 4.3.0", NOT_SENT, "4.3.0"),
    ],
)
async def test_response_decides_what_becomes_of_a_mail(
    start_app: StartApp,
    listen: Listen,
    conn: Any,
    step: str,
    answer: str,
    event: str,
    enhanced_code: str | None,
) -> None:
    mailbox = Mailbox(answers={step: f"{answer} {CANARY}"})
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await send(client)
            await eventually(lambda: logs)
            delay_s = await settled_s(conn)
    (entry,) = logs
    assert (entry["event"], entry["smtp_code"]) == (event, int(answer[:3]))
    assert (entry["enhanced_code"], entry["template"]) == (enhanced_code, "verify_email")
    assert CANARY not in str(entry)
    if event in (RECIPIENT, CONTENT):
        assert (entry["level"], delay_s) == ("error", None)
    else:
        assert delay_s is not None
        # The jitter takes off a quarter at most, and some time has passed.
        hour = 0.7 * sender.LAST_RETRY_S
        assert (entry["level"], delay_s > hour) == (
            ("error", True) if event == REFUSES else ("warning", False)
        )
    assert not mailbox.taken


async def test_refusal_of_data_before_the_content_is_no_fault_of_the_content(
    start_app: StartApp, conn: Any
) -> None:
    ok = b"250 ok"
    async with saying(b"220 hello", ok, ok, ok, b"554 5.5.1 no", b"221 bye") as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await send(client)
            await eventually(lambda: logs)
            assert await settled_s(conn) is not None
    (entry,) = logs
    assert (entry["event"], entry["smtp_code"], entry["enhanced_code"]) == (REFUSES, 554, "5.5.1")


@pytest.mark.parametrize("attempts", [0, 4, 40])
async def test_retries_back_off_up_to_an_hour(
    start_app: StartApp, listen: Listen, conn: Any, attempts: int
) -> None:
    mailbox = Mailbox(answers={"RCPT": "450 later"})
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(lambda: mailbox.recipients)
        await settled_s(conn)
        mailbox.recipients.clear()
        await conn.execute(f"{MAKE_DUE}, attempts = $1", attempts)
        await eventually(lambda: mailbox.recipients)
        middle = min(sender.FIRST_RETRY_S * 2**attempts, sender.LAST_RETRY_S)

        async def is_scheduled() -> bool:
            seconds = await waits_s(conn)
            return seconds is not None and 0.7 * middle <= seconds <= 1.25 * middle

        await eventually(is_scheduled)


async def test_retries_do_not_come_all_at_once(conn: Any) -> None:
    await conn.execute(
        "insert into mail_outbox (id, message, expires_at)"
        " select gen_random_uuid(), '', now() from generate_series(1, 50)"
    )
    async with conn.transaction():
        for row in await conn.fetch("select id from mail_outbox"):
            assert await queries.postpone(conn, row["id"], 0, 100)
        delays = await conn.fetch(
            "select extract(epoch from next_attempt_at - now())::float as s from mail_outbox"
        )
    assert all(75 <= row["s"] <= 125 for row in delays)
    assert len(set(delays)) > 40


async def _drop(server: SMTP, envelope: Envelope) -> None:
    assert server.transport is not None
    server.transport.close()


async def _never_answer(server: SMTP, envelope: Envelope) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("on_data", "timeout_s", "reason"),
    [
        (_never_answer, 0.2, "SMTPReadTimeoutError"),
        (_drop, DEADLINE_S, "SMTPServerDisconnected"),
    ],
)
async def test_mail_without_an_answer_is_not_sent_again_for_hours(
    start_app: StartApp,
    listen: Listen,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
    on_data: Any,
    timeout_s: float,
    reason: str,
) -> None:
    monkeypatch.setattr(smtp, "ANSWER_TIMEOUT_S", timeout_s)
    async with listen(Mailbox(on_data=on_data)) as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await send(client)
            await eventually(lambda: logs)
            await client.close()
    (entry,) = logs
    assert (entry["event"], entry["level"], entry["reason"]) == (UNKNOWN, "warning", reason)
    assert (await waits_s(conn) or 0) > 4 * 3600


async def test_mail_is_postponed_before_its_content_is_sent(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    """So a replica that dies now does not have it sent again soon."""
    delays: list[float | None] = []

    async def look(server: SMTP, envelope: Envelope) -> None:
        delays.append(await waits_s(conn))

    async with listen(Mailbox(on_data=look)) as server:
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(lambda: delays)
        await eventually(lambda: is_empty(conn))
    assert (delays[0] or 0) > 4 * 3600


async def test_stopping_while_the_answer_is_awaited_leaves_the_outcome_unknown(
    start_app: StartApp, listen: Listen, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "STOP_TIMEOUT_S", 0.1)
    arrived = asyncio.Event()

    async def arrive(server: SMTP, envelope: Envelope) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with listen(Mailbox(on_data=arrive)) as server:
        client = await start_app(mail_server=server)
        await send(client)
        await eventually(arrived.is_set)
        with logged() as logs:
            await client.close()
    assert [entry["event"] for entry in logs] == [UNKNOWN]
    assert (await waits_s(conn) or 0) > 4 * 3600


async def test_slow_answer_delays_no_other_mail(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    answer, waiting = asyncio.Event(), asyncio.Event()

    async def wait_for_slow(server: SMTP, envelope: Envelope) -> None:
        if envelope.rcpt_tos == ["slow@example.com"]:
            waiting.set()
            await answer.wait()

    mailbox = Mailbox(on_data=wait_for_slow)
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        await send(client, to="slow@example.com")
        await eventually(waiting.is_set)
        for number in range(12):
            await send(client, to=f"user{number}@example.com")
        await eventually(lambda: len(mailbox.taken) == 12)
        answer.set()
        await eventually(lambda: is_empty(conn))
    assert mailbox.recipients.count("slow@example.com") == 1
    assert len(mailbox.taken) == 13


async def test_deliveries_at_a_time_are_bounded(
    start_app: StartApp, listen: Listen, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "CONCURRENT", 2)
    arrived, answers = [], asyncio.Semaphore(0)

    async def hold(server: SMTP, envelope: Envelope) -> None:
        arrived.append(envelope)
        await answers.acquire()

    async def in_delivery() -> int:
        return int(await conn.fetchval("select count(*) from mail_outbox where attempts > 0"))

    mailbox = Mailbox(on_data=hold)
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        # All are due at the same poll, which claims as many as it may before any is sent.
        await send(client, mails=8)
        await eventually(lambda: len(arrived) == 2)
        assert await in_delivery() == 2
        answers.release()
        await eventually(lambda: len(arrived) == 3)
        assert await in_delivery() == 2
        for _ in range(7):
            answers.release()
        await eventually(lambda: is_empty(conn))
    assert len(mailbox.taken) == 8


async def test_mail_that_another_replica_claims_meanwhile_is_not_sent(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    """The loop of this replica may have stood still for longer than its claim."""

    async def claim() -> None:
        await conn.execute(
            "update mail_outbox set attempts = attempts + 1, next_attempt_at = now() + '1 day'"
        )

    mailbox = Mailbox(on_rcpt=claim)
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await send(client)
            await eventually(lambda: logs)
            await client.close()
    assert (logs[0]["event"], logs[0]["reason"]) == (NOT_SENT, "ClaimLostError")
    assert not mailbox.taken
    assert (await waits_s(conn) or 0) > 23 * 3600


async def test_sender_survives_a_mail_whose_outcome_cannot_be_recorded(
    start_app: StartApp, listen: Listen, conn: Any
) -> None:
    await conn.execute(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise check_violation; end $$;"
        "create trigger refuse before delete on mail_outbox for each row execute function refuse()"
    )
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server)
        with logged() as logs:
            await send(client)
            event = "mail outcome cannot be recorded"
            await eventually(lambda: any(entry["event"] == event for entry in logs))
        await conn.execute("drop trigger refuse on mail_outbox")
        await send(client, to="next@example.com")
        await eventually(lambda: len(mailbox.taken) == 2)
    assert (await waits_s(conn) or 0) > 4 * 3600


@pytest.mark.parametrize(
    ("set_name", "full_name", "greeted"),
    [
        ("mail.app.example", "box.example.com", "mail.app.example"),
        ("", "box.example.com", "box.example.com"),
        ("", "box", "[127.0.0.1]"),
        ("", "localhost.localdomain", "[127.0.0.1]"),
        ("", "192.0.2.7", "[127.0.0.1]"),
    ],
)
async def test_service_greets_with_a_full_name_or_its_ip(
    start_app: StartApp,
    listen: Listen,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
    set_name: str,
    full_name: str,
    greeted: str,
) -> None:
    # Each host name is looked up once.
    monkeypatch.setattr("socket.gethostname", lambda: f"host-of-{full_name}")
    monkeypatch.setattr("socket.getfqdn", lambda *_: full_name)
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, mail_ehlo=set_name)
        await send(client)
        await eventually(lambda: is_empty(conn))
    assert mailbox.names == [greeted]


async def test_line_that_begins_with_a_dot_arrives_complete(
    start_app: StartApp, listen: Listen, conn: Any, settings: Any
) -> None:
    own = settings.data_dir / "templates" / "en"
    own.mkdir(parents=True)
    (own / "verify_email.txt").write_text("Hi\n.\n..dots\nQUIT\n")
    mailbox = Mailbox()
    async with listen(mailbox) as server:
        client = await start_app(mail_server=server, mail_templates_dir=own.parent)
        await send(client, to=TO)
        await eventually(lambda: is_empty(conn))
    part = mailbox.taken[0].message.get_body(("plain",))
    assert part is not None
    assert part.get_content().splitlines() == ["Hi", ".", "..dots", "QUIT"]
