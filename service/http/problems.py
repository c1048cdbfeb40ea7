"""Problems that handlers raise to reject a request (RFC 9457).

Each is declared once as a ``ProblemType``, which the code raises and the API description reads.
This module holds the shared ones; a problem of one feature is declared in that feature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class ProblemType(NamedTuple):
    """A kind of problem. ``code`` is stable and snake_case; ``detail`` is for people."""

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class FieldError:
    """An invalid member of the body or query; ``pointer`` is a JSON Pointer (RFC 6901 §6).

    ``code`` is one of ``field_errors.CODES``.
    """

    pointer: str
    detail: str
    code: str


class Problem(Exception):
    """A problem response; ``detail`` overrides the default of its ``kind``.

    ``members`` are added to the document (RFC 9457 §3.2), if their kind has some.
    ``close`` closes the connection, for requests whose remaining bytes cannot be read.
    """

    def __init__(
        self,
        kind: ProblemType,
        detail: str | None = None,
        *,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
        close: bool = False,
    ) -> None:
        self.status = kind.status
        self.code = kind.code
        self.detail = detail or kind.detail
        super().__init__(self.detail)
        self.errors = tuple(errors)
        self.headers = {**kind.headers, **(headers or {})}
        self.members = members or {}
        self.close = close


def invalid_fields(*errors: FieldError, more: bool = False) -> Problem:
    """Create a 422 for well-formed input with missing or invalid fields.

    ``more`` says that there are others beside those in ``errors``.
    """
    detail = f"{INVALID_FIELDS.detail} These are the first {len(errors)}." if more else None
    return Problem(INVALID_FIELDS, detail, errors=errors)


# Every 401 needs a challenge (RFC 9110 §15.5.2, RFC 6750 §3).
CHALLENGE = {"WWW-Authenticate": "Bearer"}
# The same request may succeed in a moment.
RETRY_SOON = {"Retry-After": "1"}

MALFORMED_REQUEST = ProblemType(400, "malformed_request", "This is not a valid HTTP/1.1 request.")
MALFORMED_QUERY = ProblemType(
    400, "malformed_query", "The query string is not percent-encoded UTF-8."
)
DUPLICATE_PARAMETER = ProblemType(
    400, "duplicate_parameter", "A query parameter is given more than once."
)
EMPTY_BODY = ProblemType(400, "empty_body", "Expected a JSON body.")
MALFORMED_BODY = ProblemType(400, "malformed_body", "The body could not be decoded.")
MALFORMED_JSON = ProblemType(400, "malformed_json", "The body is not valid JSON.")
INVALID_CURSOR = ProblemType(
    400, "invalid_cursor", "This cursor is invalid. Use next_cursor from an earlier page."
)
CURSOR_MISMATCH = ProblemType(
    400,
    "cursor_mismatch",
    "This cursor belongs to another list or other filters. Start again without it.",
)
INVALID_IDEMPOTENCY_KEY = ProblemType(
    400, "invalid_idempotency_key", "An Idempotency-Key must be 1 to 255 visible ASCII characters."
)
INVALID_ETAG = ProblemType(
    400, "invalid_etag", "If-Match and If-None-Match must be *, or a list of quoted ETags."
)
NOT_FOUND = ProblemType(404, "not_found", "This does not exist, or you do not have access to it.")
ACCOUNT_NOT_FOUND = NOT_FOUND._replace(detail="There is no such account.")
SESSION_NOT_FOUND = NOT_FOUND._replace(detail="There is no such session.")
PATH_NOT_FOUND = NOT_FOUND._replace(detail="There is nothing at this path.")
METHOD_NOT_ALLOWED = ProblemType(
    405,
    "method_not_allowed",
    "This path does not support this method. The Allow header lists those it does.",
)
ORIGIN_NOT_ALLOWED = ProblemType(
    403,
    "origin_not_allowed",
    "Pages of this origin may not call the API. The operator can list it in CORS_ORIGINS.",
)
BODY_TIMEOUT = ProblemType(408, "body_timeout", "The body took too long to arrive.")
EMAIL_TAKEN = ProblemType(409, "email_taken", "An account with this email already exists.")
IDEMPOTENCY_KEY_IN_USE = ProblemType(
    409,
    "idempotency_key_in_use",
    "Another request with this Idempotency-Key is still in progress.",
    RETRY_SOON,
)
PRECONDITION_FAILED = ProblemType(
    412, "precondition_failed", "This has changed since you read it. Read it again."
)
CONTENT_TOO_LARGE = ProblemType(
    413, "content_too_large", "The body is larger than this service accepts."
)
TARGET_TOO_LONG = ProblemType(
    414, "target_too_long", "The request target is too long. Send a shorter path and query."
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    415,
    "unsupported_media_type",
    "Expected Content-Type: application/json in UTF-8.",
)
UNSUPPORTED_CONTENT_ENCODING = ProblemType(
    415,
    "unsupported_content_encoding",
    "The body must be compressed with gzip or deflate, or not at all.",
    {"Accept-Encoding": "gzip, deflate"},
)
EXPECTATION_FAILED = ProblemType(
    417, "expectation_failed", "The only expectation that can be met is 100-continue."
)
INVALID_FIELDS = ProblemType(422, "invalid_fields", "Some fields are missing or invalid.")
INVALID_VALUE = ProblemType(
    422, "invalid_value", "A value is outside the range that can be stored."
)
SEARCH_TOO_BROAD = ProblemType(
    422,
    "search_too_broad",
    "This search matches too much. Add filters or use a longer search text.",
)
IDEMPOTENCY_KEY_REUSED = ProblemType(
    422,
    "idempotency_key_reused",
    "This Idempotency-Key was already used for a different request.",
)
IDEMPOTENT_RESPONSE_LOST = ProblemType(
    422,
    "idempotent_answer_lost",
    "This request already succeeded, but its response can no longer be read."
    " Check the result before you send it again.",
)
PRECONDITION_REQUIRED = ProblemType(
    428, "precondition_required", "Send If-Match with the ETag from a previous read."
)
HEADERS_TOO_LARGE = ProblemType(
    431, "headers_too_large", "The headers are too large. Send fewer or shorter ones."
)
INTERNAL_ERROR = ProblemType(500, "internal_error", "An unexpected error occurred. It was logged.")
METHOD_NOT_IMPLEMENTED = ProblemType(
    501,
    "method_not_implemented",
    "This service does not know this method. Use GET, HEAD, POST, PUT, PATCH or DELETE, in upper"
    " case.",
)
TRANSFER_CODING_NOT_IMPLEMENTED = ProblemType(
    501,
    "transfer_coding_not_implemented",
    "The only transfer coding that this service decodes is chunked. Compress the body with"
    " Content-Encoding: gzip instead.",
)
DATABASE_UNAVAILABLE = ProblemType(
    503, "database_unavailable", "The database is unavailable. Try again shortly.", RETRY_SOON
)
MISCONFIGURED = ProblemType(
    503, "misconfigured", "The service is not fully configured. Try again later.", RETRY_SOON
)
HTTP_VERSION_NOT_SUPPORTED = ProblemType(
    505, "http_version_not_supported", "Use HTTP/1.1 or HTTP/1.0."
)
OVERLOADED = ProblemType(
    503, "overloaded", "The service has too many connections. Try again shortly.", RETRY_SOON
)
TIMEOUT = ProblemType(503, "timeout", "The request took too long. Try again.", RETRY_SOON)
