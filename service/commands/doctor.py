"""``shinkei doctor``."""

import click

from service.commands.output import json_option

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check an installation and say how to fix it.

    Checks settings, limits, disk, database, collation, TLS, migrations, privileges, pool, clock,
    keys, password hashes, the origin of links and mail. Changes nothing. Exits with 1 if a check
    fails.
    """
    import os

    from service.commands.output import print_json, visible
    from service.doctor.checkup import examine

    found = []
    for finding in examine(os.environ):
        found.append(finding)
        if not as_json:
            status = click.style(f"{finding.status:4}", fg=_COLOURS[finding.status])
            fix = f" -> {finding.fix}" if finding.fix else ""
            click.echo(f"{status}  {visible(f'{finding.check}: {finding.detail}.{fix}')}")
    failed = any(finding.status == "fail" for finding in found)
    if as_json:
        worst = "fail" if failed else max((finding.status for finding in found), default="ok")
        print_json({"status": worst, "findings": [finding._asdict() for finding in found]})
    ctx.exit(1 if failed else 0)
