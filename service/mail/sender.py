"""Sender of the outbox: delivers over SMTP, or writes files if MAIL_URL is not set.

A short transaction claims a mail by postponing it for longer than a delivery takes. The mail is
sent after the commit, without a connection or a lock, however slow the SMTP server is. Finally its
row is deleted, or the next attempt is scheduled. If the replica dies, the row becomes due again, so
each mail is sent at least once.

Before the mail's content is sent, the row is postponed by hours. So if the server then does not
answer, or the replica dies, the mail is not sent again and again to someone who may have it.
"""

import asyncio
import contextlib
import importlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from aiohttp import web

from service.context import LOG_CONTEXT, SETTINGS, TRACER, time_to_close_s
from service.db.transactions import write
from service.exceptions import DatabaseUnavailable
from service.jobs.tasks import end_tasks
from service.mail import queries
from service.mail.outbox import PURPOSE
from service.mail.rendering import MAIL_TEMPLATES, read_templates
from service.sealing import SealError, unseal
from service.settings import MailServer
from service.telemetry.metrics import count

if TYPE_CHECKING:
    import aiosmtplib

log = logging.getLogger(__name__)

POLL_S = 1.0
# Pause after the mails could not be read.
PAUSE_S = 3
# Deliveries at a time in each process. Others go on while one waits for a slow server.
CONCURRENT = 10
# Deadline for all steps before the content is sent.
HANDOVER_TIMEOUT_S = 120
# Longer than HANDOVER_TIMEOUT_S, so that no replica claims a mail that is being sent.
CLAIM_S = 180
STOP_TIMEOUT_S = 2
FIRST_RETRY_S = 20
LAST_RETRY_S = 3600
# The server may have accepted the mail.
UNKNOWN_RETRY_S = 6 * 3600


class ClaimLostError(Exception):
    """Another replica has claimed the mail."""


async def mail_context(app: web.Application) -> AsyncIterator[None]:
    """Read the templates, and send mails that are due while the application runs."""
    app[MAIL_TEMPLATES] = read_templates(app[SETTINGS].mail_templates_dir)
    # A slow import, which commands do not need. When the first mail is due, the process may have
    # run out of descriptors.
    await asyncio.to_thread(importlib.import_module, "service.mail.smtp")
    stopping = asyncio.Event()
    task = asyncio.create_task(_send_until(app, stopping), name="mail")
    yield
    stopping.set()
    # The server may be about to accept a mail; cancelling at once would leave that unknown.
    await asyncio.wait([task], timeout=min(STOP_TIMEOUT_S, time_to_close_s(app)))
    await end_tasks(app, task)


