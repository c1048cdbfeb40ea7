"""``shinkei keys``: the keys that sign access tokens, and SECRET_KEY, which seals them.

docs/accounts.md shows the timeline of the former, docs/deployment.md how to replace the latter.
"""

from typing import TYPE_CHECKING, Any

import click

from service.commands.operator import name_operator, operator_option
from service.commands.output import json_option

if TYPE_CHECKING:
    from aiohttp import web

    from service.audit.events import Operator
    from service.resealing import Resealed


@click.group()
def command() -> None:
    """List and rotate signing keys, and replace SECRET_KEY."""


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


@command.command()
@operator_option
@json_option
def reseal(operator: str | None, as_json: bool) -> None:
    """Seal all that SECRET_KEY_PREVIOUS has sealed with SECRET_KEY.

    Prints for each kind how many values were moved, and how many neither key opens. Run it beside
    the service, once all replicas have the new SECRET_KEY. It may be stopped and repeated.
    """
    from service.commands.connection import run
    from service.commands.output import print_json, print_table
    from service.exceptions import StartError
    from service.sessions.handlers import RETRY_GRACE_S

    by = name_operator(operator)
    results = run(lambda app: _reseal(app, by))
    if as_json:
        print_json({"items": [result._asdict() for result in results]})
    else:
        print_table(("kind", "moved", "unopened"), results)
    unopened = [f"{result.unopened} of {result.kind}" for result in results if result.unopened]
    if unopened:
        raise StartError(
            "neither SECRET_KEY nor SECRET_KEY_PREVIOUS opens "
            f"{', '.join(unopened)}; all else is sealed with SECRET_KEY"
        )
    if not as_json:
        click.echo(
            "SECRET_KEY_PREVIOUS can be removed, if all replicas have had this SECRET_KEY for"
            f" {RETRY_GRACE_S // 60} minutes.",
            err=True,
        )


async def _reseal(app: "web.Application", by: "Operator") -> "list[Resealed]":
    from service.commands.output import progress
    from service.context import SETTINGS
    from service.resealing import SEALED, reseal
    from service.settings import SettingsError

    if not app[SETTINGS].secret_key_previous:
        raise SettingsError(
            "SECRET_KEY_PREVIOUS: required to reseal; expected the key that SECRET_KEY replaces"
        )
    results = []
    with progress("resealing") as say:
        for column in SEALED:
            say(f"resealing: {column.purpose}")
            results.append(await reseal(app, by, column))
    return results
