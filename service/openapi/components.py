"""OpenAPI components that operations refer to: headers, schemas and problems."""

from collections.abc import Iterable, Mapping
from typing import Any

from marshmallow import Schema

from service.http.descriptions import Shape, ref
from service.http.examples import REQUEST_ID
from service.http.field_errors import CODES, ERRORS_MAX
from service.http.problems import ProblemType
from service.http.responses import phrase

_REQUEST_ID = "[A-Za-z0-9._-]{1,128}"
_PROBLEM = "application/problem+json"
RATE_HEADERS = ("RateLimit", "RateLimit-Policy")

HEADERS: dict[str, dict[str, Any]] = {
    "Accept": {
        "description": "The content types to choose from.",
        "schema": {"type": "string"},
    },
    "Accept-Encoding": {
        "description": "The content encodings to choose from.",
        "schema": {"const": "gzip, deflate"},
    },
    "Accept-Patch": {
        "description": "The content types of PATCH (RFC 5789 §3.1), if that was the method.",
        "schema": {"type": "string"},
    },
    "Content-Disposition": {
        "description": "The name to save the file under.",
        "required": True,
        "schema": {"type": "string", "pattern": "^attachment; filename="},
    },
    "ETag": {
        "description": "The version, to send as If-Match or If-None-Match (RFC 9110 §8.8.3).",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9a-f]+"$'},
    },
    "Link": {
        "description": 'Link to the next page, `rel="next"` (RFC 8288), if there is one.',
        "schema": {"type": "string", "pattern": '^<[^>]+>; rel="next"$'},
    },
    "Location": {
        "description": "The URL of the created resource.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "RateLimit": {
        "description": (
            "Attempts left (`r`) under the limit closest to being reached, and seconds until one"
            " more becomes available (`t`). See draft-ietf-httpapi-ratelimit-headers-10."
        ),
        "schema": {"type": "string", "pattern": '^"[a-z-]+";r=[0-9]+;t=[0-9]+$'},
    },
    "RateLimit-Policy": {
        "description": "The attempts (`q`) that this limit allows per window of `w` seconds.",
        "schema": {"type": "string", "pattern": '^"[a-z-]+";q=[0-9]+;w=[0-9]+$'},
    },
    "Retry-After": {
        "description": "Seconds to wait before the same request may succeed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After-Perhaps": {
        "description": "Seconds to wait, if waiting helps.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "Bearer challenge (RFC 6750 §3).",
        "required": True,
        "schema": {"type": "string", "pattern": "^Bearer"},
    },
    "X-Request-ID": {
        "description": "The request id used in the logs: the client's own or a generated one.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{_REQUEST_ID}$"},
    },
}
# Headers of problem responses, by status.
_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    409: ("Retry-After-Perhaps",),
    415: ("Accept", "Accept-Encoding", "Accept-Patch"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

PROBLEM = Shape(
    "Problem",
    {
        "type": "object",
        "description": "Problem details (RFC 9457).",
        "properties": {
            "type": {"const": "about:blank"},
            "title": {"type": "string", "description": "The name of the HTTP status."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "An explanation for people. May change."},
            "code": {"type": "string", "description": "A stable identifier for programs."},
            "request_id": {"type": "string", "pattern": f"^{_REQUEST_ID}$"},
            "errors": {
                "type": "array",
                "minItems": 1,
                "maxItems": ERRORS_MAX,
                "description": f"The invalid fields, at most {ERRORS_MAX} of them.",
                "items": {
                    "type": "object",
                    "properties": {
                        "pointer": {
                            "type": "string",
                            "description": (
                                "JSON Pointer (RFC 6901 §6) into the body (`#`) or the query (`?`)."
                            ),
                            "pattern": "^[#?]",
                        },
                        "detail": {
                            "type": "string",
                            "description": "An explanation for people. May change.",
                        },
                        "code": {
                            "type": "string",
                            "enum": list(CODES),
                            "description": "A stable identifier for programs:\n"
                            + "".join(f"\n- `{code}`: {text}" for code, text in CODES.items()),
                        },
                    },
                    "required": ["pointer", "detail", "code"],
                    "additionalProperties": False,
                },
            },
            "challenge": {
                "type": "string",
                "description": "If the code is `second_factor_required`: to send with the factor.",
            },
            "factors": {
                "type": "array",
                "items": {"type": "string", "enum": ["totp", "passkey", "recovery_code"]},
                "description": "If the code is `second_factor_required`: what to choose from.",
            },
        },
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "additionalProperties": False,
    },
)


def resolve(described: Any, components: Any) -> Any:
    """Replace Shapes and schemas with references, and register them as components."""
    match described:
        case Shape(name=name, schema=schema):
            if name not in components.schemas:
                components.schema(name, resolve(schema, components))
            return ref(name)
        case Schema():
            name = type(described).__name__.removesuffix("Schema")
            if name not in components.schemas:
                components.schema(name, schema=described)
                shape = components.schemas[name]
                shape["required"] = list(shape["properties"])  # a response has every member
            return ref(name)
        case Mapping():
            return {key: resolve(inner, components) for key, inner in described.items()}
        case list():
            return [resolve(inner, components) for inner in described]
    return described


def problem_response(
    status: int, kinds: Iterable[ProblemType], rate: tuple[str, ...]
) -> dict[str, Any]:
    details = {kind.code: kind.detail for kind in kinds}
    text = "".join(f"\n- `{code}`: {detail}" for code, detail in details.items())
    example = {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "request_id": REQUEST_ID,
    }
    return {
        "description": f"{phrase(status)}\n{text}",
        "headers": headers_of(*_PROBLEM_HEADERS.get(status, ()), *rate),
        "content": {
            _PROBLEM: {
                "schema": ref("Problem"),
                "examples": {
                    code: {"value": {**example, "code": code, "detail": detail}}
                    for code, detail in details.items()
                },
            }
        },
    }


def component_of(header: str) -> str:
    """Return the header's name as an identifier, which names its component."""
    return header.replace("-", "")


def headers_of(*names: str) -> dict[str, Any]:
    return {
        name.removesuffix("-Perhaps"): {"$ref": f"#/components/headers/{component_of(name)}"}
        for name in ("X-Request-ID", *names)
    }
