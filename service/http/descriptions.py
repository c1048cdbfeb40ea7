"""What a handler and a guard say about themselves in the API's description (``service.openapi``).

What follows from the access, the body, the query and so on is added there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from aiohttp.typedefs import Handler
from marshmallow import Schema

from service.http.problems import ProblemType

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Shape(NamedTuple):
    """A JSON Schema with a name, for JSON that no marshmallow schema describes.

    Anywhere in it, a Shape or a marshmallow schema stands for a reference to itself.
    """

    name: str
    schema: Mapping[str, Any]


class Success(NamedTuple):
    """A response that is no problem, and the headers that this route adds to it."""

    description: str
    body: Schema | Shape | Mapping[str, Any] | None = None
    headers: tuple[str, ...] = ()
    example: object = None
    content_type: str = "application/json"


class Description(NamedTuple):
    """What a route takes and responds, beyond what follows from that."""

    responses: Mapping[int, Success]
    body: Schema | None
    example: Mapping[str, Any] | None
    query: Schema | None
    problems: tuple[ProblemType, ...]
    idempotent: bool
    if_match: Literal["", "honoured", "required"]
    database: bool


class Access(NamedTuple):
    """Who may call a route, and the problems that others get."""

    words: str
    problems: tuple[ProblemType, ...]


def describe(
    responses: Mapping[int, Success],
    *,
    body: Schema | None = None,
    example: Mapping[str, Any] | None = None,
    query: Schema | None = None,
    problems: tuple[ProblemType, ...] = (),
    idempotent: bool = False,
    if_match: Literal["", "honoured", "required"] = "",
    database: bool = True,
) -> Callable[[Decorated], Decorated]:
    """Attach a description to a handler, whose docstring gives the summary and more.

    ``example`` is one of the body; ``database`` says whether the route needs the database.
    """

    def attach(handler: Decorated) -> Decorated:
        vars(handler)["description"] = Description(
            responses, body, example, query, problems, idempotent, if_match, database
        )
        return handler

    return attach


def describe_file(
    description: str, content_type: str, schema_type: str = "string"
) -> Callable[[Decorated], Decorated]:
    """Attach the description of a file that clients keep and revalidate."""
    body = {"type": schema_type}
    return describe(
        {
            200: Success(description, body, ("ETag",), content_type=content_type),
            304: Success("The version named in If-None-Match is still current.", None, ("ETag",)),
        },
        database=False,
    )


def describe_access(words: str, *problems: ProblemType) -> Callable[[Decorated], Decorated]:
    """Attach to a guard who it lets through. One without problems lets anyone through."""

    def attach(guard: Decorated) -> Decorated:
        vars(guard)["access"] = Access(words, problems)
        return guard

    return attach


def description_of(handler: Handler) -> Description:
    description: Description = vars(handler)["description"]
    return description


def access_of(guard: Callable[..., Handler]) -> Access:
    access: Access = vars(guard)["access"]
    return access


def ref(name: str) -> dict[str, Any]:
    """A reference to the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(**properties: Any) -> dict[str, Any]:
    """An object with all of these members and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}
