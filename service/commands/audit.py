"""``shinkei audit``: who did what to which account, as in ``/api/v1/audit-events``."""

from typing import TYPE_CHECKING, Any

import click

from service.commands.output import json_option, to_json, to_seconds

if TYPE_CHECKING:
    from aiohttp import web

_PATH = "/api/v1/audit-events"
_COLUMNS = ("occurred_at", "action", "actor_id", "operator", "subject_id", "ip", "before", "after")


@click.group()
def command() -> None:
    """List audit events."""


@command.command("list")
@click.option("--actor", metavar="ID|EMAIL", help="Account that made the change.")
@click.option("--subject", metavar="ID|EMAIL", help="Account that was changed.")
@click.option("--action", help="Action, such as user.suspend.")
@click.option("--occurred-after", metavar="TIME", help="RFC 3339, such as 2026-01-31T12:00:00Z.")
@click.option("--occurred-before", metavar="TIME")
@click.option("--limit", help="Page size: 50 by default, 200 at most.")
@click.option("--cursor", help="Continue where an earlier list ended.")
@click.option("--all", "whole", is_flag=True, help="All pages, from the first or --cursor on.")
@json_option
def list_(
    actor: str | None, subject: str | None, whole: bool, as_json: bool, **filters: str | None
) -> None:
    """List audit events, filtered and newest first.

    A change has an actor if it was made over HTTP, an operator if it was made by a command, and
    neither if it was made by a job. In a pipe, prints one line per event with tab-separated values.
    """
    from service.audit.schemas import LIST_EVENTS
    from service.commands.arguments import check_account, load
    from service.commands.connection import run
    from service.commands.pages import take_all

    if whole:
        take_all(filters)
    query = load(LIST_EVENTS, filters)
    given = {"actor_id": actor, "subject_id": subject}
    wanted = {name: check_account(text) for name, text in given.items() if text is not None}
    run(lambda app: _list(app, query, wanted, whole=whole, as_json=as_json))


async def _list(
    app: "web.Application",
    query: dict[str, Any],
    accounts: dict[str, str],
    *,
    whole: bool,
    as_json: bool,
) -> None:
    from service.audit import queries
    from service.audit.schemas import AUDIT_EVENT
    from service.commands.arguments import get_account_id
    from service.commands.pages import Listing, fetch_pages, print_json_pages, print_table_pages
    from service.db.transactions import read

    for name, account in accounts.items():
        query[name] = await read(app, get_account_id, account)
    listing = Listing(_PATH, queries.NEWEST_FIRST, queries.list_events, AUDIT_EVENT)
    pages = fetch_pages(app, listing, query, whole)
    if as_json:
        await print_json_pages(pages)
    else:
        await print_table_pages(pages, _COLUMNS, _to_row, folded=("before", "after"))


def _to_row(event: dict[str, Any]) -> list[object]:
    row: list[object] = [to_seconds(event["occurred_at"]), *(event[one] for one in _COLUMNS[1:-2])]
    changes = (event["before"], event["after"])
    return row + ["" if change is None else to_json(change) for change in changes]
