"""Sender of the outbox: delivers over SMTP, or writes files if MAIL_URL is not set.

A short transaction claims a mail by scheduling its next attempt. The mail is sent after the commit,
without a connection or a lock, however slow the SMTP server is. Finally its row is deleted. If the
server fails or the replica dies, the row becomes due again, so each mail is sent at least once. It
is sent twice only if the server accepted it but its row was not deleted.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from aiohttp import web

from service.context import LOG_CONTEXT, SETTINGS, TRACER
from service.db.transactions import write
from service.exceptions import DatabaseUnavailable
from service.mail import queries
from service.mail.outbox import PURPOSE
from service.mail.rendering import MAIL_TEMPLATES, read_templates
from service.sealing import SealError, unseal
from service.settings import MailServer
from service.telemetry.metrics import count

log = logging.getLogger(__name__)

POLL_S = 1
# Pause after the mails could not be read.
PAUSE_S = 3
# Mails sent concurrently, so that one slow delivery delays the others less.
BATCH = 5
SEND_TIMEOUT_S = 10
QUIT_TIMEOUT_S = 1
STOP_TIMEOUT_S = 2
# Even with the jitter longer than a delivery, so that no replica claims a mail that is being sent.
FIRST_RETRY_S = 20
LAST_RETRY_S = 3600


async def mail_context(app: web.Application) -> AsyncIterator[None]:
    """Read the templates, and send mails that are due while the application runs."""
    app[MAIL_TEMPLATES] = read_templates(app[SETTINGS].mail_templates_dir)
    stopping = asyncio.Event()
    task = asyncio.create_task(_send_until(app, stopping), name="mail")
    yield
    stopping.set()
    # The server may just have accepted a mail; cancelling now would send it twice.
    await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _send_until(app: web.Application, stopping: asyncio.Event) -> None:
    """Poll for mails, because code that enqueues one cannot tell when its transaction commits."""
    while not stopping.is_set():
        pause_s = POLL_S
        try:
            rows = await write(app, queries.claim_due, BATCH, FIRST_RETRY_S, LAST_RETRY_S)
            await asyncio.gather(*(_deliver(app, row) for row in rows))
            if rows:
                continue
        except DatabaseUnavailable as error:
            log.warning(
                "mail waits for the database", extra={"cause": type(error.__cause__).__name__}
            )
            pause_s = PAUSE_S
        except Exception:
            log.exception("mail cannot be read")
            pause_s = PAUSE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stopping.wait()


async def _deliver(app: web.Application, row: asyncpg.Record) -> None:
    """Attempt one delivery. If it fails, the row stays and becomes due again."""
    # A slow import, which commands and workers do not need to start.
    import aiosmtplib

    fields: dict[str, object] = {"mail_id": str(row["id"]), "attempt": row["attempts"]}
    try:
        if row["expired"]:
            log.error("mail given up: it could not be sent in time", extra=fields)
            count(app, "mails", outcome="given_up")
        else:
            await _attempt(app, row, fields)
        await _delete(app, row["id"])
    except (OSError, aiosmtplib.SMTPException, SealError) as error:
        count(app, "mails", outcome="failed")
        # The server's message is left out, because it may quote the mail.
        reason, smtp_code = type(error).__name__, getattr(error, "code", None)
        log.warning("mail not sent", extra={**fields, "reason": reason, "smtp_code": smtp_code})
    except Exception:
        count(app, "mails", outcome="failed")
        log.exception("mail not sent", extra=fields)


async def _attempt(app: web.Application, row: asyncpg.Record, fields: dict[str, object]) -> None:
    """Send or write the mail, or give up if its recipient is refused. Raises to have it retried."""
    import aiosmtplib

    settings = app[SETTINGS]
    payload = orjson.loads(unseal(settings.secret_key, PURPOSE, str(row["id"]), row["message"]))
    fields = {**fields, "template": payload["template"]}
    # From here on, log lines carry the ids of the request that caused the mail.
    LOG_CONTEXT.set(payload.get("request", {}))
    with _span(app, payload["template"]):
        if settings.mail_server is None:
            path = await asyncio.to_thread(_write_file, settings.data_dir, row, payload)
            log.info("mail written", extra={**fields, "path": str(path), "link": payload["link"]})
            count(app, "mails", outcome="sent")
            return
        try:
            await _send(settings.mail_server, payload)
            log.info("mail sent", extra=fields)
            count(app, "mails", outcome="sent")
        except aiosmtplib.SMTPRecipientsRefused as error:
            refusal = error.recipients[0]
            # RFC 5321 §4.2.1: codes from 500 on are permanent.
            if refusal.code < 500:
                raise refusal from None
            log.error(
                "mail given up: its recipient is refused",
                extra={**fields, "smtp_code": refusal.code},
            )
            count(app, "mails", outcome="given_up")


def _span(app: web.Application, template: str) -> contextlib.AbstractContextManager[None]:
    """Return a span for the attempt, if the request that caused the mail was traced."""
    request = LOG_CONTEXT.get()
    if TRACER not in app or "trace_id" not in request:
        return contextlib.nullcontext()
    from service.telemetry.traces import mail_span

    return mail_span(app, template, request)


async def _delete(app: web.Application, mail_id: uuid.UUID) -> None:
    """Delete the row, retrying as long as necessary, because the mail would be sent again.

    Waiting blocks nothing else: without the database no mail can be claimed either.
    """
    while True:
        try:
            return await write(app, queries.delete_mail, mail_id)
        except DatabaseUnavailable:
            await asyncio.sleep(POLL_S)


async def _send(server: MailServer, payload: dict[str, Any]) -> None:
    """Send the mail. Raises OSError or SMTPException if the server did not accept it."""
    import aiosmtplib

    recipient: str = payload["to"]
    smtp = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        username=server.user or None,
        password=server.password or None,
        use_tls=server.security == "tls",
        start_tls=server.security == "starttls",
        # The default would be a lookup in a thread, which no deadline can cancel.
        local_hostname=socket.gethostname(),
        timeout=SEND_TIMEOUT_S,
    )
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await smtp.connect()
            await smtp.sendmail(
                payload["from"],
                [recipient],
                payload["message"].encode(),
                mail_options=[] if recipient.isascii() else ["SMTPUTF8", "BODY=8BITMIME"],
            )
        # The server has accepted the mail, so a failing QUIT must not cause a retry.
        with contextlib.suppress(OSError, aiosmtplib.SMTPException):
            async with asyncio.timeout(QUIT_TIMEOUT_S):
                await smtp.quit()
    finally:
        smtp.close()


def _write_file(data_dir: Path, row: asyncpg.Record, payload: dict[str, Any]) -> Path:
    """Write the mail to a file for developers; its name is the same at each attempt."""
    directory = data_dir / "mail"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{row['created_at']:%Y%m%dT%H%M%SZ}-{row['id']}.eml"
    scratch = path.with_suffix(".part")
    scratch.touch(mode=0o600)
    scratch.write_bytes(payload["message"].encode())
    return scratch.replace(path)
