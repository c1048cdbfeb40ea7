"""Serves the API description."""

import asyncio
import functools
import hashlib

import orjson
from aiohttp import web

from service.context import SETTINGS
from service.http.descriptions import describe_file
from service.http.route import SERVED, Route
from service.openapi.document import document
from service.settings import Settings


@describe_file("The OpenAPI 3.1 document.", "application/json", "object")
async def spec(request: web.Request) -> web.Response:
    """Describe this API in OpenAPI 3.1."""
    # In a thread, because the first call is slow.
    body, tag = await asyncio.to_thread(_render, request.app[SERVED], request.app[SETTINGS])
    headers = {"ETag": f'"{tag}"', "Cache-Control": "public, no-cache"}
    if any(given.value in (tag, "*") for given in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", headers=headers)


@functools.lru_cache(maxsize=1)
def _render(routes: tuple[Route, ...], settings: Settings) -> tuple[bytes, str]:
    body = orjson.dumps(document(routes, settings))
    return body, hashlib.sha256(body).hexdigest()[:32]
