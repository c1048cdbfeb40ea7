"""Turns any error of a request into a problem response (RFC 9457)."""

import logging
import re
from http import HTTPStatus

import asyncpg
import orjson
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service.context import LOG_CONTEXT, REQUEST_CONTEXT
from service.exceptions import DatabaseUnavailable
from service.http.headers import ON_EVERY_RESPONSE, SERVER
from service.http.media_types import accept_patch
from service.http.problems import (
    CONTENT_TOO_LARGE,
    DATABASE_UNAVAILABLE,
    HTTP_VERSION_NOT_SUPPORTED,
    INTERNAL_ERROR,
    INVALID_VALUE,
    MALFORMED_REQUEST,
    METHOD_NOT_ALLOWED,
    MISCONFIGURED,
    PATH_NOT_FOUND,
    TIMEOUT,
    Problem,
    ProblemType,
)
from service.http.responses import JsonResponse
from service.settings import SettingsError

log = logging.getLogger(__name__)

# Problems for the framework's own errors; any other becomes "request_refused".
_FRAMEWORK = {kind.status: kind for kind in (PATH_NOT_FOUND, METHOD_NOT_ALLOWED, CONTENT_TOO_LARGE)}
# How aiohttp's parser describes versions that it does not parse at all.
_OTHER_VERSION = re.compile("Invalid HTTP version|Pause on PRI")
# Names from RFC 9110 that Python has only since 3.13.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def _from_framework(error: web.HTTPException) -> Problem:
    """Convert the framework's own error (404, 405, 413, …) to a problem, without its text."""
    fallback = ProblemType(error.status, "request_refused", phrase(error.status))
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    if isinstance(error, web.HTTPMethodNotAllowed):
        kept |= accept_patch(error.allowed_methods)
    kind = _FRAMEWORK.get(error.status, fallback)
    return Problem(kind, headers=kept, close=error.status == 413)


def phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def render(problem: Problem, request_id: str) -> web.Response:
    """Render the problem as JSON. ``type`` is about:blank because ``code`` identifies it."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": phrase(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = problem.errors
    return JsonResponse(
        orjson.dumps(body),
        status=problem.status,
        content_type="application/problem+json",
        headers=problem.headers,
    )


def malformed_response(
    protocol: web.RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    """Render errors that reach no middleware, mostly requests that are not valid HTTP.

    Replaces ``RequestHandler.handle_error``, whose text response repeats the request.
    Raises ConnectionError if a response has already started.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("the response has already started")
    context = REQUEST_CONTEXT.get(None)
    request_id = context.request_id if context else uuid_utils.uuid7().hex
    LOG_CONTEXT.set({**LOG_CONTEXT.get(), "request_id": request_id})
    if status >= 500:
        log.error("unexpected error", exc_info=exc)
        problem = Problem(INTERNAL_ERROR)
    else:
        log.info(
            "malformed request",
            extra={"cause": type(exc).__name__, "client": request.remote},
        )
        detail = None
        if isinstance(exc, LineTooLong):
            detail = f"The request target or a header is longer than {exc.args[1]} bytes."
        problem = Problem(MALFORMED_REQUEST._replace(status=status), detail)
        if message and _OTHER_VERSION.search(message):
            problem = Problem(HTTP_VERSION_NOT_SUPPORTED)
    response = render(problem, request_id)
    response.headers["X-Request-ID"] = request_id
    response.headers["Server"] = SERVER
    response.headers.update(ON_EVERY_RESPONSE)
    response.force_close()
    return response


def error_response(error: Exception) -> web.Response:
    """Render the error of a request as a problem, including the framework's own errors.

    An unknown error is logged and becomes a 500.
    """
    problem = _problem_of(error)
    context = REQUEST_CONTEXT.get()
    context.problem_code = problem.code
    response = render(problem, context.request_id)
    if problem.close:
        response.force_close()
    return response


def _is_wrong_type(error: asyncpg.DataError) -> bool:
    """Return whether a query passed an argument of a type that asyncpg cannot send."""
    return isinstance(error.__cause__, TypeError | AttributeError)


def _problem_of(error: Exception) -> Problem:
    match error:
        case Problem(status=status, code=code):
            if status == 503:
                cause = type(error.__cause__).__name__
                log.warning("unavailable", extra={"code": code, "cause": cause})
            return error
        case web.HTTPException():
            return _from_framework(error)
        case DatabaseUnavailable():
            cause = type(error.__cause__).__name__
            log.warning("unavailable", extra={"code": "database_unavailable", "cause": cause})
            return Problem(DATABASE_UNAVAILABLE)
        case TimeoutError():
            log.warning("unavailable", extra={"code": "timeout", "cause": "TimeoutError"})
            return Problem(TIMEOUT)
        case asyncpg.DataError() if not _is_wrong_type(error):
            # Schemas should have rejected the value, but it is still the client's mistake.
            log.warning("value refused by the database", extra={"sqlstate": error.sqlstate})
            return Problem(INVALID_VALUE)
        case SettingsError():
            log.warning("cannot serve", extra={"reason": str(error)})
            return Problem(MISCONFIGURED)
        case _:
            log.error("unexpected error", exc_info=error)
            return Problem(INTERNAL_ERROR)
