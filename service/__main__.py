"""The command line: ``shinkei serve``, ``migrate``, ``create-admin``, ``calibrate-passwords``.

Exit codes: 0 done, 1 it could not be done now, 2 a setting or an argument is wrong.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from service import __version__
from service.errors import StartError
from service.settings import Settings, SettingsError, load_settings


def main() -> None:
    """Run the command; a failure is one line on stderr and an exit code, never a traceback."""
    try:
        cli.main(prog_name="shinkei", standalone_mode=True)
    except SettingsError as error:
        sys.exit(_fail(str(error), 2))
    except StartError as error:
        sys.exit(_fail(str(error), 1))


def _fail(message: str, code: int) -> int:
    click.echo(f"shinkei: {message}", err=True)
    return code


@click.group()
@click.version_option(__version__, prog_name="shinkei")
def cli() -> None:
    """Accounts over HTTP and PostgreSQL. Settings come from the environment: see the README."""


@cli.command()
def serve() -> None:
    """Serve until stopped; without DATABASE_URL or DB_HOST, on an embedded PostgreSQL."""
    from service.logs import configure_logging
    from service.server import listen
    from service.server import serve as serve_until_stopped

    settings = load_settings(os.environ)
    configure_logging(settings)
    with listen(settings) as listener, _database_of(settings) as ready:
        serve_until_stopped(ready, listener, _announce(settings))


@cli.command()
@click.option("--status", is_flag=True, help="Only list the migrations and which are applied.")
@click.option("--rollback", type=click.IntRange(1), metavar="N", help="Roll back the newest N.")
def migrate(status: bool, rollback: int | None) -> None:
    """Apply the migrations that are pending; safe to run from any number of replicas at once."""
    from service import migrate as migrations

    if status and rollback:
        raise click.UsageError("--status and --rollback exclude each other")
    with _database_of(load_settings(os.environ)) as settings:
        assert settings.database is not None  # noqa: S101
        wait_s = settings.db_connect_timeout_s
        if status:
            for id_, applied in migrations.list_status(settings.database, wait_s):
                click.echo(f"{'applied' if applied else 'pending'}  {id_}")
        elif rollback:
            for id_ in migrations.roll_back(settings.database, rollback, wait_s):
                click.echo(f"rolled back  {id_}")
        else:
            for id_ in migrations.apply_pending(settings.database, wait_s) or ["nothing: at head"]:
                click.echo(f"applied  {id_}")


@cli.command()
@click.option(
    "--target-ms",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="How long one password hash may take on this machine.",
)
def calibrate_passwords(target_ms: int) -> None:
    """Measure password hashes here, and print the settings that take the target time."""
    from service.auth.passwords import calibrate

    memory_kib, iterations, measured_ms = calibrate(target_ms)
    click.echo(f"# {measured_ms:.0f} ms on this machine, while it hashes one password at a time")
    click.echo(f"PASSWORD_HASH_MEMORY_KIB={memory_kib}")
    click.echo(f"PASSWORD_HASH_ITERATIONS={iterations}")


@cli.command("create-admin")
@click.option("--email", required=True, help="The administrator's address.")
@click.option("--promote", is_flag=True, help="Make an existing account an administrator.")
def create_admin(email: str, promote: bool) -> None:
    """Create an administrator; asks for a password, or reads it from stdin where that is piped."""
    from service.admin import command
    from service.logs import configure_logging

    settings = load_settings(os.environ)
    configure_logging(settings)
    try:
        checked = command.check_email(email)
        password = "" if promote else _read_password()
        with _database_of(settings) as ready:
            if promote:
                command.promote_administrator(ready, checked)
            else:
                command.create_administrator(ready, checked, password)
    except command.ArgumentError as error:
        sys.exit(_fail(str(error), 2))
    click.echo(f"administrator  {checked}")


def _read_password() -> str:
    """Typed twice without echo, or the first line of stdin where that is no terminal."""
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


@contextlib.contextmanager
def _database_of(settings: Settings) -> Iterator[Settings]:
    """The settings with a database in them: the one configured, or the embedded one, running."""
    if settings.database is not None:
        yield settings
        return
    from service import embedded

    for name in [name for name in os.environ if re.match("PG[A-Z]", name)]:
        # libpq's variables speak of another server: PGOPTIONS, PGSERVICE and PGHOSTADDR would
        # each break the connection to this one, and no connection parameter can undo them.
        del os.environ[name]
    with embedded.running(settings.data_dir, pool_size=settings.db_pool_size) as database:
        secret_key = settings.secret_key or embedded.read_secret_key(settings.data_dir)
        yield dataclasses.replace(settings, database=database, secret_key=secret_key)


def _announce(configured: Settings) -> Callable[[str], Any]:
    """One line that says where it listens, where its data lies, and where its docs are."""
    where: str | Path = configured.data_dir
    if configured.database is not None:
        where = f"PostgreSQL at {configured.database.address}"
    docs = "/docs" if configured.docs else "/openapi.json"
    return lambda url: click.echo(
        f"Shinkei {__version__} listens on {url} | data in {where} | docs at {url}{docs}"
    )


if __name__ == "__main__":
    main()
