"""One event a line on stderr, as JSON or readable, for everything that goes through ``logging``.

Modules log with the standard library: ``log.info("mail sent", extra={"attempt": 2})``. An event is
a constant; what varies is in ``extra``, with units in the names. Only the start of a process
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

# Of texts that others wrote: libraries' messages, and tracebacks.
MESSAGE_MAX_CHARS = 2_000
TRACEBACK_MAX_CHARS = 20_000


def configure_logging(settings: Settings) -> None:
    """Write one line to stderr for each event of ours and each warning of others.

    Others are libraries, Python's warnings, and exceptions that nobody catches. Handlers that
    somebody else has attached stay.
    """
    is_terminal = os.isatty(2)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not is_terminal)
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if as_json else ConsoleFormatter(colors=is_terminal))
    level: int = getattr(logging, settings.log_level.upper())
    root = logging.getLogger()
    for attached in root.handlers[:]:
        # By name: a worker has imported the class anew.
        if attached.name == handler.name:
            root.removeHandler(attached)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("service").setLevel(level)
    # It logs what it also raises.
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)
    logging.setLogRecordFactory(record_in_context)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda thrown: log.error(
        "uncaught exception",
        extra={"thread_name": getattr(thrown.thread, "name", None)},
        exc_info=thrown.exc_value,
    )


def record_in_context(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record with the ids of its request and trace, for every handler to see."""
    record = logging.LogRecord(*args, **kwargs)
    record.__dict__.update(LOG_CONTEXT.get())
    return record


class StderrHandler(logging.Handler):
    """Writes lines to stderr, those of one turn of the event loop together.

    Each write is a system call that wakes up whoever reads a pipe; under load ten requests are
    answered in a turn. Lines are written whole and in pieces that pipes take at once, so that those
    of several processes do not mix. A disk that is full or a reader that is gone fails no request.
    Warnings and errors do not wait: they may be the last that is heard of the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "shinkei"
        self._lines: list[bytes] = []
        self._bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and _is_told_elsewhere(record):
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
        """Write what waits; ``logging`` itself does so at exit."""
        self.acquire()
        lines, self._lines, self._bytes = self._lines, [], 0
        piece = b"".join(lines)
        try:
            while piece:
                piece = piece[os.write(2, piece) :]
        except OSError:
            pass
        finally:
            self.release()


# Of these, what matters is in the response, in the probes, and in our own events.
_TOLD_ELSEWHERE = (web.RequestPayloadError, ConnectionError)


def _is_told_elsewhere(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, _TOLD_ELSEWHERE) and not _is_ours(record)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("service.")


_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "error",
}
# What a record has by itself, before the fields of its event; and what formatters add to it.
RESERVED = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"}
_OWN = len(RESERVED) - 2


def _event_of(record: logging.LogRecord) -> Event:
    """The fields of the line: of a library's record its message and its logger's name."""
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
    """One line that is valid JSON, in which only what can be seen stands for itself.

    What a reader or a terminal could take for the end of a line or for a command is escaped: C1
    controls, U+2028, marks that turn the direction of text.
    """

    def format(self, record: logging.LogRecord) -> str:
        event = _event_of(record)
        try:
            line = orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z).decode()
        except TypeError:
            # Lone surrogates, and integers of more than 64 bits.
            return json.dumps(event, default=str)
        return line if line.isascii() else _escape(line, lambda char: json.dumps(char)[1:-1])


_COLORS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class ConsoleFormatter(logging.Formatter):
    """One line for people, in which only what can be seen stands for itself.

    A traceback follows it, indented, so that no text in it can pass for an event.
    """

    def __init__(self, *, colors: bool = False) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        values = _event_of(record)
        now, level = values.pop("timestamp"), values.pop("level")
        what = _escape(values.pop("event"), _escape_as_python)
        trace = values.pop("exception", "")
        shown = "".join(f" {name}={_show(value)}" for name, value in values.items())
        before, bold, after = (_COLORS[level], _BOLD, _PLAIN) if self._colors else ("", "", "")
        head = f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {before}{level:7}{after}"
        lines = [f"{head} {bold}{what}{after}{shown}"]
        lines += [f"    {_escape(line, _escape_as_python)}" for line in trace.splitlines()]
        return "\n".join(lines)


def _show(value: object) -> str:
    """As it is, or as Python would write it where it has spaces or what cannot be seen."""
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
    """The traceback, after those of its causes, as Python prints them.

    But without the words of PostgreSQL's errors, whose detail repeats the row that was refused:
    addresses, hashes and all.
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
        return f"{type(error).__qualname__}: SQLSTATE {error.sqlstate}{constraint}"
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
