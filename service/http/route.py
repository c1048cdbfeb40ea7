"""A row of the route table."""

from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler


class Route(NamedTuple):
    method: str
    path: str
    handler: Handler
    access: Callable[[web.Application, Handler], Handler]


def spellings(path: str) -> tuple[str, ...]:
    """Return the path of a route with and without a trailing slash; the root has only one."""
    return (path,) if path == "/" else (path, f"{path}/")


# The routes that the application serves.
SERVED: web.AppKey[tuple[Route, ...]] = web.AppKey("served")
