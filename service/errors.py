"""Problems: what a client is told when a request fails (RFC 9457)."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import asyncpg
import orjson
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service.answers import JsonAnswer
from service.headers import ON_EVERY_ANSWER, SERVER
from service.keys import EXCHANGE, LOG_CONTEXT
from service.settings import SettingsError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class StartError(Exception):
    """The service cannot start or a command cannot run; the message is the operator's one line."""


class ArgumentError(Exception):
    """An argument of a command cannot be taken; the message is the operator's one line."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one member of the body; ``pointer`` is a JSON Pointer (RFC 6901 §6)."""

    pointer: str
    detail: str


class Problem(Exception):
    """An answer to the client. ``code`` is stable and snake_case; ``detail`` is for people.

    ``close`` ends the connection, where the rest of the request cannot be read.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = headers or {}
        self.close = close


def invalid_fields(*errors: FieldError) -> Problem:
    """422: the body is JSON, but not what this route takes."""
    return Problem(422, "invalid_fields", "Some fields are missing or wrong.", errors=errors)


def not_signed_in(detail: str = "Sign in and send the access token.", error: str = "") -> Problem:
    """401 with the challenge of RFC 6750 §3."""
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    code = error or "not_signed_in"
    return Problem(401, code, detail, headers={"WWW-Authenticate": challenge})


def refused(code: str, detail: str) -> Problem:
    """401 for what came in the body, with the challenge that each 401 has (RFC 9110 §15.5.2)."""
    return Problem(401, code, detail, headers={"WWW-Authenticate": "Bearer"})


def unavailable(code: str, detail: str) -> Problem:
    """503: the same request may succeed in a moment."""
    return Problem(503, code, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


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
    return JsonAnswer(
        orjson.dumps(body),
        status=problem.status,
        content_type="application/problem+json",
        headers=problem.headers,
    )


def answer_malformed(
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
    exchange = EXCHANGE.get(None)
    request_id = exchange.request_id if exchange else uuid_utils.uuid7().hex
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
    response.headers.update(ON_EVERY_ANSWER)
    response.force_close()
    return response


def _internal_error() -> Problem:
    return Problem(500, "internal_error", "Something went wrong here; it has been logged.")


def answer_error(error: Exception) -> web.Response:
    """Render what a request failed with, the framework's own errors included.

    An unknown one is logged, and a 500.
    """
    problem = _problem_of(error)
    exchange = EXCHANGE.get()
    exchange.problem_code = problem.code
    response = render(problem, exchange.request_id)
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
