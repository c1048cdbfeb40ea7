"""Logs: one event a line on stderr, JSON or readable, each with the id of its request."""

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import TextIO, cast

import orjson
import structlog
import uuid_utils.compat as uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from service.keys import HEALTH, REQUEST_ID, USER
from service.settings import Settings

log = structlog.get_logger(__name__)

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class _Stderr:
    """stderr, where a disk that is full or a reader that is gone fails no request."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _keep(record: logging.LogRecord) -> bool:
    """Drop the tracebacks of malformed requests and of the pool's reconnections.

    What matters of them is in the answer, in the probes, and in our own events.
    """
    error = record.exc_info[1] if record.exc_info else None
    expected = (HttpProcessingError, web.RequestPayloadError, ConnectionError)
    return record.name != "asyncpg.pool" and not (
        record.name == "aiohttp.server" and isinstance(error, expected)
    )


def configure_logging(settings: Settings) -> None:
    """Send structlog's events and the standard library's to stderr in one format."""
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # Others write the locals of every frame, passwords among them.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    level = getattr(logging, settings.log_level.upper())
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Stderr())
    handler.addFilter(_keep)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _to_json(event: object, default: Callable[[object], object], **_: object) -> str:
    return orjson.dumps(event, default=default).decode()


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, answer it back, and log the request once it is answered.

    The id is the client's ``X-Request-ID`` where that is sane, so that a call can be followed
    through several services, and a new one otherwise.
    """
    started = time.perf_counter()
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid_utils.uuid7().hex
    request[REQUEST_ID] = request_id
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        response = await handler(request)
        response.headers["X-Request-ID"] = request_id
        # Otherwise aiohttp names itself, Python and their versions.
        response.headers["Server"] = "shinkei"
        if request.app[HEALTH].draining:
            # Keep-alive clients move to another replica now rather than meet a closed socket.
            response.force_close()
        user = request.get(USER)
        resource = request.match_info.route.resource
        log.info(
            "request",
            method=request.method,
            route=resource.canonical if resource else None,
            status=response.status,
            duration_ms=round((time.perf_counter() - started) * 1000, 2),
            user_id=str(user["id"]) if user else None,
        )
    return response
