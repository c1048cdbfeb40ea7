"""``/openapi.json``: the API described in OpenAPI 3.1, from the route table and the schemas.

apispec is imported when the description is first asked for; from then on its bytes are kept.
"""

import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from marshmallow import Schema, fields

from service import __version__
from service.accounts.preferences import (
    NUMBER_LIMITS,
    PREFERENCES_MAX_BYTES,
    PREFERENCES_MAX_DEPTH,
    WELL_KNOWN_PREFERENCES,
    PreferencesField,
)
from service.admin.schemas import ContainedSettings, SearchText
from service.auth.guards import FORBIDDEN, NOT_SIGNED_IN
from service.auth.tokens import INVALID_ACCESS_TOKEN
from service.http.error_responses import phrase
from service.http.fields import (
    EMAIL_MAX_LENGTH,
    NO_NUL,
    RFC3339,
    Digits,
    DisplayName,
    EmailAddress,
    Flag,
    NewPassword,
    Password,
    Text,
    Timestamp,
)
from service.http.pages import PageSchema
from service.http.problems import (
    BODY_TIMEOUT,
    CONTENT_TOO_LARGE,
    CURSOR_MISMATCH,
    DATABASE_UNAVAILABLE,
    DUPLICATE_PARAMETER,
    EMPTY_BODY,
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENT_ANSWER_LOST,
    INVALID_CURSOR,
    INVALID_FIELDS,
    INVALID_IDEMPOTENCY_KEY,
    INVALID_VALUE,
    MALFORMED_BODY,
    MALFORMED_JSON,
    MALFORMED_QUERY,
    MALFORMED_REQUEST,
    MISCONFIGURED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    TIMEOUT,
    UNSUPPORTED_CONTENT_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemType,
)
from service.http.route import Route
from service.openapi.operations import Answer, Operation
from service.settings import Settings
from service.throttle.limits import TOO_MANY_REQUESTS

_DESCRIPTION = """\
Accounts: registration, sign-in, sessions, recovery, profiles, administration and audit.

Bodies are JSON in UTF-8 (RFC 8259, RFC 7493), compressed with gzip or deflate where
`Content-Encoding` says so. Fields that are not listed are refused. Each path works with a slash at
its end too, and `HEAD` wherever `GET` does. Times are RFC 3339, answered in UTC.

A failure is `application/problem+json` (RFC 9457) with a stable `code`; the codes of each status
are listed with it. Beside what is listed, an unknown path is a 404 and an unknown method a 405.

Send `X-Request-ID`, of up to 128 letters, digits, dots, hyphens and underscores, to find a request
again in the logs; it is answered back.
"""
_REQUEST_ID = "[A-Za-z0-9._-]{1,128}"
_PROBLEM = "application/problem+json"
_RATE_HEADERS = ("RateLimit", "RateLimit-Policy")

