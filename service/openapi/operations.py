"""What each route takes and answers, for its description in ``/openapi.json``.

Only what a route says by itself. What follows from its access, its body, its pages and so on is
added by ``service.openapi``; a test compares the keys with the route table, and every answer of the
test suite is checked against what becomes of this.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from marshmallow import Schema

from service.accounts.rules import LAST_ADMINISTRATOR
from service.admin import schemas as admin
from service.admin.changes import ACCOUNT_DELETING
from service.admin.handlers import ACCOUNT_SUSPENDED
from service.admin.lists import SEARCH_TOO_BROAD
from service.audit import schemas as audit
from service.auth.passwords import TOO_MANY_SIGN_INS, WRONG_PASSWORD
from service.http.pages import PAGE
from service.http.problems import EMAIL_TAKEN, MISCONFIGURED, ProblemType
from service.recovery import schemas as recovery
from service.recovery.handlers import INVALID_LINK
from service.sessions import schemas as sessions
from service.sessions.handlers import INVALID_REFRESH_TOKEN
from service.sessions.sign_in import INVALID_CREDENTIALS
from service.users import schemas as users


class Answer(NamedTuple):
    """A success: what it stands for, its body, and the headers that this route adds."""

    description: str
    schema: Mapping[str, Any] | None = None
    headers: tuple[str, ...] = ()
    example: object = None
    content_type: str = "application/json"


class Operation(NamedTuple):
    """What a route takes, and answers beyond what follows from that.

    ``database``: whether it can be unavailable with the database.
    """

    answers: Mapping[int, Answer]
    body: Schema | None = None
    example: Mapping[str, Any] | None = None
    query: Schema | None = None
    problems: tuple[ProblemType, ...] = ()
    idempotent: bool = False
    if_match: Literal["", "honoured", "required"] = ""
    throttled: bool = False
    database: bool = True


_USER_ID = "01a1fba4-8e29-73c2-8fdb-0edde7bcd9f3"
_SESSION_ID = "01a1fba4-8e2b-7d51-9a14-6c8b3a0f5e72"
_PASSWORD = "the analytical engine"  # noqa: S105
_TOKEN = "Hk3vX0m2yQ8rT5wL9bN1cJ7pF4sD6gA0zE3uI8oK2hM"  # noqa: S105
_REFRESH_TOKEN = "q7RkV2xW9yB4nM1cP8tL5zH3jF6dS0aG_uE-iO2wKXo"  # noqa: S105
_CREATED = "2026-01-31T12:00:00.000000Z"
_SEEN = "2026-02-01T08:30:15.250000Z"
_EXPIRES = "2026-02-08T08:30:15.250000Z"

_PROFILE = {
    "id": _USER_ID,
    "email": "ada@example.com",
    "email_verified": True,
    "name": "Ada Lovelace",
    "role": "user",
    "settings": {"language": "en", "ui_theme": "dark"},
    "created_at": _CREATED,
    "updated_at": _SEEN,
}
_TOKENS = {
    "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiLigKYifQ.c2ln",
    "token_type": "bearer",
    "expires_in": 900,
    "refresh_token": _REFRESH_TOKEN,
}
_ACCOUNT = {
    "id": _USER_ID,
    "email": "ada@example.com",
    "email_verified": True,
    "name": "Ada Lovelace",
    "role": "user",
    "status": "active",
    "suspended_until": None,
    "suspension_reason": None,
    "purge_at": None,
    "settings": {"language": "en", "ui_theme": "dark"},
    "version": 2,
    "created_at": _CREATED,
    "updated_at": _SEEN,
}
_SESSION = {
    "id": _SESSION_ID,
    "created_at": _CREATED,
    "last_seen_at": _SEEN,
    "expires_at": _EXPIRES,
    "user_agent": "curl/8.5.0",
    "address": "192.0.2.7",
}
_OWN_EVENT = {
    "id": "01a1fba4-8e2d-7b9c-8b52-3a7d1f6e9c04",
    "occurred_at": _CREATED,
    "action": "user.register",
    "by_yourself": True,
    "address": "192.0.2.7",
    "user_agent": "curl/8.5.0",
    "before": None,
    "after": None,
}
_EVENT = {
    "id": "01a1fba4-8e2d-7b9c-8b52-3a7d1f6e9c04",
    "occurred_at": _CREATED,
    "action": "user.update",
    "actor_id": "01a1fba4-8e2f-7c11-a8e3-94d2b60f7a15",
    "actor_role": "admin",
    "subject_id": _USER_ID,
    "address": "192.0.2.7",
    "user_agent": "curl/8.5.0",
    "request_id": "01a1fba48e2973c28fdb0edde7bcd9f3",
    "before": {"role": "user"},
    "after": {"role": "support"},
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> dict[str, Any]:
    """An object with all of these members and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _page(name: str, *, counted: bool = False) -> dict[str, Any]:
    page = _object(
        items={"type": "array", "items": _ref(name), "maxItems": 200},
        next_cursor={
            "type": ["string", "null"],
            "description": "To be sent as `cursor`, with the same filters.",
        },
        has_more={"type": "boolean"},
    )
    if counted:
        page["properties"]["count"] = {
            "type": "integer",
            "minimum": 0,
            "description": "There where `count` asked for it.",
        }
    return page


