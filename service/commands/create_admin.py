"""``shinkei create-admin``: the first administrator, which the API cannot create."""

from typing import TYPE_CHECKING

import click

from service.commands.operator import name_operator, operator_option

if TYPE_CHECKING:
    from aiohttp import web

    from service.audit.events import Operator


@click.command()
@click.option("--email", required=True, help="The administrator's email.")
@click.option("--promote", is_flag=True, help="Make an existing account an administrator.")
@operator_option
def command(email: str, promote: bool, operator: str | None) -> None:
    """Create the first administrator.

    Prompts for a password, or reads it from stdin if stdin is piped.
    """
    from service.auth.passwords import hasher_context
    from service.commands.arguments import check, read_password
    from service.commands.connection import run
    from service.http.fields import EmailAddress

    email = check(EmailAddress(), "--email", email)
    by = name_operator(operator)
    if promote:
        run(lambda app: _promote(app, email, by))
    else:
        password = read_password()
        run(lambda app: _create(app, email, password, by), hasher_context)
    click.echo(f"administrator  {email}")


async def _promote(app: "web.Application", email: str, by: "Operator") -> None:
    from service.admin import changes
    from service.db.transactions import write

    await write(app, changes.promote_to_administrator, email, by)


async def _create(app: "web.Application", email: str, password: str, by: "Operator") -> None:
    from service.admin import changes
    from service.auth.passwords import hash_password, require_acceptable
    from service.db.transactions import write
    from service.exceptions import StartError
    from service.http.problems import Problem

    require_acceptable(app, password, "#/password", (email,))
    password_hash = await hash_password(app, password)
    try:
        await write(
            app,
            changes.create_account,
            app,
            by,
            email=email,
            email_verified=True,
            role="admin",
            settings={},
            password_hash=password_hash,
        )
    except Problem as problem:
        if problem.code != "email_taken":
            raise
        hint = "Use --promote to make it an administrator."
        raise StartError(f"{problem.detail} {hint}") from None
