"""Faults of the mail server. No mail is lost, and nobody waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from tests.faults.load import Load
from tests.faults.run import Fault
from tests.faults.stage import Stage
from tests.support.factories import PASSWORD
from tests.support.smtp import Mailbox
from tests.support.waiting import eventually

MODES = ("direct", "two workers")
REGISTERED = 5


@contextlib.asynccontextmanager
async def listening(port: int, mailbox: Mailbox) -> AsyncIterator[None]:
    """Accept mail on the port, for the duration of the block."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox), "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def _register(load: Load) -> None:
    """Register accounts, each of which is sent a mail."""
    for number in range(REGISTERED):
        body = {"email": f"reader{number}@example.com", "password": PASSWORD}
        await load.expect("POST", "/auth/register", body)


async def _fail_then_deliver(
    stage: Stage, load: Load, happen: Callable[[Mailbox], Awaitable[int]]
) -> int:
    """Have mails fail, then have a working server; return how often the server failed."""
    mailbox = Mailbox()
    async with listening(stage.mail_port, mailbox):
        registering = asyncio.create_task(_register(load))
        failures = await happen(mailbox)
        await registering
    await _require_all(stage, mailbox)
    return failures


async def _require_all(stage: Stage, earlier: Mailbox) -> None:
    """Have a server accept what is due, and require the mail of each account."""
    mailbox = Mailbox()
    async with listening(stage.mail_port, mailbox):

        async def is_empty() -> bool:
            # As if the time until the next attempt had passed.
            await stage.postgres.execute("update mail_outbox set next_attempt_at = now()")
            return not await stage.postgres.value("select count(*) from mail_outbox")

        await eventually(is_empty)
    taken = {to for mail in (*earlier.taken, *mailbox.taken) for to in mail.recipients}
    missing = {f"reader{number}@example.com" for number in range(REGISTERED)} - taken
    assert not missing, missing


async def the_mail_server_is_not_there(stage: Stage, load: Load) -> int:
    await _register(load)
    refused = "select count(*) from mail_outbox where attempts > 0"
    await eventually(lambda: stage.postgres.value(refused))
    await _require_all(stage, Mailbox())
    return REGISTERED


def _answering(**answers: str) -> Callable[[Mailbox], Awaitable[int]]:
    async def happen(mailbox: Mailbox) -> int:
        mailbox.answers.update({name.replace("DOT", "."): text for name, text in answers.items()})
        await eventually(lambda: mailbox.names)
        return len(mailbox.names)

    return happen


async def the_mail_server_refuses_everything_for_now(stage: Stage, load: Load) -> int:
    return await _fail_then_deliver(stage, load, _answering(MAIL="451 later"))


async def the_mail_server_refuses_what_it_has_read(stage: Stage, load: Load) -> int:
    return await _fail_then_deliver(stage, load, _answering(DOT="451 later"))


async def the_mail_server_closes_in_the_middle(stage: Stage, load: Load) -> int:
    async def happen(mailbox: Mailbox) -> int:
        closed = 0

        async def close(server: SMTP, envelope: Envelope) -> None:
            nonlocal closed
            closed += 1
            transport: Any = server.transport
            transport.abort()

        mailbox.on_data = close
        await eventually(lambda: closed)
        return closed

    return await _fail_then_deliver(stage, load, happen)


async def the_mail_server_says_nothing(stage: Stage, load: Load) -> int:
    async def happen(mailbox: Mailbox) -> int:
        asked = asyncio.Event()

        async def hang() -> None:
            asked.set()
            await asyncio.sleep(5)

        mailbox.on_rcpt = hang
        await asked.wait()
        await load.acknowledge(50)
        return 1

    return await _fail_then_deliver(stage, load, happen)


FAULTS = [
    Fault(happen, modes=MODES, refusals=False, mails=True)
    for happen in (
        the_mail_server_is_not_there,
        the_mail_server_refuses_everything_for_now,
        the_mail_server_refuses_what_it_has_read,
        the_mail_server_closes_in_the_middle,
        the_mail_server_says_nothing,
    )
]
