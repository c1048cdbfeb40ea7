"""Checks of each test's requests and responses against ``/openapi.json``."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import jsonschema_rs
import orjson
from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse

from service.openapi.components import HEADERS
from service.openapi.document import document
from service.routes import ROUTES
from service.settings import Settings
from tests.support.any_json import with_exact_json

# Names of the settings that the document depends on.
DESCRIBED = ("password_min_length", "require_email_verification")
DEFAULTS = Settings()

_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


class Response(NamedTuple):
    """A received response; ``path`` excludes the query, ``headers`` ignores case."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes


def checks_of(settings: Settings) -> tuple[ClientMiddlewareType, ClientMiddlewareType]:
    """Return client middlewares that check the traffic with a service of these settings."""
    described = _described_part(settings)
    return (
        functools.partial(_check_answer, described),
        functools.partial(_check_request, described),
    )


def _is_undescribed(request: ClientRequest) -> bool:
    """Return whether the request is of clients of the system that this one replaces."""
    return request.url.path.endswith("/events") and "limit" in request.url.query


async def _check_answer(
    settings: Settings, request: ClientRequest, handler: ClientHandlerType
) -> ClientResponse:
    """Raise AssertionError if the document does not describe the response."""
    response = await handler(request)
    if _is_undescribed(request):
        return response
    received = Response(
        request.method,
        unquote(request.url.raw_path),
        response.status,
        response.headers,
        await response.read(),
    )
    faults = find_faults(received, settings)
    assert not faults, f"{received.method} {received.path}: {'; '.join(faults)}"
    return response


async def _check_request(
    settings: Settings, request: ClientRequest, handler: ClientHandlerType
) -> ClientResponse:
    """Raise AssertionError if an accepted request violates the document."""
    response = await handler(request)
    if _is_undescribed(request):
        return response
    methods = _find_path(unquote(request.url.raw_path), settings) or {}
    if response.status < 300 and request.method.lower() in methods:
        operation = methods[request.method.lower()]
        faults = [
            *_find_parameter_faults(request, operation, settings),
            *await _find_request_body_faults(request, operation, settings),
        ]
        assert not faults, f"{operation['operationId']} accepted {'; '.join(faults)}"
    return response


async def _find_request_body_faults(
    request: ClientRequest, operation: Mapping[str, Any], settings: Settings
) -> list[str]:
    """List where the request body violates its schema."""
    if "requestBody" not in operation or "Content-Encoding" in request.headers:
        return []
    body = await request.body.as_bytes() if request.body else b""
    if not body and not operation["requestBody"]["required"]:
        return []
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return find_invalid(schema, orjson.loads(body), settings)


def _find_parameter_faults(
    request: ClientRequest, operation: Mapping[str, Any], settings: Settings
) -> Iterator[str]:
    """Yield the faults of parameters. Operations without query parameters ignore the query."""
    described = {parameter["name"]: parameter for parameter in operation["parameters"]}
    if any(parameter["in"] == "query" for parameter in described.values()):
        yield from (f"{name}, not listed" for name in request.url.query if name not in described)
    for name, value in [*request.url.query.items(), *request.headers.items()]:
        parameter = described.get(name, {})
        if parameter:
            given = _read(parameter["schema"], value)
            yield from find_invalid(parameter["schema"], given, settings)


def _read(schema: Mapping[str, Any], text: str) -> object:
    """Parse a parameter's value from its text in a query or header."""
    match schema.get("type"):
        case "integer":
            return int(text) if text.isdecimal() else text
        case "boolean":
            return {"true": True, "false": False}.get(text, text)
    return text


def find_faults(response: Response, settings: Settings = DEFAULTS) -> list[str]:
    """List where a response violates the document; empty if it conforms.

    Unknown paths and methods and CORS preflights are exempt, since they are not operations. So is a
    500, which a test gets only by breaking the database under the service.
    """
    methods = _find_path(response.path, settings)
    method = "get" if response.method == "HEAD" else response.method.lower()
    if response.status == 500 or not methods or method not in methods:
        excepted = response.status >= 400 or response.method == "OPTIONS"
        return [] if excepted else [f"{response.status} from an undescribed operation"]
    described = methods[method]["responses"].get(str(response.status))
    if described is None:
        return [f"status {response.status} is not listed: {response.body!r}"]
    described = _resolve(described, settings)
    faults = list(_find_header_faults(response.headers, described["headers"], settings))
    if response.method != "HEAD":
        faults += _find_body_faults(response, described.get("content"), settings)
    return faults


def _find_header_faults(
    given: Mapping[str, str], described: dict[str, Any], settings: Settings
) -> Iterator[str]:
    """Yield described headers that are missing or malformed, and others not described here."""
    for name, reference in described.items():
        header = _resolve(reference, settings)
        if name not in given:
            if header.get("required"):
                yield f"no {name}"
            continue
        value = _read(header["schema"], given[name])
        for fault in find_invalid(header["schema"], value, settings):
            yield f"{name}: {fault}"
    for name in HEADERS:
        if name in given and name not in described:
            yield f"{name} is not listed"


def _find_body_faults(
    response: Response, content: dict[str, Any] | None, settings: Settings
) -> list[str]:
    if content is None:
        return ["a body where none is listed"] if response.body else []
    content_type = response.headers.get("Content-Type", "").partition(";")[0]
    if content_type not in content:
        return [f"{content_type} is not listed"]
    text = content_type.startswith("text/")
    body: Any = response.body.decode() if text else orjson.loads(response.body)
    faults = find_invalid(content[content_type]["schema"], body, settings)
    if content_type == "application/problem+json" and not faults:
        # Each code has an example. An enumeration would make a type of its own for each response.
        if body["code"] not in content[content_type]["examples"]:
            faults.append(f"{body['code']} is not listed")
        if body["status"] != response.status:
            faults.append(f"status {body['status']}")
    return faults


def find_invalid(
    schema: Mapping[str, Any], value: object, settings: Settings = DEFAULTS
) -> list[str]:
    """List where a value violates a schema of the document."""
    return [
        f"{error.message} at {error.instance_path}"
        for error in compile_schema(orjson.dumps(schema), settings).iter_errors(value)
    ]


def _described_part(settings: Settings) -> Settings:
    """Return settings that give the same document, and are the same in most tests."""
    return Settings(**{name: getattr(settings, name) for name in DESCRIBED})


def document_of_defaults() -> dict[str, Any]:
    return _document_of(DEFAULTS)


@functools.cache
def _document_of(settings: Settings) -> dict[str, Any]:
    return document(ROUTES, settings)


@functools.cache
def _find_path(path: str, settings: Settings) -> dict[str, Any] | None:
    """Return the operations of a path by method, or None if the path is unknown."""
    for template, methods in _document_of(settings)["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", _UUID, re.escape(template))
        if re.fullmatch(f"{pattern}/?", path):
            found: dict[str, Any] = methods
            return found
    return None


def _resolve(described: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the component that a reference names, or the object itself if it is none."""
    if "$ref" not in described:
        return described
    found = _document_of(settings)
    for name in described["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


@functools.cache
def compile_schema(schema: bytes, settings: Settings) -> jsonschema_rs.Draft202012Validator:
    """Compile a schema once per process, with the components that it may refer to."""
    components = with_exact_json(_document_of(settings)["components"])
    whole = {**orjson.loads(schema), "components": components}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
