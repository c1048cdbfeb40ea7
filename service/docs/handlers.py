"""The page at ``/docs`` and its files: ours, and Swagger UI's, which is bundled in ``swagger_ui/``.

Nothing is asked of any other host. The files are kept in memory from when they are first asked for;
browsers keep them too, and ask each time whether they have changed.
"""

import functools
import hashlib
from pathlib import Path

from aiohttp import hdrs, web

from service.http.descriptions import describe_file

# Scripts and styles from here alone, none inline. Swagger UI's stylesheet has its pictures in
# itself, as data: URLs. No form is ever sent: page.js reads it.
PAGE_POLICY = (
    "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none';"
    " connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'"
)
_HERE = Path(__file__).parent


@describe_file("A page.", "text/html")
async def page(request: web.Request) -> web.Response:
    """Show the documentation of this API."""
    response = _answer(request, "page.html", "text/html")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


@describe_file("A script.", "text/javascript")
async def page_script(request: web.Request) -> web.Response:
    """Return the script of the documentation page."""
    return _answer(request, "page.js", "text/javascript")


@describe_file("A stylesheet.", "text/css")
async def page_style(request: web.Request) -> web.Response:
    """Return the stylesheet of the documentation page."""
    return _answer(request, "page.css", "text/css")


@describe_file("A script.", "text/javascript")
async def swagger_ui_script(request: web.Request) -> web.Response:
    """Return the script of Swagger UI, as published."""
    return _answer(request, "swagger_ui/swagger-ui-bundle.js.gz", "text/javascript")


@describe_file("A stylesheet.", "text/css")
async def swagger_ui_style(request: web.Request) -> web.Response:
    """Return the stylesheet of Swagger UI, as published."""
    return _answer(request, "swagger_ui/swagger-ui.css.gz", "text/css")


def _answer(request: web.Request, name: str, content_type: str) -> web.Response:
    """The file, compressed for whoever takes gzip; 304 for whoever has it."""
    compressed = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
    body, tag = _load(name, compressed)
    headers = {
        hdrs.CACHE_CONTROL: "public, no-cache",
        hdrs.ETAG: f'"{tag}"',
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
    }
    if any(given.value in (tag, "*") for given in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    if compressed:
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=body, headers=headers, content_type=content_type, charset="utf-8")


@functools.cache
def _load(name: str, compressed: bool) -> tuple[bytes, str]:
    """The file, as it is or compressed, and its hash."""
    import gzip

    body = (_HERE / name).read_bytes()
    if compressed and not name.endswith(".gz"):
        body = gzip.compress(body, mtime=0)
    elif name.endswith(".gz") and not compressed:
        body = gzip.decompress(body)
    return body, hashlib.sha256(body).hexdigest()[:32]