def _page_of(example: object, **members: object) -> dict[str, object]:
    return {"items": [example], "next_cursor": None, "has_more": False, **members}


_STATUS = {"enum": ["pass", "warn", "fail"]}
_TEXT = {"type": "string"}
_CHECK = {
    "type": "object",
    "properties": {
        "componentType": _TEXT,
        "status": _STATUS,
        "observedValue": {"type": "number"},
        "observedUnit": _TEXT,
        "output": _TEXT,
    },
    "required": ["componentType", "status"],
    "additionalProperties": False,
}

# What marshmallow does not shape: answers put together by hand. By the names of components.
SCHEMAS: dict[str, dict[str, Any]] = {
    "Tokens": _object(
        access_token={**_TEXT, "description": "A JWT, to be sent as a bearer token."},
        token_type={"const": "bearer"},
        expires_in={
            "type": "integer",
            "minimum": 1,
            "description": "Seconds for which the access token is good.",
        },
        refresh_token={**_TEXT, "description": "Good once, for a new pair."},
    ),
    "Registered": _object(
        access_token=_TEXT,
        token_type={"const": "bearer"},
        expires_in={"type": "integer", "minimum": 1},
        refresh_token=_TEXT,
        user=_ref("OwnProfile"),
    ),
    "OwnSessionList": _object(items={"type": "array", "items": _ref("OwnSession")}),
    "Export": _object(
        account=_ref("OwnProfile"),
        sessions={"type": "array", "items": _ref("Session")},
        known_networks={"type": "array", "items": _ref("KnownNetwork")},
        audit_events={"type": "array", "items": _ref("OwnAuditEvent")},
    ),
    "AdminUserPage": _page("AdminUser", counted=True),
    "AdminSessionPage": _page("AdminSession"),
    "AuditEventPage": _page("AuditEvent"),
    "Jwks": _object(
        keys={
            "type": "array",
            "items": _object(
                kty={"const": "EC"},
                crv={"const": "P-256"},
                x=_TEXT,
                y=_TEXT,
                kid=_TEXT,
                use={"const": "sig"},
                alg={"const": "ES256"},
            ),
        }
    ),
    "Health": {
        "type": "object",
        "properties": {
            "status": _STATUS,
            "version": _TEXT,
            "output": _TEXT,
            "checks": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": _CHECK},
            },
        },
        "required": ["status", "version"],
        "additionalProperties": False,
    },
}

# Dumped by these; every member is always there.
ANSWERED: tuple[Schema, ...] = (
    users.OWN_PROFILE,
    users.DELETION,
    users.KNOWN_NETWORK,
    users.OWN_AUDIT_EVENT,
    sessions.SESSION,
    sessions.OWN_SESSION,
    admin.ADMIN_USER,
    admin.ADMIN_SESSION,
    audit.AUDIT_EVENT,
)


