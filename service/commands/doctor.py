"""``shinkei doctor``."""

import click

from service.commands.output import json_option

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Find out what is wrong with a set-up.

    Looks at settings, database, TLS, migrations, pool, clock, keys, passwords, disk and mail, and
    says of each what to do. It changes nothing. Exits with 1 where something fails.
    """
    import os

    from service.commands.output import print_json, visible
    from service.doctor.checkup import examine

    found = []
    for finding in examine(os.environ):
        found.append(finding)
        if not as_json:
            status = click.style(f"{finding.status:4}", fg=_COLOURS[finding.status])
            mend = f" -> {finding.mend}" if finding.mend else ""
            click.echo(f"{status}  {visible(f'{finding.check}: {finding.detail}.{mend}')}")
    failed = any(finding.status == "fail" for finding in found)
    if as_json:
        worst = "fail" if failed else max((finding.status for finding in found), default="ok")
        print_json({"status": worst, "findings": [finding._asdict() for finding in found]})
    ctx.exit(1 if failed else 0)
