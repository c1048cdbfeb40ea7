"""Turns whatever a request failed with into a problem (RFC 9457)."""

from http import HTTPStatus

import asyncpg
import orjson
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service.context import LOG_CONTEXT, REQUEST_CONTEXT
from service.exceptions import DatabaseUnavailable
from service.http.headers import ON_EVERY_RESPONSE, SERVER
from service.http.problems import (
    CONTENT_TOO_LARGE,
    DATABASE_UNAVAILABLE,
    INTERNAL_ERROR,
    INVALID_VALUE,
    MALFORMED_REQUEST,
    METHOD_NOT_ALLOWED,
    MISCONFIGURED,
    PATH_NOT_FOUND,
    TIMEOUT,
    Problem,
    ProblemType,
    log,
)
from service.http.responses import JsonResponse
from service.settings import SettingsError

# The framework's own errors in our words; any other of its kind is a "request_refused".
_FRAMEWORK = {kind.status: kind for kind in (PATH_NOT_FOUND, METHOD_NOT_ALLOWED, CONTENT_TOO_LARGE)}
# RFC 9110's names, which Python 3.13 has and older ones have not.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def _from_framework(error: web.HTTPException) -> Problem:
    """The framework's own error (404, 405, 413, …) as a problem, without its text."""
    unnamed = ProblemType(error.status, "request_refused", phrase(error.status))
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    kind = _FRAMEWORK.get(error.status, unnamed)
    return Problem(kind, headers=kept, close=error.status == 413)


def phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def render(problem: Problem, request_id: str) -> web.Response:
    """The problem as JSON. ``type`` is about:blank, as it is ``code`` that tells them apart."""
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
    """Render what aiohttp answers without reaching a middleware: to what is not HTTP, mostly.

    In place of ``RequestHandler.handle_error``, which answers text that repeats the request.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("an answer has begun")
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
            detail = f"The path with its query, or a header, is longer than {exc.args[1]} bytes."
        problem = Problem(MALFORMED_REQUEST._replace(status=status), detail)
    response = render(problem, request_id)
    response.headers["X-Request-ID"] = request_id
    response.headers["Server"] = SERVER
    response.headers.update(ON_EVERY_RESPONSE)
    response.force_close()
    return response


def error_response(error: Exception) -> web.Response:
    """Render what a request failed with, the framework's own errors included.

    An unknown one is logged, and a 500.
    """
    problem = _problem_of(error)
    context = REQUEST_CONTEXT.get()
    context.problem_code = problem.code
    response = render(problem, context.request_id)
    if problem.close:
        response.force_close()
    return response


def _problem_of(error: Exception) -> Problem:
    match error:
        case Problem(status=status, code=code):
            if status >= 500:
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
        case asyncpg.DataError():
            # Schemas refuse what PostgreSQL would; what slips past is still the client's value.
            log.warning("value refused by the database", extra={"sqlstate": error.sqlstate})
            return Problem(INVALID_VALUE)
        case SettingsError():
            log.warning("cannot serve", extra={"reason": str(error)})
            return Problem(MISCONFIGURED)
        case _:
            log.error("unexpected error", exc_info=error)
            return Problem(INTERNAL_ERROR)
