"""``/docs``: the list of routes as a page, made from the route table itself."""

import html

from aiohttp import web

from service import __version__

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shinkei {version}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
          padding: 0 1rem }}
  table {{ border-collapse: collapse; width: 100% }}
  th, td {{ border-bottom: 1px solid #ddd; padding: .4rem .8rem .4rem 0; text-align: left }}
  code {{ font: 14px ui-monospace, monospace }}
</style>
<h1>Shinkei {version}</h1>
<p>Bodies are JSON. Errors are <code>application/problem+json</code> (RFC 9457) with a stable
<code>code</code>. Where an access token is asked for, send
<code>Authorization: Bearer &lt;access_token&gt;</code>, as registration and sign-in give it.</p>
<table>
<thead><tr><th>Method<th>Path<th>What it does<th>Access</thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""


def _render() -> str:
    from service.routes import ROUTES

    rows = (
        f"<tr><td><code>{route.method}</code><td><code>{html.escape(route.path)}</code>"
        f"<td>{html.escape((route.handler.__doc__ or '').partition(chr(10))[0])}"
        f"<td>{route.access.__name__.replace('_', ' ')}"
        for route in ROUTES
    )
    return _PAGE.format(version=__version__, rows="\n".join(rows))


async def page(request: web.Request) -> web.Response:
    """This page."""
    return web.Response(
        text=_render(),
        content_type="text/html",
        headers={
            "Content-Security-Policy": "default-src 'none'; base-uri 'none';"
            " frame-ancestors 'none'; style-src 'unsafe-inline'",
        },
    )
