"""``shinkei create-admin``: the first administrator, which the API cannot create."""

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aiohttp import web


@click.command()
@click.option("--email", required=True, help="The administrator's email.")
@click.option("--promote", is_flag=True, help="Make an existing account an administrator.")
def command(email: str, promote: bool) -> None:
    """Create the first administrator.

    Prompts for a password, or reads it from stdin if stdin is piped.
    """
    from service.auth.passwords import hasher_context
    from service.commands.arguments import check
    from service.commands.connection import run
    from service.http.fields import EmailAddress, Password

    email = check(EmailAddress(), "--email", email)
    if promote:
        run(lambda app: _promote(app, email))
    else:
        password = check(Password(), "password", _read_password())
        run(lambda app: _create(app, email, password), hasher_context)
    click.echo(f"administrator  {email}")


async def _promote(app: "web.Application", email: str) -> None:
    from service.admin import changes
    from service.db.transactions import write

    await write(app, changes.promote_to_administrator, email)


async def _create(app: "web.Application", email: str, password: str) -> None:
    from service.admin import changes
    from service.auth.passwords import hash_password, require_acceptable
    from service.db.transactions import write
    from service.exceptions import StartError
    from service.http.problems import Problem

    require_acceptable(app, password, "#/password", (email,))
    password_hash = await hash_password(app, password)
    try:
        await write(app, changes.create_administrator, email, password_hash)
    except Problem as problem:
        if problem.code != "email_taken":
            raise
        hint = "Use --promote to make it an administrator."
        raise StartError(f"{problem.detail} {hint}") from None


def _read_password() -> str:
    """Prompt for it twice without echo, or read a line from stdin if that is not a terminal."""
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")
