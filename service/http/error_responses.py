"""Turns any error of a request into a problem response (RFC 9457)."""

import logging

import asyncpg
import orjson
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.context import LOG_CONTEXT, REQUEST_CONTEXT
from service.exceptions import DatabaseUnavailable
from service.http.headers import ResponseHeaders
from service.http.media_types import accept_patch
from service.http.problems import (
    CONTENT_TOO_LARGE,
    DATABASE_UNAVAILABLE,
    INTERNAL_ERROR,
    INVALID_VALUE,
    METHOD_NOT_ALLOWED,
    MISCONFIGURED,
    PATH_NOT_FOUND,
    TIMEOUT,
    Problem,
    ProblemType,
)
from service.http.request_heads import explain
from service.http.responses import JsonResponse, phrase
from service.settings import SettingsError

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"

# Problems for the framework's own errors; any other becomes "request_refused".
_FRAMEWORK = {kind.status: kind for kind in (PATH_NOT_FOUND, METHOD_NOT_ALLOWED, CONTENT_TOO_LARGE)}


def _from_framework(error: web.HTTPException) -> Problem:
    """Convert the framework's own error (404, 405, 413, …) to a problem, without its text."""
    fallback = ProblemType(error.status, "request_refused", phrase(error.status))
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    if isinstance(error, web.HTTPMethodNotAllowed):
        kept |= accept_patch(error.allowed_methods)
    kind = _FRAMEWORK.get(error.status, fallback)
    return Problem(kind, headers=kept, close=error.status == 413)


def _render(problem: Problem, request_id: str) -> bytes:
    """Render the problem as JSON. ``type`` is about:blank because ``code`` identifies it."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": phrase(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    body |= problem.members
    if problem.errors:
        body["errors"] = problem.errors
    return orjson.dumps(body)


class OutsideResponse(JsonResponse):
    """A problem that no middleware has seen, after which the connection is closed.

    If aiohttp's parser has rejected the request, its version is unknown. aiohttp would respond in
    HTTP/1.0 then.
    """

    def __init__(self, problem: Problem, common: ResponseHeaders, request_id: str) -> None:
        body = _render(problem, request_id)
        super().__init__(
            body, status=problem.status, content_type=PROBLEM_JSON, headers=problem.headers
        )
        self.common, self.request_id = common, request_id

    async def prepare(self, request: web.BaseRequest) -> None:
        if not self.prepared:
            if isinstance(request, web.Request):
                self.common.allow_origin(request, self)
            whole = self.serialize(request, self.common, self.request_id, keep_alive=False)
            await request.writer.write_eof(whole)


def outside_response(
    request: web.BaseRequest, error: BaseException | None, common: ResponseHeaders
) -> web.StreamResponse:
    """Render an error that reaches no middleware, mostly of a request that is not valid HTTP.

    Raises ConnectionError if a response has already started.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("the response has already started")
    context = REQUEST_CONTEXT.get(None)
    request_id = context.request_id if context else uuid_utils.uuid7().hex
    LOG_CONTEXT.set({**LOG_CONTEXT.get(), "request_id": request_id})
    if isinstance(error, HttpProcessingError):
        log.info(
            "malformed request",
            extra={"cause": type(error).__name__, "client": request.remote},
        )
        problem = explain(error)
    else:
        log.error("unexpected error", exc_info=error)
        problem = Problem(INTERNAL_ERROR)
    return OutsideResponse(problem, common, request_id)


def error_response(error: Exception) -> web.Response:
    """Render the error of a request as a problem, including the framework's own errors.

    An unknown error is logged and becomes a 500.
    """
    problem = _problem_of(error)
    context = REQUEST_CONTEXT.get()
    context.problem_code = problem.code
    response = JsonResponse(
        _render(problem, context.request_id),
        status=problem.status,
        content_type=PROBLEM_JSON,
        headers=problem.headers,
    )
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
