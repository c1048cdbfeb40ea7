"""What a test sends and gets over HTTP, checked against ``/openapi.json``: see conftest."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import jsonschema_rs
import orjson
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from service.openapi.document import document
from service.routes import ROUTES
from service.settings import Settings

_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


class Answer(NamedTuple):
    """What a client got; ``path`` is without the query, ``headers`` find names in any case."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes


async def check_answers(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """A middleware of the client. Raises AssertionError for an answer that is not described."""
    response = await handler(request)
    answer = Answer(
        request.method,
        unquote(request.url.raw_path),
        response.status,
        response.headers,
        await response.read(),
    )
    faults = find_faults(answer)
    assert not faults, f"{answer.method} {answer.path}: {'; '.join(faults)}"
    return response


async def check_requests(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """The same for a request that was taken, although the description forbids it."""
    response = await handler(request)
    methods = _find_path(unquote(request.url.raw_path)) or {}
    if response.status < 300 and request.method.lower() in methods:
        operation = methods[request.method.lower()]
        faults = [
            *_find_parameter_faults(request, operation),
            *await _find_sent(request, operation),
        ]
        assert not faults, f"{operation['operationId']} took {'; '.join(faults)}"
    return response


async def _find_sent(request: ClientRequest, operation: Mapping[str, Any]) -> list[str]:
    """Where the body that was sent is not as it is described."""
    if "requestBody" not in operation or "Content-Encoding" in request.headers:
        return []
    body = await request.body.as_bytes() if request.body else b""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return find_invalid(schema, orjson.loads(body))


def _find_parameter_faults(request: ClientRequest, operation: Mapping[str, Any]) -> Iterator[str]:
    """A parameter that is not described is passed over by operations that describe none."""
    described = {parameter["name"]: parameter for parameter in operation["parameters"]}
    if any(parameter["in"] == "query" for parameter in described.values()):
        yield from (f"{name}, not listed" for name in request.url.query if name not in described)
    for name, value in [*request.url.query.items(), *request.headers.items()]:
        parameter = described.get(name, {})
        if "content" in parameter:
            schema = parameter["content"]["application/json"]["schema"]
            yield from find_invalid(schema, orjson.loads(value))
        elif parameter:
            yield from find_invalid(parameter["schema"], _read(parameter["schema"], value))


def _read(schema: Mapping[str, Any], text: str) -> object:
    """A parameter's value, from what stands for it in a query or a header."""
    return int(text) if schema.get("type") == "integer" and text.isdecimal() else text


def find_faults(answer: Answer) -> list[str]:
    """Where an answer is not as the description has it; empty where it is.

    Excepted: paths and methods that are not there, which are no operations; preflights (CORS); and a
    500, which is a mistake of ours; a test that gets one has broken the database under the service.
    """
    methods = _find_path(answer.path)
    method = "get" if answer.method == "HEAD" else answer.method.lower()
    if answer.status == 500 or not methods or method not in methods:
        excepted = answer.status >= 400 or answer.method == "OPTIONS"
        return [] if excepted else [f"{answer.status} from what is not described"]
    described = methods[method]["responses"].get(str(answer.status))
    if described is None:
        return [f"status {answer.status} is not listed: {answer.body!r}"]
    described = _resolve(described)
    faults = list(_find_header_faults(answer.headers, described["headers"]))
    if answer.method != "HEAD":
        faults += _find_body_faults(answer, described.get("content"))
    return faults


def _find_header_faults(given: Mapping[str, str], described: dict[str, Any]) -> Iterator[str]:
    """Each header that is described has its form; none that others have is there undescribed."""
    for name, reference in described.items():
        header = _resolve(reference)
        if name not in given:
            if header.get("required"):
                yield f"no {name}"
            continue
        for fault in find_invalid(header["schema"], _read(header["schema"], given[name])):
            yield f"{name}: {fault}"
    for name in document_of_defaults()["components"]["headers"]:
        if name in given and name not in described:
            yield f"{name} is not listed"


def _find_body_faults(answer: Answer, content: dict[str, Any] | None) -> list[str]:
    if content is None:
        return ["a body where none is listed"] if answer.body else []
    content_type = answer.headers.get("Content-Type", "").partition(";")[0]
    if content_type not in content:
        return [f"{content_type} is not listed"]
    text = content_type.startswith("text/")
    body = answer.body.decode() if text else orjson.loads(answer.body)
    return find_invalid(content[content_type]["schema"], body)


def find_invalid(schema: Mapping[str, Any], value: object) -> list[str]:
    """Where a value is not as a schema of the description has it."""
    return [
        f"{error.message} at {error.instance_path}"
        for error in compile_schema(orjson.dumps(schema)).iter_errors(value)
    ]


@functools.cache
def document_of_defaults() -> dict[str, Any]:
    return document(ROUTES, Settings())


@functools.cache
def _find_path(path: str) -> dict[str, Any] | None:
    """The methods of a path, by name."""
    for template, methods in document_of_defaults()["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", _UUID, re.escape(template))
        if re.fullmatch(f"{pattern}/?", path):
            found: dict[str, Any] = methods
            return found
    return None


def _resolve(described: dict[str, Any]) -> dict[str, Any]:
    """What a reference to a component stands for."""
    if "$ref" not in described:
        return described
    found: dict[str, Any] = document_of_defaults()
    for name in described["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


@functools.cache
def compile_schema(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    """Compiled once in a process for each schema; it refers to the document's components."""
    whole = {**orjson.loads(schema), "components": document_of_defaults()["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
