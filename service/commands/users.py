"""``shinkei users``: accounts, with the fields and filters of ``/api/v1/users``."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from service.commands.output import json_option

if TYPE_CHECKING:
    from aiohttp import web

# Cursors are bound to a path. With the API's path, either side accepts the other's cursors.
_PATH = "/api/v1/users"
_COLUMNS = ("id", "email", "name", "role", "status")


@click.group()
def command() -> None:
    """List, show, suspend and reinstate accounts."""


@command.command("list")
@click.option("--email", help="Exact email, ignoring case.")
@click.option("--q", help="Text contained in the email or name.")
@click.option("--status", help="active, suspended or deleting.")
@click.option("--role", help="user, support or admin.")
@click.option("--created-after", metavar="TIME", help="RFC 3339, such as 2026-01-31T12:00:00Z.")
@click.option("--created-before", metavar="TIME")
@click.option("--settings", metavar="JSON", help="JSON object contained in the settings.")
@click.option("--sort", help="created_at, -created_at (default), email or -email.")
@click.option("--limit", help="Page size: 50 by default, 200 at most.")
@click.option("--cursor", help="Continue where an earlier list ended.")
@click.option("--all", "whole", is_flag=True, help="All pages, from the first or --cursor on.")
@json_option
def list_(whole: bool, as_json: bool, **filters: str | None) -> None:
    """List accounts, filtered and sorted.

    In a pipe, prints one line per account with tab-separated values.
    """
    from service.admin.schemas import LIST_USERS
    from service.commands.arguments import load
    from service.commands.connection import run

    if whole:
        if filters["limit"] is not None:
            raise click.UsageError("--all and --limit cannot be combined.")
        filters["limit"] = "200"
    query = load(LIST_USERS, filters)
    printed = _print_json if as_json else _print_tables
    run(lambda app: printed(_pages(app, query, whole)))


async def _pages(
    app: "web.Application", query: dict[str, Any], whole: bool
) -> AsyncIterator[dict[str, Any]]:
    """Yield response bodies of GET /users: one page, or if ``whole`` all that follow too."""
    from service.admin import lists, schemas
    from service.context import SETTINGS
    from service.db.transactions import read
    from service.http.pages import make_page, open_cursor
    from service.json_codec import plain

    secret_key, keyset = app[SETTINGS].secret_key, lists.SORTS[query["sort"]]
    while True:
        after = open_cursor(secret_key, _PATH, query, keyset)
        rows = await read(app, lists.list_accounts, query, keyset, after, query["limit"] + 1)
        page = make_page(secret_key, _PATH, query, keyset, rows, schemas.ADMIN_USER)
        yield plain(page)
        if not (whole and page["has_more"]):
            return
        query["cursor"] = page["next_cursor"]


async def _print_json(pages: AsyncIterator[dict[str, Any]]) -> None:
    """Stream one document with an account per line, as a million accounts do not fit in memory."""
    from service.commands.output import to_json

    before = '{"items": ['
    async for page in pages:
        for account in page["items"]:
            click.echo(f"{before}\n{to_json(account)}", nl=False)
            before = ","
    end = {"next_cursor": page["next_cursor"], "has_more": page["has_more"]}
    click.echo(f"{before if before != ',' else ''}\n], {to_json(end)[1:]}")


async def _print_tables(pages: AsyncIterator[dict[str, Any]]) -> None:
    """Print a table per page, or plain lines in a pipe."""
    from service.commands.output import print_table, to_seconds

    async for page in pages:
        rows = [
            [account[name] for name in _COLUMNS] + [to_seconds(account["created_at"])]
            for account in page["items"]
        ]
        print_table((*_COLUMNS, "created_at"), rows, folded=("email", "name"))
    if page["has_more"]:
        click.echo(f"There are more. Use --all, or --cursor {page['next_cursor']}", err=True)


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@json_option
def show(account: str, as_json: bool) -> None:
    """Show one account."""
    from service.admin.schemas import ADMIN_USER
    from service.commands.arguments import check_account, get_account
    from service.commands.connection import run
    from service.commands.output import print_json, print_table, to_json
    from service.db.transactions import read
    from service.json_codec import plain

    wanted = check_account(account)
    user = plain(ADMIN_USER.dump(run(lambda app: read(app, get_account, wanted))))
    if as_json:
        print_json(user)
        return
    user["settings"] = to_json(user["settings"])
    print_table(("field", "value"), list(user.items()), folded=("value",))


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@click.option("--reason", required=True, help="Reason for other administrators to read.")
@click.option("--until", metavar="TIME", help="End of the suspension (RFC 3339); none by default.")
def suspend(account: str, reason: str, until: str | None) -> None:
    """Suspend an account: refuse sign-in and end all its sessions."""
    from service.admin.schemas import SUSPEND_USER
    from service.commands.arguments import check_account, load
    from service.commands.connection import run
    from service.commands.output import visible
    from service.db.transactions import write

    wanted, given = check_account(account), load(SUSPEND_USER, {"reason": reason, "until": until})
    user = run(lambda app: write(app, _suspend, wanted, given))
    click.echo(f"suspended  {visible(user['email'])}")


async def _suspend(conn: Any, wanted: str, given: dict[str, Any]) -> Any:
    from service.admin import changes
    from service.commands.arguments import get_account

    user = await get_account(conn, wanted)
    return await changes.suspend(conn, user["id"], given["reason"], given.get("until"))


@command.command()
@click.argument("account", metavar="ID|EMAIL")
def reinstate(account: str) -> None:
    """Reactivate an account that is suspended or being deleted."""
    from service.commands.arguments import check_account
    from service.commands.connection import run
    from service.commands.output import visible
    from service.db.transactions import write

    wanted = check_account(account)
    user = run(lambda app: write(app, _reinstate, wanted))
    click.echo(f"active  {visible(user['email'])}")


async def _reinstate(conn: Any, wanted: str) -> Any:
    from service.admin import changes
    from service.commands.arguments import get_account

    user = await get_account(conn, wanted)
    return await changes.reinstate(conn, user["id"])