_HEADERS: dict[str, dict[str, Any]] = {
    "Accept": {
        "description": "The content type to send.",
        "schema": {"const": "application/json"},
    },
    "Accept-Encoding": {
        "description": "The content encodings to choose from.",
        "schema": {"const": "gzip, deflate"},
    },
    "Content-Disposition": {
        "description": "A name for the file to save.",
        "required": True,
        "schema": {"type": "string", "pattern": "^attachment; filename="},
    },
    "ETag": {
        "description": "The version, to be sent as If-Match (RFC 9110 §8.8.3).",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9a-f]+"$'},
    },
    "Link": {
        "description": 'The next page, `rel="next"` (RFC 8288), where there is one.',
        "schema": {"type": "string", "pattern": '^<[^>]+>; rel="next"$'},
    },
    "Location": {
        "description": "Where what was created is.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "RateLimit": {
        "description": (
            "The attempts left under the limit that is nearest to its end, and the seconds until"
            " there is one more (draft-ietf-httpapi-ratelimit-headers-10)."
        ),
        "schema": {"type": "string", "pattern": '^"[a-z-]+";r=[0-9]+;t=[0-9]+$'},
    },
    "RateLimit-Policy": {
        "description": "That limit: how many attempts in how many seconds.",
        "schema": {"type": "string", "pattern": '^"[a-z-]+";q=[0-9]+;w=[0-9]+$'},
    },
    "Retry-After": {
        "description": "Seconds to wait before the same request may succeed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After-Perhaps": {
        "description": "Seconds to wait, where waiting helps.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "The challenge of RFC 6750 §3.",
        "required": True,
        "schema": {"type": "string", "pattern": "^Bearer"},
    },
    "X-Request-ID": {
        "description": "The request's id in the logs: the client's own, or a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{_REQUEST_ID}$"},
    },
}
# By the name of the guard in the route table.
_ACCESS = {
    "anyone": "For anyone.",
    "signed_in": "For whoever is signed in.",
    "support": "For administrators and support.",
    "admin": "For administrators.",
}
# Headers of problems, by status.
_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    409: ("Retry-After-Perhaps",),
    415: ("Accept", "Accept-Encoding"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

_OF_BODIES = (
    EMPTY_BODY,
    MALFORMED_BODY,
    MALFORMED_JSON,
    BODY_TIMEOUT,
    CONTENT_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    UNSUPPORTED_CONTENT_ENCODING,
    INVALID_FIELDS,
    INVALID_VALUE,
)
_OF_QUERIES = (MALFORMED_QUERY, DUPLICATE_PARAMETER, INVALID_FIELDS, INVALID_VALUE)
_OF_IDEMPOTENCY_KEYS = (
    INVALID_IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENT_ANSWER_LOST,
)

_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "For people; may change."},
        "code": {"type": "string", "description": "For programs; stable."},
        "request_id": {"type": "string", "pattern": f"^{_REQUEST_ID}$"},
        "errors": {
            "type": "array",
            "minItems": 1,
            "description": "What is wrong with which field.",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": (
                            "A JSON Pointer (RFC 6901 §6) from `#`, the body, or `?`, the query."
                        ),
                        "pattern": "^[#?]",
                    },
                    "detail": {"type": "string"},
                },
                "required": ["pointer", "detail"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "additionalProperties": False,
}


