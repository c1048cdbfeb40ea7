"""``shinkei migrate``."""

import dataclasses

import click

from service.commands.output import json_option


@click.command()
@click.option("--status", is_flag=True, help="List the migrations and their state; change nothing.")
@click.option(
    "--rollback", type=click.IntRange(1), metavar="N", help="Roll back the newest N migrations."
)
@json_option
def command(status: bool, rollback: int | None, as_json: bool) -> None:
    """Apply, list or roll back migrations.

    Safe to run from any number of replicas at once: each migration is applied once.
    """
    from service.commands.connection import database_of, read_settings, say_which_database
    from service.commands.output import print_json, print_table, progress
    from service.db import migrations as migrate
    from service.telemetry.logs import configure_logging

    if status and rollback:
        raise click.UsageError("--status and --rollback cannot be combined.")
    settings = read_settings()
    configure_logging(settings)
    if settings.direct_database is not None:
        settings = dataclasses.replace(settings, database=settings.direct_database)
    with database_of(settings) as ready:
        database, wait_s = ready.database, ready.db_connect_timeout_s
        assert database is not None  # noqa: S101
        with progress("waiting for the database"):
            migrate.reach(database, wait_s)
        say_which_database(settings)
        with progress("reading the migrations") as say:
            if status:
                known = migrate.list_status(database, wait_s)
            elif rollback:
                ids = migrate.roll_back(database, rollback, wait_s, say)
            else:
                ids = migrate.apply_pending(database, wait_s, say=say)
    done = "rolled back" if rollback else "applied"
    if as_json and status:
        print_json({"items": [{"id": id_, "applied": applied} for id_, applied in known]})
    elif as_json:
        print_json({done.replace(" ", "_"): ids})
    elif status:
        rows = [("applied" if applied else "pending", id_) for id_, applied in known]
        print_table(("state", "migration"), rows)
    else:
        for id_ in ids or ["none"]:
            click.echo(f"{done}  {id_}")
