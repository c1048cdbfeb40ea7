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
from service.http.problems import Problem, log, unavailable
from service.http.responses import JsonResponse
from service.settings import SettingsError

# The framework's own answers in our words; any other of its kind is a "request_refused".
_FRAMEWORK = {
    404: ("not_found", "There is nothing at this path."),
    405: (
        "method_not_allowed",
        "This path does not take this method; the Allow header lists those it takes.",
    ),
    413: ("content_too_large", "The body is larger than this service takes."),
}
# RFC 9110's names, which Python 3.13 has and older ones have not.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def _from_framework(error: web.HTTPException) -> Problem:
    """The framework's own answer (404, 405, 413, …) as a problem, without its text."""
    code, detail = _FRAMEWORK.get(error.status, ("request_refused", phrase(error.status)))
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    return Problem(error.status, code, detail, headers=kept, close=error.status == 413)


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
        problem = _internal_error()
    else:
        log.info(
            "malformed request",
            extra={"cause": type(exc).__name__, "client": request.remote},
        )
        detail = "This is not HTTP/1.1."
        if isinstance(exc, LineTooLong):
            detail = f"The path with its query, or a header, is longer than {exc.args[1]} bytes."
        problem = Problem(status, "malformed_request", detail)
    response = render(problem, request_id)
    response.headers["X-Request-ID"] = request_id
    response.headers["Server"] = SERVER
    response.headers.update(ON_EVERY_RESPONSE)
    response.force_close()
    return response


def _internal_error() -> Problem:
    return Problem(500, "internal_error", "Something went wrong here; it has been logged.")


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
            return unavailable("database_unavailable", "The database cannot answer now; try again.")
        case TimeoutError():
            log.warning("unavailable", extra={"code": "timeout", "cause": "TimeoutError"})
            return unavailable("timeout", "This took too long; try again.")
        case asyncpg.DataError():
            # Schemas refuse what PostgreSQL would; what slips past is still the client's value.
            log.warning("value refused by the database", extra={"sqlstate": error.sqlstate})
            return Problem(422, "invalid_value", "A value is outside of what can be stored.")
        case SettingsError():
            log.warning("cannot serve", extra={"reason": str(error)})
            return unavailable("misconfigured", "The service is not set up yet; try again.")
        case _:
            log.error("unexpected error", exc_info=error)
            return _internal_error()