async def _send_until(app: web.Application, stopping: asyncio.Event) -> None:
    """Poll for mails, because code that enqueues one cannot tell when its transaction commits."""
    async with asyncio.TaskGroup() as deliveries:
        stop = deliveries.create_task(stopping.wait())
        running: set[asyncio.Task[Any]] = {stop}
        while not stop.done():
            pause_s: float | None = POLL_S
            try:
                free = CONCURRENT - (len(running) - 1)
                rows = await write(app, queries.claim_due, free, CLAIM_S) if free else []
                running |= {deliveries.create_task(_deliver(app, row)) for row in rows}
                if len(rows) == free:
                    pause_s = None  # until a delivery has ended
            except DatabaseUnavailable as error:
                _log_waiting(error)
                pause_s = PAUSE_S
            except Exception:
                log.exception("mail cannot be read")
                pause_s = PAUSE_S
            await asyncio.wait(running, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            running = {task for task in running if not task.done()}


def _log_waiting(error: DatabaseUnavailable) -> None:
    log.warning("mail waits for the database", extra={"cause": type(error.__cause__).__name__})


async def _deliver(app: web.Application, row: asyncpg.Record) -> None:
    """Attempt one delivery, then delete the row or schedule the next attempt."""
    try:
        retry_s = await _attempt(app, row)
        if retry_s is None:
            await _settle(app, queries.delete_mail, row["id"])
        else:
            await _settle(app, queries.postpone, row["id"], row["attempts"], retry_s)
    except Exception:
        # Raising would end the other deliveries.
        log.exception("mail outcome cannot be recorded", extra={"mail_id": str(row["id"])})


async def _settle(
    app: web.Application, query: Callable[..., Awaitable[object]], *args: Any
) -> None:
    """Run the query, retrying as long as necessary, because the mail might be sent again.

    Waiting blocks nothing else: without the database no mail can be claimed either.
    """
    while True:
        try:
            await write(app, query, *args)
        except DatabaseUnavailable:
            await asyncio.sleep(POLL_S)
        else:
            return


async def _attempt(app: web.Application, row: asyncpg.Record) -> float | None:
    """Attempt one delivery. Returns the seconds until the next one, or None if it was the last."""
    # Already imported by ``mail_context``.
    import aiosmtplib

    from service.mail.smtp import NoAnswerError, TokenFileError

    fields: dict[str, object] = {"mail_id": str(row["id"]), "attempt": row["attempts"]}
    retries: int = row["attempts"] - 1
    later_s = min(FIRST_RETRY_S * 2.0 ** min(retries, 16), LAST_RETRY_S)
    if row["expired"]:
        log.error("mail given up: it could not be sent in time", extra=fields)
        count(app, "mails", outcome="given_up")
        return None
    try:
        await _send(app, row, fields)
    except NoAnswerError:
        return UNKNOWN_RETRY_S
    except aiosmtplib.SMTPResponseException as error:
        return _refused(app, error, fields, later_s)
    except DatabaseUnavailable as error:
        _log_waiting(error)
    except TokenFileError:
        log.error("mail not sent: MAIL_TOKEN_FILE does not hold an access token", extra=fields)
    except (OSError, aiosmtplib.SMTPException, SealError, ClaimLostError) as error:
        log.warning("mail not sent", extra={**fields, "reason": type(error).__name__})
    except Exception:
        log.exception("mail not sent", extra=fields)
    else:
        count(app, "mails", outcome="sent")
        return None
    count(app, "mails", outcome="failed")
    return later_s


def _refused(
    app: web.Application,
    error: "aiosmtplib.SMTPResponseException",
    fields: Mapping[str, object],
    later_s: float | None,
) -> float | None:
    """Log a refusal, and return the seconds until the next attempt, or None to give up.

    The server's text is left out, because it may quote the mail.
    """
    from service.mail.smtp import (
        ContentRefusedError,
        TokenRefusedError,
        enhanced_code,
        is_about_recipient,
    )

    code, reason = error.code, type(error).__name__
    shown = {**fields, "reason": reason, "smtp_code": code, "enhanced_code": enhanced_code(error)}
    # RFC 5321 §4.2.1: codes from 500 on are permanent.
    if code < 500:
        log.warning("mail not sent", extra=shown)
    elif is_about_recipient(error):
        log.error("mail given up: its recipient is refused", extra=shown)
        later_s = None
    elif isinstance(error, ContentRefusedError):
        log.error("mail given up: its content is refused", extra=shown)
        later_s = None
    elif isinstance(error, TokenRefusedError):
        # It may have expired a moment before its successor is in the file.
        log.error("mail not sent: the mail server refuses the access token", extra=shown)
    else:
        # The operator must act, and will need some time.
        log.error("mail not sent: the mail server refuses the service", extra=shown)
        later_s = LAST_RETRY_S
    count(app, "mails", outcome="given_up" if later_s is None else "failed")
    return later_s


async def _send(app: web.Application, row: asyncpg.Record, fields: dict[str, object]) -> None:
    """Send the mail or write it to a file, and log that. Adds to ``fields`` what it learns."""
    settings = app[SETTINGS]
    payload = orjson.loads(unseal(settings.secret_keys, PURPOSE, str(row["id"]), row["message"]))
    fields["template"] = payload["template"]
    # From here on, log lines carry the ids of the request that caused the mail.
    LOG_CONTEXT.set(payload.get("request", {}))
    with _span(app, payload["template"]):
        if settings.mail_server is None:
            path = await asyncio.to_thread(_write_file, settings.data_dir, row, payload)
            log.info("mail written", extra={**fields, "path": str(path), "link": payload["link"]})
        else:
            await _send_over_smtp(app, settings.mail_server, row, payload, fields)
            log.info("mail sent", extra=fields)


async def _send_over_smtp(
    app: web.Application,
    server: MailServer,
    row: asyncpg.Record,
    payload: dict[str, Any],
    fields: Mapping[str, object],
) -> None:
    """Send the mail, unless this replica was so slow that another has claimed it.

    Raises OSError, SMTPException, DatabaseUnavailable or ClaimLostError if the mail was not sent,
    and NoAnswerError if it may have been.
    """
    from service.mail import smtp

    message = payload["message"].encode()
    hostname = socket.gethostname()
    async with asyncio.timeout(HANDOVER_TIMEOUT_S) as deadline:
        name = app[SETTINGS].mail_ehlo or await asyncio.to_thread(smtp.full_name, hostname)
        async with smtp.session(server, name) as session:
            await smtp.start_mail(session, payload["from"], payload["to"], size_bytes=len(message))
            # From here on, the outcome is unknown until the server responds, even if we die.
            if not await write(app, queries.postpone, row["id"], row["attempts"], UNKNOWN_RETRY_S):
                raise ClaimLostError
            await smtp.start_data(session)
            deadline.reschedule(None)
            try:
                await smtp.send_data(session, message)
            except (smtp.NoAnswerError, asyncio.CancelledError) as error:
                reason = type(error.__cause__ or error).__name__
                log.warning("mail outcome unknown", extra={**fields, "reason": reason})
                count(app, "mails", outcome="unknown")
                raise


def _span(app: web.Application, template: str) -> contextlib.AbstractContextManager[None]:
    """Return a span for the attempt, if the request that caused the mail was traced."""
    request = LOG_CONTEXT.get()
    if TRACER not in app or "trace_id" not in request:
        return contextlib.nullcontext()
    from service.telemetry.traces import mail_span

    return mail_span(app, template, request)


def _write_file(data_dir: Path, row: asyncpg.Record, payload: dict[str, Any]) -> Path:
    """Write the mail to a file for developers; its name is the same at each attempt."""
    directory = data_dir / "mail"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{row['created_at']:%Y%m%dT%H%M%S.%fZ}-{row['id']}.eml"
    scratch = path.with_suffix(".part")
    scratch.touch(mode=0o600)
    scratch.write_bytes(payload["message"].encode())
    return scratch.replace(path)
