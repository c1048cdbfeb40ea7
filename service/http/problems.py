"""Problems: what a handler raises to refuse a request (RFC 9457)."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1


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