_HEALTH = "application/health+json"
_ALIVE = {"status": "pass", "version": "0.1.0"}
_READY = {
    **_ALIVE,
    "checks": {
        "database:responseTime": [
            {
                "componentType": "datastore",
                "status": "pass",
                "observedValue": 0.84,
                "observedUnit": "ms",
            }
        ],
        "database:migrations": [{"componentType": "datastore", "status": "pass"}],
        "pool:utilization": [
            {
                "componentType": "component",
                "status": "pass",
                "observedValue": 1,
                "observedUnit": "of 10 connections",
            }
        ],
    },
}
_NOT_READY = {
    **_ALIVE,
    "status": "fail",
    "checks": {
        "database:responseTime": [
            {
                "componentType": "datastore",
                "status": "fail",
                "observedValue": 500.4,
                "observedUnit": "ms",
                "output": "no answer within 500 ms",
            }
        ],
        "database:migrations": [{"componentType": "datastore", "status": "fail"}],
        "pool:utilization": [
            {
                "componentType": "component",
                "status": "pass",
                "observedValue": 0,
                "observedUnit": "of 10 connections",
            }
        ],
    },
}


def _probe(answer: str) -> Operation:
    return Operation(
        {
            200: Answer(answer, _ref("Health"), example=_READY, content_type=_HEALTH),
            503: Answer(
                "Not now.", _ref("Health"), ("Retry-After",), _NOT_READY, content_type=_HEALTH
            ),
        },
        database=False,
    )


def _file(answer: str, content_type: str, shape: str = "string") -> Operation:
    return Operation(
        {
            200: Answer(answer, {"type": shape}, ("ETag",), content_type=content_type),
            304: Answer("What If-None-Match names is still the current one.", None, ("ETag",)),
        },
        database=False,
    )


def _profile(description: str) -> dict[int, Answer]:
    return {200: Answer(description, _ref("OwnProfile"), ("ETag",), _PROFILE)}


def _account(description: str, **changes: object) -> dict[int, Answer]:
    example = {**_ACCOUNT, **changes}
    return {200: Answer(description, _ref("AdminUser"), ("ETag",), example)}


_MAILED = {202: Answer("Taken; whether a mail goes out is not told.")}

