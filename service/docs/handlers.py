"""The pages at ``/`` and ``/docs``, and their files: our own and Swagger UI's (``swagger_ui/``).

The pages load nothing from other hosts. Files are cached in memory after their first use. Browsers
cache them too, and revalidate them each time.
"""

import functools
import hashlib
from pathlib import Path

from aiohttp import hdrs, web

from service import __version__
from service.http.codings import accepts_gzip
from service.http.descriptions import describe_file
from service.http.request_heads import text_of_list
from service.http.responses import FileResponse

# Only our own styles, none inline. Icons are data: URLs, also in Swagger UI's stylesheet. No form
# is ever submitted: scripts read it.
HOME_POLICY = (
    "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none';"
    " img-src data:; style-src 'self'"
)
# Also our own scripts, none inline, and the API.
DOCS_POLICY = f"{HOME_POLICY}; connect-src 'self'; script-src 'self'"
_HERE = Path(__file__).parent


@describe_file("A page that leads to the others.", "text/html")
async def home(request: web.Request) -> web.Response:
    """Name the service and its version, and link the documentation.

    The response is the page whatever the client accepts.
    """
    response = _serve_file(request, "home.html", "text/html")
    response.headers["Content-Security-Policy"] = HOME_POLICY
    return response


@describe_file("The documentation page.", "text/html")
async def page(request: web.Request) -> web.Response:
    """Show the API documentation."""
    response = _serve_file(request, "page.html", "text/html")
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response


@describe_file("A script.", "text/javascript")
async def page_script(request: web.Request) -> web.Response:
    """Return the script of the documentation page."""
    return _serve_file(request, "page.js", "text/javascript")


@describe_file("A script.", "text/javascript")
async def session_script(request: web.Request) -> web.Response:
    """Return the part of the script that signs in and sends requests."""
    return _serve_file(request, "session.js", "text/javascript")


@describe_file("A script.", "text/javascript")
async def factors_script(request: web.Request) -> web.Response:
    """Return the part of the script that changes second factors."""
    return _serve_file(request, "factors.js", "text/javascript")


@describe_file("A stylesheet.", "text/css")
async def page_style(request: web.Request) -> web.Response:
    """Return the stylesheet of the documentation page."""
    return _serve_file(request, "page.css", "text/css")


@describe_file("A script.", "text/javascript")
async def swagger_ui_script(request: web.Request) -> web.Response:
    """Return the script of Swagger UI, as published."""
    return _serve_file(request, "swagger_ui/swagger-ui-bundle.js.gz", "text/javascript")


@describe_file("A stylesheet.", "text/css")
async def swagger_ui_style(request: web.Request) -> web.Response:
    """Return the stylesheet of Swagger UI, as published."""
    return _serve_file(request, "swagger_ui/swagger-ui.css.gz", "text/css")


def _serve_file(request: web.Request, name: str, content_type: str) -> web.Response:
    """Respond with the file, gzipped if the client accepts it."""
    compressed = accepts_gzip(text_of_list(request, hdrs.ACCEPT_ENCODING))
    body, tag = _load(name, compressed)
    headers = {
        hdrs.CACHE_CONTROL: "public, no-cache",
        hdrs.ETAG: f'"{tag}"',
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
    }
    if compressed:
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return FileResponse(request, body, headers=headers, content_type=content_type, charset="utf-8")


@functools.cache
def _load(name: str, compressed: bool) -> tuple[bytes, str]:
    """Return the file, gzipped if ``compressed``, and a hash of the result.

    Pages name the version of the service.
    """
    import gzip

    body = (_HERE / name).read_bytes()
    if name.endswith(".html"):
        body = body.replace(b"{{version}}", __version__.encode())
    if compressed and not name.endswith(".gz"):
        body = gzip.compress(body, mtime=0)
    elif name.endswith(".gz") and not compressed:
        body = gzip.decompress(body)
    return body, hashlib.sha256(body).hexdigest()[:32]
