"""Serves the API description."""

import asyncio
import hashlib
from dataclasses import dataclass

import orjson
from aiohttp import web

from service.context import SETTINGS
from service.http.descriptions import describe_file
from service.http.responses import FileResponse
from service.http.route import SERVED, Route
from service.openapi.document import document
from service.settings import Settings


@describe_file("The OpenAPI 3.1 document.", "application/json", "object")
async def spec(request: web.Request) -> web.Response:
    """Describe this API in OpenAPI 3.1."""
    body, tag = await request.app[RENDERING].get(request.app)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "public, no-cache"}
    return FileResponse(request, body, content_type="application/json", headers=headers)


@dataclass(slots=True)
class Rendering:
    """The document and its tag, rendered once, for the first request."""

    task: "asyncio.Task[tuple[bytes, str]] | None" = None

    async def get(self, app: web.Application) -> tuple[bytes, str]:
        if self.task is None:
            # In a thread, because it is slow.
            rendering = asyncio.to_thread(_render, app[SERVED], app[SETTINGS])
            self.task = asyncio.create_task(rendering)
        return await asyncio.shield(self.task)


RENDERING = web.AppKey("rendering", Rendering)


def _render(routes: tuple[Route, ...], settings: Settings) -> tuple[bytes, str]:
    body = orjson.dumps(document(routes, settings))
    return body, hashlib.sha256(body).hexdigest()[:32]