OPERATIONS: dict[str, Operation] = {
    "GET /health": _probe("Requests can be served."),
    "GET /health/live": Operation(
        {200: Answer("Alive.", _ref("Health"), example=_ALIVE, content_type=_HEALTH)},
        database=False,
    ),
    "GET /health/ready": _probe("Requests can be served."),
    "GET /health/startup": _probe("It has been ready once."),
    "GET /.well-known/jwks.json": Operation(
        {
            200: Answer(
                "A JWK set.",
                _ref("Jwks"),
                example={
                    "keys": [
                        {
                            "kty": "EC",
                            "crv": "P-256",
                            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
                            "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
                            "use": "sig",
                            "alg": "ES256",
                        }
                    ]
                },
            )
        },
        problems=(MISCONFIGURED,),
    ),
    "GET /docs": _file("A page.", "text/html"),
    "GET /docs/page.js": _file("A script.", "text/javascript"),
    "GET /docs/page.css": _file("A stylesheet.", "text/css"),
    "GET /docs/swagger-ui.js": _file("A script.", "text/javascript"),
    "GET /docs/swagger-ui.css": _file("A stylesheet.", "text/css"),
    "GET /openapi.json": _file("OpenAPI 3.1.", "application/json", "object"),
    "POST /api/v1/auth/register": Operation(
        {
            201: Answer(
                "Created and signed in.",
                _ref("Registered"),
                example={
                    **_TOKENS,
                    "user": {**_PROFILE, "email_verified": False, "updated_at": _CREATED},
                },
            ),
            202: Answer(
                "Taken: where addresses are verified first, the answer to all; the mail that went"
                " out tells the rest."
            ),
        },
        body=users.REGISTER,
        example={"email": "ada@example.com", "password": _PASSWORD, "name": "Ada Lovelace"},
        problems=(
            EMAIL_TAKEN,
            TOO_MANY_SIGN_INS,
            MISCONFIGURED,
        ),
        idempotent=True,
        throttled=True,
    ),
    "POST /api/v1/auth/login": Operation(
        {200: Answer("Signed in.", _ref("Tokens"), example=_TOKENS)},
        body=sessions.LOGIN,
        example={"email": "ada@example.com", "password": _PASSWORD},
        problems=(
            INVALID_CREDENTIALS,
            TOO_MANY_SIGN_INS,
            MISCONFIGURED,
        ),
        throttled=True,
    ),
    "POST /api/v1/auth/refresh": Operation(
        {200: Answer("A new pair.", _ref("Tokens"), example=_TOKENS)},
        body=sessions.REFRESH,
        example={"refresh_token": _REFRESH_TOKEN},
        problems=(
            INVALID_REFRESH_TOKEN,
            MISCONFIGURED,
        ),
    ),
    "POST /api/v1/auth/logout": Operation({204: Answer("The session has ended.")}),
    "POST /api/v1/auth/password/forgot": Operation(
        _MAILED,
        body=recovery.ADDRESS,
        example={"email": "ada@example.com"},
        idempotent=True,
        throttled=True,
    ),
    "POST /api/v1/auth/password/reset": Operation(
        {204: Answer("The password is set; every session has ended.")},
        body=recovery.RESET,
        example={"token": _TOKEN, "password": _PASSWORD},
        problems=(
            INVALID_LINK,
            TOO_MANY_SIGN_INS,
        ),
        idempotent=True,
    ),
    "POST /api/v1/auth/email/verify": Operation(
        {204: Answer("Done.")},
        body=recovery.VERIFY,
        example={"token": _TOKEN},
        problems=(
            INVALID_LINK,
            EMAIL_TAKEN,
        ),
        idempotent=True,
    ),
    "POST /api/v1/auth/email/verify/resend": Operation(
        _MAILED,
        body=recovery.ADDRESS,
        example={"email": "ada@example.com"},
        idempotent=True,
        throttled=True,
    ),
    "GET /api/v1/users/me": Operation(_profile("The account.")),
    "PUT /api/v1/users/me": Operation(
        _profile("The account as it is now."),
        body=users.REPLACE_PROFILE,
        example={"name": "Ada Lovelace", "settings": {"language": "en"}},
        if_match="honoured",
    ),
    "PATCH /api/v1/users/me": Operation(
        _profile("The account as it is now."),
        body=users.MERGE_PROFILE,
        example={"settings": {"ui_theme": "dark", "llm_model": None}},
        if_match="honoured",
    ),
    "DELETE /api/v1/users/me": Operation(
        {
            202: Answer(
                "To be deleted; every session has ended.",
                _ref("Deletion"),
                example={"purge_at": "2026-03-02T12:00:00.000000Z"},
            )
        },
        body=users.DELETE_ACCOUNT,
        example={"password": _PASSWORD},
        problems=(
            WRONG_PASSWORD,
            LAST_ADMINISTRATOR,
            TOO_MANY_SIGN_INS,
        ),
        throttled=True,
    ),
    "GET /api/v1/users/me/export": Operation(
        {
            200: Answer(
                "Everything.",
                _ref("Export"),
                ("Content-Disposition",),
                {
                    "account": _PROFILE,
                    "sessions": [_SESSION],
                    "known_networks": [{"network": "192.0.2.7/32", "last_seen_at": _SEEN}],
                    "audit_events": [_OWN_EVENT],
                },
            )
        }
    ),
    "POST /api/v1/users/me/password": Operation(
        {204: Answer("The password is set; every other session has ended.")},
        body=users.CHANGE_PASSWORD,
        example={"current_password": _PASSWORD, "password": "weaves algebraic patterns"},
        problems=(
            WRONG_PASSWORD,
            TOO_MANY_SIGN_INS,
        ),
        idempotent=True,
        throttled=True,
    ),
    "POST /api/v1/users/me/email": Operation(
        {202: Answer("Taken; the link in the mail makes the address the account's.")},
        body=users.CHANGE_EMAIL,
        example={"email": "countess@example.com", "password": _PASSWORD},
        problems=(
            WRONG_PASSWORD,
            TOO_MANY_SIGN_INS,
        ),
        idempotent=True,
        throttled=True,
    ),
    "GET /api/v1/users/me/sessions": Operation(
        {
            200: Answer(
                "All of them.",
                _ref("OwnSessionList"),
                example={"items": [{**_SESSION, "current": True}]},
            )
        }
    ),
    "DELETE /api/v1/users/me/sessions": Operation({204: Answer("They have ended.")}),
    "DELETE /api/v1/users/me/sessions/{session_id}": Operation({204: Answer("It has ended.")}),
    "GET /api/v1/users": Operation(
        {200: Answer("A page.", _ref("AdminUserPage"), ("Link",), _page_of(_ACCOUNT, count=1))},
        query=admin.LIST_USERS,
        problems=(SEARCH_TOO_BROAD,),
    ),
    "POST /api/v1/users": Operation(
        {
            201: Answer(
                "Created.",
                _ref("AdminUser"),
                ("ETag", "Location"),
                {**_ACCOUNT, "email_verified": False, "version": 1, "updated_at": _CREATED},
            )
        },
        body=admin.CREATE_USER,
        example={"email": "ada@example.com", "name": "Ada Lovelace", "role": "support"},
        problems=(EMAIL_TAKEN,),
        idempotent=True,
    ),
    "GET /api/v1/users/{user_id}": Operation(_account("The account.")),
    "PATCH /api/v1/users/{user_id}": Operation(
        _account("The account as it is now."),
        body=admin.CHANGE_USER,
        example={"role": "support"},
        problems=(LAST_ADMINISTRATOR,),
        if_match="required",
    ),
    "DELETE /api/v1/users/{user_id}": Operation(
        _account(
            "To be deleted; every session has ended.",
            status="deleting",
            purge_at="2026-03-02T12:00:00.000000Z",
        ),
        problems=(
            ACCOUNT_SUSPENDED,
            LAST_ADMINISTRATOR,
        ),
        if_match="honoured",
    ),
    "POST /api/v1/users/{user_id}/suspend": Operation(
        _account(
            "Suspended; every session has ended.",
            status="suspended",
            suspension_reason="Sends spam.",
        ),
        body=admin.SUSPEND_USER,
        example={"reason": "Sends spam.", "until": "2126-01-31T12:00:00Z"},
        problems=(
            ACCOUNT_DELETING,
            LAST_ADMINISTRATOR,
        ),
        idempotent=True,
        if_match="honoured",
    ),
    "POST /api/v1/users/{user_id}/reinstate": Operation(
        _account("Active."), idempotent=True, if_match="honoured"
    ),
    "POST /api/v1/users/{user_id}/password-reset": Operation(
        {202: Answer("A mail with a link goes out.")}, idempotent=True, if_match="honoured"
    ),
    "GET /api/v1/users/{user_id}/sessions": Operation(
        {200: Answer("A page.", _ref("AdminSessionPage"), ("Link",), _page_of(_SESSION))},
        query=PAGE,
    ),
    "DELETE /api/v1/users/{user_id}/sessions": Operation(
        {204: Answer("They have ended.")}, if_match="honoured"
    ),
    "DELETE /api/v1/users/{user_id}/sessions/{session_id}": Operation(
        {204: Answer("It has ended.")}
    ),
    "GET /api/v1/audit-events": Operation(
        {200: Answer("A page.", _ref("AuditEventPage"), ("Link",), _page_of(_EVENT))},
        query=audit.LIST_EVENTS,
    ),
}
