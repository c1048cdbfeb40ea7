"""Descriptions that handlers and guards carry for the API description.

``service.openapi`` adds whatever follows from the access, the body, the query and so on.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from aiohttp.typedefs import Handler
from marshmallow import Schema

from service.http.problems import ProblemType
from service.http.route import Route
from service.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Shape(NamedTuple):
    """A named JSON Schema, for JSON that no marshmallow schema describes.

    A Shape or a marshmallow schema nested in it becomes a reference to that schema.
    """

    name: str
    schema: Mapping[str, Any]


class Success(NamedTuple):
    """A successful response, and the headers that this route adds to it.

    ``when`` says with which settings the route gives it, if not with all.
    """

    description: str
    body: Schema | Shape | Mapping[str, Any] | None = None
    headers: tuple[str, ...] = ()
    example: object = None
    content_type: str = "application/json"
    when: Callable[[Settings], bool] | None = None


class Description(NamedTuple):
    """A route's request and responses, without the parts that ``service.openapi`` derives."""

    responses: Mapping[int, Success]
    body: Schema | None
    body_required: bool
    example: Mapping[str, Any] | None
    query: Schema | None
    problems: tuple[ProblemType, ...]
    idempotent: bool
    if_match: Literal["", "honoured", "required"]
    database: bool
    body_max_bytes: int | None
    timeout_s: float | None
    streams_body: bool


class Access(NamedTuple):
    """The callers a route accepts, in words, and the problems that others get.

    If ``optional``, callers without an access token may have another proof.
    """

    words: str
    problems: tuple[ProblemType, ...]
    optional: bool


def describe(
    responses: Mapping[int, Success],
    *,
    body: Schema | None = None,
    body_required: bool = True,
    example: Mapping[str, Any] | None = None,
    query: Schema | None = None,
    problems: tuple[ProblemType, ...] = (),
    idempotent: bool = False,
    if_match: Literal["", "honoured", "required"] = "",
    database: bool = True,
    body_max_bytes: int | None = None,
    timeout_s: float | None = None,
    streams_body: bool = False,
) -> Callable[[Decorated], Decorated]:
    """Attach a description to a handler, whose docstring provides the summary and details.

    ``example`` is an example body; ``database`` says whether the route needs the database.
    ``body_max_bytes`` and ``timeout_s`` replace the limits that most routes have. A handler that
    ``streams_body`` reads the body itself, with limits of its own.
    """

    def attach(handler: Decorated) -> Decorated:
        vars(handler)["description"] = Description(
            responses,
            body,
            body_required,
            example,
            query,
            problems,
            idempotent,
            if_match,
            database,
            body_max_bytes,
            timeout_s,
            streams_body,
        )
        return handler

    return attach


def describe_file(
    description: str, content_type: str, schema_type: str = "string"
) -> Callable[[Decorated], Decorated]:
    """Attach the description of a file that clients cache and revalidate."""
    body = {"type": schema_type}
    return describe(
        {200: Success(description, body, ("ETag",), content_type=content_type)}, database=False
    )


def describe_access(
    words: str, *problems: ProblemType, optional: bool = False
) -> Callable[[Decorated], Decorated]:
    """Attach the callers that a guard accepts. A guard without problems accepts everyone."""

    def attach(guard: Decorated) -> Decorated:
        vars(guard)["access"] = Access(words, problems, optional)
        return guard

    return attach


def description_of(handler: Handler) -> Description:
    description: Description = vars(handler)["description"]
    return description


def find_description(handler: Handler) -> Description | None:
    """Return the description of a handler; those of unknown paths and methods have none."""
    return getattr(handler, "description", None)


def access_of(guard: Callable[..., Handler]) -> Access:
    access: Access = vars(guard)["access"]
    return access


def is_revalidated(route: Route) -> bool:
    """Return whether clients can compare the resource's ETag with one that they know."""
    responses = description_of(route.handler).responses.values()
    return route.method == "GET" and any("ETag" in success.headers for success in responses)


def ref(name: str) -> dict[str, Any]:
    """Return a reference to the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these members, all required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that also accepts null.

    Null is one more type, because generators of clients read this better than ``anyOf``.
    """
    types = schema["type"]
    if isinstance(types, list):
        return dict(schema)
    also = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [types, "null"], **also}
