"""``shinkei keys``: the keys that sign access tokens. docs/accounts.md shows the timeline."""

from typing import TYPE_CHECKING, Any

import click

from service.commands.operator import name_operator, operator_option
from service.commands.output import json_option

if TYPE_CHECKING:
    from aiohttp import web

    from service.audit.events import Operator


@click.group()
def command() -> None:
    """List and rotate signing keys."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the published keys.

    One key signs. Older keys only verify until they retire; a newer one waits for its turn to sign.
    """
    from service.auth.schemas import SIGNING_KEY
    from service.commands.connection import run
    from service.commands.output import print_json, print_table, to_seconds
    from service.json_codec import plain

    keys = plain(SIGNING_KEY.dump(run(_list), many=True))
    if as_json:
        print_json({"items": keys})
        return
    times = ("created_at", "signs_from", "retires_at")
    rows = [
        [key["id"], key["algorithm"], key["state"], *(to_seconds(key[time]) for time in times)]
        for key in keys
    ]
    print_table(("id", "algorithm", "state", *times), rows)


async def _list(app: "web.Application") -> list[dict[str, Any]]:
    from service.auth import queries
    from service.auth.signing_keys import describe, verifies_s
    from service.context import SETTINGS
    from service.db.transactions import read

    return describe(await read(app, queries.list_signing_keys, verifies_s(app[SETTINGS])))


@command.command()
@click.option("--now", is_flag=True, help="Sign with it at once, before every cache has it.")
@click.option(
    "--revoke",
    is_flag=True,
    help="Sign with it at once and delete all other keys: within 10 seconds no process accepts"
    " their tokens. Sessions survive; clients refresh.",
)
@operator_option
def rotate(now: bool, revoke: bool, operator: str | None) -> None:
    """Replace the signing key.

    The new key starts signing in 10 minutes, when every cache of the published keys has it. The
    old key verifies until its last token has expired, and is then deleted.
    """
    from service.commands.connection import run

    by = name_operator(operator)
    key = run(lambda app: _rotate(app, by, now=now, revoke=revoke))
    click.echo(f"{key['id']}  signs from {key['signs_from']:%Y-%m-%dT%H:%M:%SZ}")


async def _rotate(app: "web.Application", by: "Operator", *, now: bool, revoke: bool) -> Any:
    from service.auth.signing_keys import revoke_keys, rotate_keys
    from service.context import SETTINGS
    from service.db.transactions import write

    if revoke:
        return await write(app, revoke_keys, app[SETTINGS], by)
    return await write(app, rotate_keys, app[SETTINGS], by, now=now)