def document(routes: Sequence[Route], settings: Settings) -> dict[str, Any]:
    """Describe the routes of a service with these settings, of which no secret is read."""
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    from service.openapi.operations import ANSWERED, OPERATIONS, SCHEMAS

    plugin = MarshmallowPlugin()
    described = APISpec(
        title="Shinkei",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={
            "summary": "Accounts over HTTP and PostgreSQL",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        servers=[{"url": "/"}],
        tags=list(_tags(routes)),
    )
    converter: Any = plugin.converter

    def describe_field(_: Any, field: fields.Field[Any], **__: Any) -> dict[str, Any]:
        return _describe_field(field, settings)

    converter.add_attribute_function(describe_field)
    described.components.security_scheme(
        "access_token",
        {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "The `access_token` that registration, sign-in and refresh answer.",
        },
    )
    for name, schema in {**_settings_schemas(), "Problem": _PROBLEM_SCHEMA, **SCHEMAS}.items():
        described.components.schema(name, schema)
    for answered in ANSWERED:
        described.components.schema(_name(answered), schema=answered)
    for name, header in _HEADERS.items():
        described.components.header(name, header)
    for route in routes:
        operation = OPERATIONS[f"{route.method} {route.path}"]
        described.path(
            route.path,
            operations={route.method.lower(): _describe(route, operation, converter)},
        )
    whole: dict[str, Any] = described.to_dict()
    for answered in ANSWERED:
        shape = whole["components"]["schemas"][_name(answered)]
        shape["required"] = list(shape["properties"])
    # Who reads the first lines sees what it is, in which version.
    return {"openapi": whole.pop("openapi"), **whole}


def _tags(routes: Sequence[Route]) -> Iterator[dict[str, str]]:
    """One for each feature, in the order of the route table."""
    for tag in dict.fromkeys(_tag(route) for route in routes):
        package = sys.modules.get(f"service.{tag}")
        text = (package and package.__doc__) or "Probes, keys, and descriptions of the API."
        yield {"name": tag, "description": text.strip()}


def _tag(route: Route) -> str:
    """The feature's name; ``operation`` for what is no feature's."""
    feature = route.handler.__module__.split(".")[1:]
    return feature[0] if len(feature) > 1 else "operation"


def _describe(route: Route, operation: "Operation", converter: Any) -> dict[str, Any]:
    summary, _, rest = inspect.cleandoc(route.handler.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [_tag(route)],
        "summary": " ".join(summary.split()),
        "parameters": list(_parameters(route, operation, converter)),
        "responses": _responses(route, operation, converter.spec.components),
        "security": [{"access_token": []}] if _guarded(route) else [],
    }
    access = _ACCESS[route.access.__name__]
    described["description"] = "\n\n".join(filter(None, [rest, access]))
    if operation.body is not None:
        content: dict[str, Any] = {"schema": operation.body}
        if operation.example is not None:
            content["example"] = operation.example
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _operation_id(route: Route) -> str:
    """``users_read_me``. ``/health`` has another route's handler, and a name of its own."""
    feature = route.handler.__module__.split(".")[1]
    return "health" if route.path == "/health" else f"{feature}_{route.handler.__name__}"


def _guarded(route: Route) -> bool:
    return route.access.__name__ != "anyone"


def _parameters(route: Route, operation: "Operation", converter: Any) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        schema = {"type": "string", "format": "uuid"}
        yield {"in": "path", "name": name, "required": True, "schema": schema}
    if operation.query is not None:
        for parameter in converter.schema2parameters(operation.query, location="query"):
            content = parameter["schema"].pop("contentSchema", None)
            if content is not None:
                del parameter["schema"]
                parameter["content"] = {"application/json": {"schema": content}}
            yield parameter
    if operation.idempotent:
        yield {
            "in": "header",
            "name": "Idempotency-Key",
            "description": (
                "Asked again with the same key within 24 hours, it is done once and answered the"
                " same (draft-ietf-httpapi-idempotency-key-header)."
            ),
            "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
            "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
        }
    if operation.if_match:
        yield {
            "in": "header",
            "name": "If-Match",
            "description": "The ETag of what was read: it is changed only if it is that still.",
            "required": operation.if_match == "required",
            "schema": {"type": "string"},
            "example": '"1"',
        }


def _responses(route: Route, operation: "Operation", components: Any) -> dict[str, Any]:
    rate = _RATE_HEADERS if operation.throttled else ()
    responses = {
        str(status): _success(answer, rate) for status, answer in operation.answers.items()
    }
    for status, kinds in _problems(route, operation).items():
        # Many routes share one: the description is a third of the size with them as components.
        codes = [kind.code for kind in kinds]
        name = ".".join([str(status), *codes, *(["limited"] if rate else [])])
        if name not in components.responses:
            components.response(name, _problem(status, kinds, rate))
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _success(answer: "Answer", rate: tuple[str, ...]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": answer.description,
        "headers": _headers(*answer.headers, *rate),
    }
    if answer.schema is not None:
        content: dict[str, Any] = {"schema": answer.schema}
        if answer.example is not None:
            content["example"] = answer.example
        response["content"] = {answer.content_type: content}
    return response


def _problem(status: int, kinds: tuple[ProblemType, ...], rate: tuple[str, ...]) -> dict[str, Any]:
    details = {kind.code: kind.detail for kind in kinds}
    text = "".join(f"\n- `{code}`: {detail}" for code, detail in details.items())
    example = {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "request_id": "01a1fba48e2973c28fdb0edde7bcd9f3",
    }
    narrowed = {"status": {"const": status}, "code": {"enum": list(details)}}
    return {
        "description": f"{phrase(status)}\n{text}",
        "headers": _headers(*_PROBLEM_HEADERS.get(status, ()), *rate),
        "content": {
            _PROBLEM: {
                "schema": {
                    "allOf": [_ref("Problem")],
                    "properties": narrowed,
                },
                "examples": {
                    code: {"value": {**example, "code": code, "detail": detail}}
                    for code, detail in details.items()
                },
            }
        },
    }


def _headers(*names: str) -> dict[str, Any]:
    return {
        name.removesuffix("-Perhaps"): {"$ref": f"#/components/headers/{name}"}
        for name in ("X-Request-ID", *names)
    }


def _problems(route: Route, operation: "Operation") -> dict[int, tuple[ProblemType, ...]]:
    """The problems that it can be refused with, by status: its own, and those that follow."""
    found = [MALFORMED_REQUEST, *operation.problems]
    if operation.database:
        found += [DATABASE_UNAVAILABLE, TIMEOUT]
    if _guarded(route):
        found += [NOT_SIGNED_IN, INVALID_ACCESS_TOKEN, MISCONFIGURED]
    if route.access.__name__ in ("support", "admin"):
        found += [FORBIDDEN]
    if "{" in route.path:
        found += [NOT_FOUND]
    if operation.body:
        found += _OF_BODIES
    if operation.query:
        found += _OF_QUERIES
    if isinstance(operation.query, PageSchema):
        found += [INVALID_CURSOR, CURSOR_MISMATCH]
    if operation.idempotent:
        found += _OF_IDEMPOTENCY_KEYS
    if operation.if_match:
        found += [PRECONDITION_FAILED]
    if operation.if_match == "required":
        found += [PRECONDITION_REQUIRED]
    if operation.throttled:
        found += [TOO_MANY_REQUESTS]
    by_code = {(kind.status, kind.code): kind for kind in found}
    return {
        status: tuple(kinds)
        for status, kinds in itertools.groupby(
            (by_code[key] for key in sorted(by_code)), key=attrgetter("status")
        )
    }


def _name(schema: Schema) -> str:
    return type(schema).__name__.removesuffix("Schema")


def _describe_field(field: fields.Field[Any], settings: Settings) -> dict[str, Any]:
    """What apispec cannot know of our own fields."""
    described: dict[str, Any] = {}
    match field:
        case PreferencesField():
            return _ref("SettingsPatch" if field.merging else "Settings")
        case ContainedSettings():
            return {"contentSchema": {"type": "object", "additionalProperties": _ref("Json")}}
        case EmailAddress():
            described = {"type": "string", "format": "idn-email", "maxLength": EMAIL_MAX_LENGTH}
        case Text():
            described = {
                "type": "string",
                "minLength": field.min_length,
                "maxLength": field.max_length,
                "pattern": NO_NUL,
            }
            if isinstance(field, Password):
                described |= {"format": "password", "writeOnly": True}
            if isinstance(field, NewPassword):
                described["minLength"] = settings.password_min_length
                described["description"] = (
                    "Neither common or breached, nor made of your own email or name."
                )
            if isinstance(field, DisplayName):
                described["format"] = "display-name"
                described["description"] = "On one line, without invisible characters."
            if isinstance(field, SearchText):
                described["format"] = "search"
        case Digits():
            described = {"type": "integer", "minimum": field.low, "maximum": field.high}
        case Flag():
            described = {"type": "boolean"}
        case Timestamp():
            described = {"type": "string", "format": "date-time", "pattern": f"^{RFC3339.pattern}$"}
    if described and field.allow_none:
        described["type"] = [described["type"], "null"]
    return described


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _settings_schemas() -> dict[str, dict[str, Any]]:
    """The client's own settings, as they are and as a patch, and the JSON that may be in them."""
    known = {name: shape for name, (_, _, shape) in WELL_KNOWN_PREFERENCES.items()}
    patched = {name: {"anyOf": [shape, {"type": "null"}]} for name, shape in known.items()}
    own = {
        "type": "object",
        "propertyNames": {"pattern": NO_NUL},
        "additionalProperties": _ref("Json"),
    }
    least, most = NUMBER_LIMITS
    size = f"At most {PREFERENCES_MAX_BYTES} bytes of JSON, {PREFERENCES_MAX_DEPTH} levels deep."
    return {
        "Settings": {
            **own,
            "description": f"The client's own, in which some keys have types. {size}",
            "properties": known,
        },
        "SettingsPatch": {
            **own,
            "description": f"Merged (RFC 7396), where null takes a key away. Then: {size}",
            "properties": patched,
        },
        "Json": {
            "description": (
                "Any JSON without NUL. Numbers have no more digits than a 64-bit float keeps."
            ),
            "anyOf": [
                {"type": ["boolean", "null"]},
                {"const": 0},
                {"type": "number", "minimum": least, "maximum": most},
                {"type": "number", "minimum": -most, "maximum": -least},
                {"type": "string", "pattern": NO_NUL},
                {"type": "array", "items": _ref("Json")},
                own,
            ],
        },
    }
