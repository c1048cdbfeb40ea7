"""Lists of the API, printed page by page."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from service.commands.output import print_table, to_json

if TYPE_CHECKING:
    from aiohttp import web
    from marshmallow import Schema

    from service.db.listing import Keyset

PAGE_MAX = "200"


class Listing(NamedTuple):
    """A list of the API.

    ``fetch`` takes a connection, the query, a place and a limit. Cursors are bound to ``path``, so
    that either side accepts the other's.
    """

    path: str
    keyset: "Keyset"
    fetch: Callable[..., Any]
    schema: "Schema"


def take_all(filters: dict[str, str | None]) -> None:
    """Set the largest page size for ``--all``. Raises UsageError if ``--limit`` is given too."""
    if filters["limit"] is not None:
        raise click.UsageError("--all and --limit cannot be combined.")
    filters["limit"] = PAGE_MAX


async def fetch_pages(
    app: "web.Application", listing: Listing, query: dict[str, Any], whole: bool
) -> AsyncIterator[dict[str, Any]]:
    """Yield response bodies of the list: one page, or if ``whole`` all that follow too."""
    from service.context import SETTINGS
    from service.db.transactions import read
    from service.http.pages import make_page, open_cursor
    from service.json_codec import plain

    settings = app[SETTINGS]
    path, keyset, fetch, schema = listing
    while True:
        after = open_cursor(settings.secret_keys, path, query, keyset)
        rows = await read(app, fetch, query, after, query["limit"] + 1)
        page = make_page(settings.secret_key, path, query, keyset, rows, schema)
        yield plain(page)
        if not (whole and page["has_more"]):
            return
        query["cursor"] = page["next_cursor"]


async def print_json_pages(pages: AsyncIterator[dict[str, Any]]) -> None:
    """Stream one document with an item per line, as a million items do not fit in memory."""
    before = '{"items": ['
    async for page in pages:
        for item in page["items"]:
            click.echo(f"{before}\n{to_json(item)}", nl=False)
            before = ","
    end = {"next_cursor": page["next_cursor"], "has_more": page["has_more"]}
    click.echo(f"{before if before != ',' else ''}\n], {to_json(end)[1:]}")


async def print_table_pages(
    pages: AsyncIterator[dict[str, Any]],
    columns: Sequence[str],
    to_row: Callable[[dict[str, Any]], Sequence[object]],
    *,
    folded: Sequence[str],
) -> None:
    """Print a table per page, or plain lines in a pipe."""
    async for page in pages:
        print_table(columns, [to_row(item) for item in page["items"]], folded=folded)
    if page["has_more"]:
        click.echo(f"There are more. Use --all, or --cursor {page['next_cursor']}", err=True)
