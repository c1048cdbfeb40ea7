"""Logs: one event a line on stderr, JSON or readable, each with the id of its request.

docs/logs.md lists the events and their fields; a test compares it with the code.
"""

import asyncio
import atexit
import json
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias

import asyncpg
import orjson
from aiohttp import web

from service.settings import Settings

Event: TypeAlias = dict[str, Any]

# Of texts that others wrote: libraries' messages, and tracebacks.
MESSAGE_MAX_CHARS = 2_000
TRACEBACK_MAX_CHARS = 20_000

# In each line of a request: its id, and those of its trace.
LOG_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


class Logger:
    """Writes events: ``log.info("mail sent", attempt=2)``. A level that is off costs 0.2 µs.

    An event is a constant; what varies is in the values, with units in their names. ``exc_info``
    is an exception, which is shown with its traceback.

    Not structlog: stripped to one processor it takes 2 µs more for each request's line, and its
    import takes 40 ms at every start, as it imports rich.
    """

    def __init__(self, **bound: object) -> None:
        self._bound = bound

    def bind(self, **values: object) -> "Logger":
        """A logger that adds these values to each event."""
        return Logger(**{**self._bound, **values})

    def debug(self, event: str, **values: object) -> None:
        if _sink.level <= logging.DEBUG:
            _write("debug", event, self._bound, values)

    def info(self, event: str, **values: object) -> None:
        if _sink.level <= logging.INFO:
            _write("info", event, self._bound, values)

    def warning(self, event: str, **values: object) -> None:
        if _sink.level <= logging.WARNING:
            _write("warning", event, self._bound, values)

    def error(self, event: str, **values: object) -> None:
        _write("error", event, self._bound, values)

    def exception(self, event: str, **values: object) -> None:
        """An error, with the exception that is being handled."""
        self.error(event, exc_info=sys.exception(), **values)


log = Logger()


def configure_logging(settings: Settings) -> None:
    """Send to stderr, in one format, all there is to say.

    That is our events, those of the standard library's loggers, Python's warnings, and what nobody
    catches.
    """
    is_terminal = sys.stderr.isatty()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not is_terminal)
    level: int = getattr(logging, settings.log_level.upper())
    write_events(_write_to_stderr, as_json=as_json, level=level, colors=is_terminal)
    atexit.register(_write_to_stderr.flush)
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_ToEvents()], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda thrown: log.error(
        "uncaught exception", thread=getattr(thrown.thread, "name", None), exc_info=thrown.exc_value
    )


def write_events(
    write: Callable[[bytes], object], *, as_json: bool, level: int, colors: bool = False
) -> None:
    """Render each event of ``level`` or graver, and hand it to ``write`` as one piece."""
    _sink.write = write
    _sink.render = to_json if as_json else lambda event: to_console(event, colors)
    _sink.level = level


_MAY_WAIT = frozenset({"debug", "info"})


class _Stderr:
    """Writes lines to stderr, those of one turn of the event loop together.

    Each write is a system call that wakes up whoever reads a pipe; under load ten requests are
    answered in a turn. Lines are written whole and in pieces that pipes take at once, so that those
    of several processes do not mix. A disk that is full or a reader that is gone fails no request.
    Warnings and errors do not wait: they may be the last that is heard of the process.
    """

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = 0

    def __call__(self, line: bytes) -> None:
        loop = asyncio._get_running_loop()
        if loop is None:
            _write_all(line)
            return
        if self._bytes + len(line) > select.PIPE_BUF:
            self.flush()
        if not self._lines:
            loop.call_soon(self.flush)
        self._lines.append(line)
        self._bytes += len(line)

    def flush(self) -> None:
        lines, self._lines, self._bytes = self._lines, [], 0
        _write_all(b"".join(lines))


def _write_all(piece: bytes) -> None:
    try:
        while piece:
            piece = piece[os.write(2, piece) :]
    except OSError:
        pass


@dataclass(slots=True)
class _Sink:
    write: Callable[[bytes], object]
    render: Callable[[Event], bytes]
    level: int


def _write(level: str, event: str, bound: Event, values: Event) -> None:
    if "exc_info" in values:
        error = values.pop("exc_info")
        if error is not None:
            values["exception"] = format_exception(error)
    now = datetime.now(UTC)
    head = {"timestamp": now, "level": level, "event": event}
    _sink.write(_sink.render({**head, **LOG_CONTEXT.get(), **bound, **values}))
    if level not in _MAY_WAIT and asyncio._get_running_loop() is not None:
        _write_to_stderr.flush()


_ORJSON_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


def to_json(event: Event) -> bytes:
    """One line that is valid JSON, in which only what can be seen stands for itself.

    What a reader or a terminal could take for the end of a line or for a command is escaped: C1
    controls, U+2028, marks that turn the direction of text.
    """
    try:
        line = orjson.dumps(event, default=str, option=_ORJSON_OPTIONS)
    except TypeError:
        # Lone surrogates, and integers of more than 64 bits.
        return json.dumps(event, default=str).encode() + b"\n"
    if line.isascii():
        return line
    escaped = _escape(line[:-1].decode(), lambda char: json.dumps(char)[1:-1])
    return escaped.encode() + b"\n"


_COLORS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def to_console(event: Event, colors: bool) -> bytes:
    """One line for people, in which only what can be seen stands for itself.

    A traceback follows it, indented, so that no text in it can pass for an event.
    """
    values = dict(event)
    now, level = values.pop("timestamp"), values.pop("level")
    what = _escape(values.pop("event"), _escape_as_python)
    trace = values.pop("exception", "")
    shown = "".join(f" {name}={_show(value)}" for name, value in values.items())
    before, bold, after = (_COLORS[level], _BOLD, _PLAIN) if colors else ("", "", "")
    head = f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {before}{level:7}{after}"
    lines = [f"{head} {bold}{what}{after}{shown}"]
    lines += [f"    {_escape(line, _escape_as_python)}" for line in trace.splitlines()]
    return "\n".join([*lines, ""]).encode()


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


class _ToEvents(logging.Handler):
    """Turns the standard library's records into events: the message, and the logger's name."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.name == "asyncpg.pool" or isinstance(error, _TOLD_ELSEWHERE):
            return
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write(message[:MESSAGE_MAX_CHARS], logger=record.name, exc_info=error)


# Of these, what matters is in the answer, in the probes, and in our own events.
_TOLD_ELSEWHERE = (web.RequestPayloadError, ConnectionError)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, Exception):
        log.error("uncaught exception", exc_info=error)
    else:
        sys.__excepthook__(kind, error, trace)


_write_to_stderr = _Stderr()
# Until configure_logging is called, as in commands that log nothing as a rule.
_sink = _Sink(_write_to_stderr, lambda event: to_console(event, False), logging.WARNING)
