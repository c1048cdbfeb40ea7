"""``/openapi.json``: the OpenAPI 3.1 description, generated from the routes.

apispec is imported on the first request for the description; its bytes are cached.
"""

import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from marshmallow import fields

from service import __version__
from service.http.descriptions import (
    Access,
    Description,
    Success,
    access_of,
    description_of,
    is_revalidated,
)
from service.http.media_types import media_types
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
    IDEMPOTENT_RESPONSE_LOST,
    INVALID_CURSOR,
    INVALID_ETAG,
    INVALID_FIELDS,
    INVALID_IDEMPOTENCY_KEY,
    INVALID_VALUE,
    MALFORMED_BODY,
    MALFORMED_JSON,
    MALFORMED_QUERY,
    MALFORMED_REQUEST,
    NOT_FOUND,
    OVERLOADED,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    TIMEOUT,
    UNSUPPORTED_CONTENT_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemType,
)
from service.http.route import Route
from service.openapi.components import (
    HEADERS,
    PROBLEM,
    RATE_HEADERS,
    component_of,
    headers_of,
    problem_response,
    resolve,
)
from service.openapi.fields import describe_field
from service.openapi.generators import adapt
from service.settings import Settings
from service.telemetry.access_log import PROBES

_DESCRIPTION = """\
Accounts: registration, sign-in, sessions, recovery, profiles, administration and audit.

Bodies are JSON in UTF-8 (RFC 8259, RFC 7493), optionally compressed with gzip or deflate
(`Content-Encoding`). Unknown fields are rejected. `PATCH` merges (RFC 7396). Every path also works
with a trailing slash, and `HEAD` works wherever `GET` does. Times are RFC 3339; responses give them
in UTC.

Errors are `application/problem+json` (RFC 9457) with a stable `code`; each status lists its codes.
In addition, an unknown path returns 404, an unsupported method 405, a CORS preflight of an unlisted
origin 403, a target of more than 8190 bytes 414, an expectation other than `100-continue` 417,
more than 128 headers, one of more than 8192 bytes, more than 32 KiB of them or a list of more than
100 elements 431, an internal error 500, an unknown method or transfer coding 501, and a version of
HTTP other than 1.0 and 1.1 505.

To find a request in the logs, send an `X-Request-ID` of up to 128 letters, digits, dots, hyphens
and underscores. The response repeats it.
"""
NOT_MODIFIED = Success("A version in If-None-Match is still current.", None, ("ETag",))
# The value of If-Match and If-None-Match: a list, possibly with empty elements (RFC 9110 §5.6.1).
_ETAG = '(W/)?"[!#-~\\x80-\\xff]*"'
ETAGS = {"type": "string", "pattern": rf"^(\*|[ \t,]*({_ETAG}[ \t]*(,[ \t,]*|$))*)$"}
_BODY_PROBLEMS = (
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
_QUERY_PROBLEMS = (MALFORMED_QUERY, DUPLICATE_PARAMETER, INVALID_FIELDS, INVALID_VALUE)
_IDEMPOTENCY_PROBLEMS = (
    INVALID_IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENT_RESPONSE_LOST,
)


def document(routes: Sequence[Route], settings: Settings) -> dict[str, Any]:
    """Describe the routes of a service with these settings, without reading any secret."""
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    plugin = MarshmallowPlugin()
    spec = APISpec(
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

    def describe(_: Any, field: fields.Field[Any], **__: Any) -> Any:
        return resolve(describe_field(field, settings), spec.components)

    converter.add_attribute_function(describe)
    spec.components.security_scheme(
        "access_token",
        {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "The `access_token` returned by registration, sign-in and refresh.",
        },
    )
    resolve(PROBLEM, spec.components)
    for name, header in HEADERS.items():
        spec.components.header(component_of(name), header)
    for route in routes:
        operation = _operation(route, settings, converter, spec.components)
        spec.path(route.path, operations={route.method.lower(): operation})
    whole = adapt(spec.to_dict())
    # Put the format and its version first.
    return {"openapi": whole.pop("openapi"), **whole}


def _tags(routes: Sequence[Route]) -> Iterator[dict[str, str]]:
    """Yield one tag for each feature, in the order of the route table."""
    for tag in dict.fromkeys(_tag(route) for route in routes):
        text = sys.modules[f"service.{tag}"].__doc__ or ""
        yield {"name": tag, "description": text.strip()}


def _tag(route: Route) -> str:
    """Return the name of the route's feature."""
    return route.handler.__module__.split(".")[1]


def _operation(route: Route, settings: Settings, converter: Any, components: Any) -> dict[str, Any]:
    description, access = description_of(route.handler), access_of(route.access)
    summary, _, rest = inspect.cleandoc(route.handler.__doc__ or "").partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [_tag(route)],
        "summary": " ".join(summary.split()),
        "description": "\n\n".join(filter(None, [rest, access.words])),
        "parameters": list(_parameters(route, description, converter)),
        "responses": _responses(route, description, settings, components),
        "security": _security(access),
    }
    if description.body is not None:
        content: dict[str, Any] = {"schema": description.body}
        if description.example is not None:
            content["example"] = description.example
        operation["requestBody"] = {
            "required": description.body_required,
            "content": dict.fromkeys(sorted(media_types(route.method)), content),
        }
    return operation


def _security(access: Access) -> list[dict[str, list[str]]]:
    """Return the ways to authenticate; an empty object stands for none (OpenAPI 3.1 §4.8.30)."""
    if not access.problems:
        return []
    return [{}, {"access_token": []}] if access.optional else [{"access_token": []}]


def _operation_id(route: Route) -> str:
    """Return an id such as ``users_read_me``. ``/health`` shares a handler, so it is named here."""
    return "health" if route.path == "/health" else f"{_tag(route)}_{route.handler.__name__}"


def _parameters(route: Route, description: Description, converter: Any) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        schema = {"type": "string", "format": "uuid"}
        yield {"in": "path", "name": name, "required": True, "schema": schema}
    if description.query is not None:
        yield from converter.schema2parameters(description.query, location="query")
    if description.idempotent:
        yield {
            "in": "header",
            "name": "Idempotency-Key",
            "description": (
                "A request repeated with the same key within 24 hours is carried out once and gets"
                " the same response (draft-ietf-httpapi-idempotency-key-header)."
            ),
            "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
            "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
        }
    if description.if_match:
        yield {
            "in": "header",
            "name": "If-Match",
            "description": (
                "ETag from a previous read. The change is applied only if it still matches."
            ),
            "required": description.if_match == "required",
            "schema": ETAGS,
            "example": '"1"',
        }
    if is_revalidated(route):
        # Without an example, which the page at /docs would send.
        yield {
            "in": "header",
            "name": "If-None-Match",
            "description": "ETag from a previous read. The response is 304 if it still matches.",
            "schema": ETAGS,
        }


def _responses(
    route: Route, description: Description, settings: Settings, components: Any
) -> dict[str, Any]:
    problems = _problems(route, description)
    rate = RATE_HEADERS if 429 in problems else ()
    successes = {**description.responses}
    if is_revalidated(route):
        successes[304] = NOT_MODIFIED
    responses = {
        str(status): _success(success, rate, components)
        for status, success in successes.items()
        if success.when is None or success.when(settings)
    }
    for status, kinds in problems.items():
        # Many routes share a response: components keep the description small.
        words = "_".join([*(kind.code for kind in kinds), *(["limited"] if rate else [])])
        name = f"Problem{status}{words.title().replace('_', '')}"
        if name not in components.responses:
            components.response(name, problem_response(status, kinds, rate))
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _success(success: Success, rate: tuple[str, ...], components: Any) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": success.description,
        "headers": headers_of(*success.headers, *rate),
    }
    if success.body is not None:
        content: dict[str, Any] = {"schema": resolve(success.body, components)}
        if success.example is not None:
            content["example"] = success.example
        response["content"] = {success.content_type: content}
    return response


def _problems(route: Route, description: Description) -> dict[int, tuple[ProblemType, ...]]:
    """Return a route's problems by status: its own, and those implied by its description."""
    found = [MALFORMED_REQUEST, *access_of(route.access).problems, *description.problems]
    if description.database:
        found += [DATABASE_UNAVAILABLE]
    if route.path not in PROBES:
        found += [OVERLOADED, TIMEOUT]
    if "{" in route.path:
        found += [NOT_FOUND]
    if description.body:
        found += _BODY_PROBLEMS
    if description.query:
        found += _QUERY_PROBLEMS
    if isinstance(description.query, PageSchema):
        found += [INVALID_CURSOR, CURSOR_MISMATCH]
    if description.idempotent:
        found += _IDEMPOTENCY_PROBLEMS
    if description.if_match or is_revalidated(route):
        found += [PRECONDITION_FAILED, INVALID_ETAG]
    if description.if_match == "required":
        found += [PRECONDITION_REQUIRED]
    by_code = {(kind.status, kind.code): kind for kind in found}
    return {
        status: tuple(kinds)
        for status, kinds in itertools.groupby(
            (by_code[key] for key in sorted(by_code)), key=attrgetter("status")
        )
    }
