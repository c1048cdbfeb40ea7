"""Formats everything logged through ``logging`` as one event per line on stderr.

Modules use the standard library: ``log.info("mail sent", extra={"attempt": 2})``. The event is a
constant; variable parts go into ``extra``, with units in their names. Only process startup code
imports this module. docs/logs.md lists the events and fields; a test compares it with the code.
"""

import asyncio
import json
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeAlias

import asyncpg
import orjson
from aiohttp import web

from service.context import LOG_CONTEXT
from service.settings import Settings

log = logging.getLogger(__name__)

Event: TypeAlias = dict[str, Any]

# Limits for text that is not ours: library messages and tracebacks.
MESSAGE_MAX_CHARS = 2_000
TRACEBACK_MAX_CHARS = 20_000


def configure_logging(settings: Settings) -> None:
    """Log the service's events, and warnings from everything else, to stderr.

    That includes libraries, Python warnings and uncaught exceptions. Other handlers on the root
    logger are kept.
    """
    handler = StderrHandler()
    handler.setFormatter(
        JsonFormatter() if is_json(settings) else ConsoleFormatter(colors=os.isatty(2))
    )
    level: int = getattr(logging, settings.log_level.upper())
    root = logging.getLogger()
    for attached in root.handlers[:]:
        # Compare by name: the class may have been imported twice.
        if attached.name == handler.name:
            root.removeHandler(attached)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("service").setLevel(level)
    # It logs errors that it also raises.
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)
    logging.setLogRecordFactory(record_in_context)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda thrown: log.error(
        "uncaught exception",
        extra={"thread_name": getattr(thrown.thread, "name", None)},
        exc_info=thrown.exc_value,
    )


def is_json(settings: Settings) -> bool:
    """Return whether the log is JSON."""
    return settings.log_format == "json" or (settings.log_format == "auto" and not os.isatty(2))


def record_in_context(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Create a record with the ids of its request and trace, for all handlers."""
    record = logging.LogRecord(*args, **kwargs)
    record.__dict__.update(LOG_CONTEXT.get())
    return record


class StderrHandler(logging.Handler):
    """Writes lines to stderr, batched per iteration of the event loop.

    Each write is a system call that wakes the pipe's reader, and under load one iteration handles
    several requests. A batch holds whole lines and stays within PIPE_BUF unless a single line
    exceeds it. So lines of several processes do not mix in a pipe.

    A full disk or a closed pipe fails no request. Warnings and errors are written at once, because
    the process may be about to die.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "shinkei"
        self._lines: list[bytes] = []
        self._bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and _is_reported_elsewhere(record):
            return
        try:
            line = f"{self.format(record)}\n".encode()
        except Exception:
            self.handleError(record)
            return
        if self._bytes + len(line) > select.PIPE_BUF:
            self.flush()
        self._lines.append(line)
        self._bytes += len(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._lines) == 1:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the buffered lines; ``logging`` calls this at exit."""
        self.acquire()
        lines, self._lines, self._bytes = self._lines, [], 0
        rest = b"".join(lines)
        try:
            while rest:
                rest = rest[os.write(2, rest) :]
        except OSError:
            pass
        finally:
            self.release()


# The response, the probes and our own events already report these.
_REPORTED_ELSEWHERE = (web.RequestPayloadError, ConnectionError)


def _is_reported_elsewhere(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, _REPORTED_ELSEWHERE) and not _is_ours(record)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("service.")


_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "error",
}
# Attributes that every record has before its event's fields, and those that formatters add.
RESERVED = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"}
_OWN = len(RESERVED) - 2


def _event_of(record: logging.LogRecord) -> Event:
    """Return the fields of a line. A library's record has a logger name and no extra fields."""
    try:
        message = record.getMessage()
    except Exception:
        message = str(record.msg)
    event: Event = {
        "timestamp": datetime.fromtimestamp(record.created, UTC),
        "level": _LEVELS.get(record.levelno, "info"),
        "event": message[:MESSAGE_MAX_CHARS],
    }
    if _is_ours(record):
        values = vars(record)
        for name in list(values)[_OWN:]:
            if name not in RESERVED:
                event[name] = values[name]
    else:
        event.update(LOG_CONTEXT.get(), logger=record.name)
    if record.exc_info and record.exc_info[1]:
        event["exception"] = format_exception(record.exc_info[1])
    return event


class JsonFormatter(logging.Formatter):
    """Formats an event as one line of JSON, with non-printable characters escaped.

    A reader or a terminal could take these for a line break or a command: C1 controls, U+2028,
    bidirectional marks.
    """

    def format(self, record: logging.LogRecord) -> str:
        event = _event_of(record)
        try:
            line = orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z).decode()
        except TypeError:
            # orjson rejects lone surrogates and integers beyond 64 bits.
            return json.dumps(event, default=str)
        # The only unprintable character in ASCII that JSON does not escape is DEL.
        if line.isascii() and "\x7f" not in line:
            return line
        return _escape(line, lambda char: json.dumps(char)[1:-1])


_COLORS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class ConsoleFormatter(logging.Formatter):
    """Formats an event as one line for people, with non-printable characters escaped.

    A traceback follows, indented, so that no text in it can pass for an event.
    """

    def __init__(self, *, colors: bool = False) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        values = _event_of(record)
        now, level = values.pop("timestamp"), values.pop("level")
        message = _escape(values.pop("event"), _escape_as_python)
        trace = values.pop("exception", "")
        shown = "".join(f" {name}={_show(value)}" for name, value in values.items())
        before, bold, after = (_COLORS[level], _BOLD, _PLAIN) if self._colors else ("", "", "")
        head = f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {before}{level:7}{after}"
        lines = [f"{head} {bold}{message}{after}{shown}"]
        lines += [f"    {_escape(line, _escape_as_python)}" for line in trace.splitlines()]
        return "\n".join(lines)


def _show(value: object) -> str:
    """Return the value as text, quoted by ``repr`` if it is empty, ambiguous or unprintable."""
    text = str(value)
    bare = text.isprintable() and text and not set(text) & set(" '\"=")
    return text if bare else repr(text)


def _escape(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escape(char) for char in text)


def _escape_as_python(char: str) -> str:
    return char.encode("unicode_escape").decode()


def format_exception(error: BaseException) -> str:
    """Format a traceback after those of its causes, as Python does.

    Leaves out the text of PostgreSQL errors, whose detail repeats the rejected row, including
    emails and hashes. The message about a wrong statement holds names of the schema alone.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts.append("".join(traceback.format_tb(current.__traceback__)) + _describe(current))
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
    return "\nwhich led to:\n".join(reversed(parts))[-TRACEBACK_MAX_CHARS:]


def _describe(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError):
        constraint = f", constraint {error.constraint_name}" if error.constraint_name else ""
        wrong = isinstance(error, asyncpg.SyntaxOrAccessError)
        message = f", {error.message}" if wrong else ""
        return f"{type(error).__qualname__}: SQLSTATE {error.sqlstate}{constraint}{message}"
    described = "".join(traceback.format_exception_only(error)).rstrip("\n")
    if isinstance(error, BaseExceptionGroup):
        return "\n".join([described, *map(format_exception, error.exceptions)])
    return described


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, Exception):
        log.error("uncaught exception", exc_info=error)
    else:
        sys.__excepthook__(kind, error, trace)
