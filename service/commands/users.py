"""``shinkei users``: accounts, with the fields, filters and rules of ``/api/v1/users``."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from service.commands.operator import name_operator, operator_option
from service.commands.output import json_option

if TYPE_CHECKING:
    import uuid

    import asyncpg
    from aiohttp import web
    from click.shell_completion import CompletionItem

    from service.audit.events import Operator
    from service.db.connection import Connection

T = TypeVar("T")

_PATH = "/api/v1/users"
_COLUMNS = ("id", "email", "name", "role", "status")


def _complete_role(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    from service.accounts.preferences import ROLES

    return [CompletionItem(role) for role in ROLES if role.startswith(incomplete)]


@click.group()
def command() -> None:
    """List, show, create and change accounts."""


@command.command("list")
@click.option("--email", help="Exact email, ignoring case.")
@click.option("--q", help="Text contained in the email or name.")
@click.option("--status", help="active, suspended or deleting.")
@click.option("--role", help="user, support or admin.", shell_complete=_complete_role)
@click.option("--has-second-factor", metavar="true|false")
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
    from service.commands.pages import take_all

    if whole:
        take_all(filters)
    query = load(LIST_USERS, filters)
    run(lambda app: _list(app, query, whole=whole, as_json=as_json))


async def _list(
    app: "web.Application", query: dict[str, Any], *, whole: bool, as_json: bool
) -> None:
    from service.admin import lists, schemas
    from service.commands.pages import Listing, fetch_pages, print_json_pages, print_table_pages

    keyset = lists.SORTS[query["sort"]]

    async def fetch(
        conn: "Connection", query: dict[str, Any], after: list[object] | None, limit: int
    ) -> "list[asyncpg.Record]":
        return await lists.list_accounts(conn, query, keyset, after, limit)

    pages = fetch_pages(app, Listing(_PATH, keyset, fetch, schemas.ADMIN_USER), query, whole)
    if as_json:
        await print_json_pages(pages)
    else:
        columns = (*_COLUMNS, "created_at")
        await print_table_pages(pages, columns, _to_row, folded=("email", "name"))


def _to_row(account: dict[str, Any]) -> list[object]:
    from service.commands.output import to_seconds

    return [*(account[name] for name in _COLUMNS), to_seconds(account["created_at"])]


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@json_option
def show(account: str, as_json: bool) -> None:
    """Show one account, with its second factors."""
    from service.commands.arguments import check_account
    from service.commands.connection import run
    from service.commands.output import print_json, print_table, to_json

    wanted = check_account(account)
    user = run(lambda app: _describe(app, wanted))
    if as_json:
        print_json(user)
        return
    user["settings"] = to_json(user["settings"])
    factors = [("factor", _factor_to_text(factor)) for factor in user.pop("factors")]
    print_table(("field", "value"), [*user.items(), *factors], folded=("value",))


async def _describe(app: "web.Application", wanted: str) -> dict[str, Any]:
    """Return the account with its second factors, and the number of recovery codes left."""
    from service.admin.schemas import ADMIN_USER
    from service.commands.arguments import get_account
    from service.db.transactions import read
    from service.factors.listing import describe_factors
    from service.json_codec import plain

    account = await read(app, get_account, wanted)
    described = await read(app, describe_factors, account["id"])
    user: dict[str, Any] = plain(
        {
            **ADMIN_USER.dump(account),
            "recovery_codes_left": described["recovery_codes_left"],
            "factors": described["items"],
        }
    )
    return user


def _factor_to_text(factor: dict[str, Any]) -> str:
    from service.commands.output import to_seconds

    used = to_seconds(factor["last_used_at"]) or "never"
    added = to_seconds(factor["created_at"])
    return f"{factor['type']}, added {added}, last used {used}: {factor['name']}"


@command.command()
@click.argument("email")
@click.option("--name", help="Display name; empty by default.")
@click.option("--role", help="user (default), support or admin.", shell_complete=_complete_role)
@click.option("--verified", is_flag=True, help="The email is known to be the owner's.")
@click.option("--mail-link", is_flag=True, help="Mail the owner a link to set a password.")
@operator_option
@json_option
def create(
    email: str,
    name: str | None,
    role: str | None,
    verified: bool,
    mail_link: bool,
    operator: str | None,
    as_json: bool,
) -> None:
    """Create an account.

    Prompts for a password, or reads it from stdin if stdin is piped. With --mail-link, the owner
    sets the password instead. Unless --verified or --mail-link is given, the owner receives a link
    to verify the email.
    """
    from service.admin.schemas import CREATE_USER
    from service.auth.passwords import hasher_context
    from service.commands.arguments import check, load, read_password
    from service.commands.connection import mail_templates_context, run
    from service.http.fields import EmailAddress

    by = name_operator(operator)
    email = check(EmailAddress(), "EMAIL", email)
    given = {
        **load(CREATE_USER, {"email": email, "name": name, "role": role}),
        "email_verified": verified,
    }
    password = None if mail_link else read_password()
    contexts = [mail_templates_context] + [hasher_context] * (password is not None)
    user = run(lambda app: _create(app, by, given, password), *contexts)
    _print_change("created", user, as_json)


async def _create(
    app: "web.Application", by: "Operator", given: dict[str, Any], password: str | None
) -> "asyncpg.Record":
    from service.admin import changes
    from service.auth.passwords import hash_password, require_acceptable
    from service.commands.connection import require_services_key
    from service.db.transactions import write

    password_hash = None
    if password is not None:
        require_acceptable(app, password, "#/password", (given["email"], given["name"]))
        password_hash = await hash_password(app, password)
    await require_services_key(app)
    return await write(app, changes.create_account, app, by, **given, password_hash=password_hash)


@command.command("set-role")
@click.argument("account", metavar="ID|EMAIL")
@click.argument("role", shell_complete=_complete_role)
@operator_option
@json_option
def set_role(account: str, role: str, operator: str | None, as_json: bool) -> None:
    """Give an account the role user, support or admin.

    Takes effect on the account's next request. Refused for the last active administrator.
    """
    from service.admin import changes
    from service.admin.schemas import CHANGE_USER
    from service.commands.arguments import check, check_account
    from service.commands.connection import run

    by, wanted = name_operator(operator), check_account(account)
    role = check(CHANGE_USER.fields["role"], "ROLE", role)
    user = run(
        lambda app: _change(app, wanted, lambda conn, id_: changes.set_role(conn, id_, by, role))
    )
    _print_change(user["role"], user, as_json)


@command.command("reset-password")
@click.argument("account", metavar="ID|EMAIL")
@click.option("--print", "printed", is_flag=True, help="Print the link instead of mailing it.")
@operator_option
@json_option
def reset_password(account: str, printed: bool, operator: str | None, as_json: bool) -> None:
    """Mail an account's owner a link to set a new password.

    The current password keeps working until then. Anyone who has the link can use it, so pass on a
    printed link with care. Earlier links stop working.
    """
    from service.commands.arguments import check_account
    from service.commands.connection import mail_templates_context, run
    from service.commands.output import print_json, visible

    by, wanted = name_operator(operator), check_account(account)
    email, link = run(
        lambda app: _reset_password(app, by, wanted, mail=not printed), mail_templates_context
    )
    if as_json:
        print_json({"email": email, "link": link})
    else:
        click.echo(link or f"mailed  {visible(email)}")


async def _reset_password(
    app: "web.Application", by: "Operator", wanted: str, *, mail: bool
) -> tuple[str, str | None]:
    from service.admin import changes
    from service.commands.connection import require_services_key

    if mail:
        await require_services_key(app)
    user, link = await _change(
        app, wanted, lambda conn, id_: changes.reset_password(conn, app, id_, by, mail=mail)
    )
    return user["email"], link


@command.command("reset-factors")
@click.argument("account", metavar="ID|EMAIL")
@operator_option
@json_option
def reset_factors(account: str, operator: str | None, as_json: bool) -> None:
    """Remove all second factors of an account whose owner has lost them.

    Removes passkeys and recovery codes too, ends all sessions and notifies the owner by email. The
    password stays as it is. Make sure that it is the owner who asks.
    """
    from service.commands.arguments import check_account
    from service.commands.connection import mail_templates_context, run
    from service.commands.output import print_json, visible

    by, wanted = name_operator(operator), check_account(account)
    email, removed = run(lambda app: _reset_factors(app, by, wanted), mail_templates_context)
    if as_json:
        print_json({"email": email, "removed": removed})
    else:
        click.echo(f"removed {removed}  {visible(email)}")


async def _reset_factors(app: "web.Application", by: "Operator", wanted: str) -> tuple[str, int]:
    from service.admin import changes
    from service.commands.connection import require_services_key

    await require_services_key(app)
    user, removed = await _change(
        app, wanted, lambda conn, id_: changes.remove_factors(conn, app, id_, by)
    )
    return user["email"], removed


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@operator_option
@json_option
def delete(account: str, operator: str | None, as_json: bool) -> None:
    """Delete an account after the grace period.

    Ends all its sessions now and notifies the owner by email, who cannot sign in any more. Until
    the grace period is over, shinkei users reinstate cancels the deletion. Refused for the last
    active administrator.
    """
    from service.commands.arguments import check_account
    from service.commands.connection import mail_templates_context, run

    by, wanted = name_operator(operator), check_account(account)
    user = run(lambda app: _delete(app, by, wanted), mail_templates_context)
    _print_change("deleting", user, as_json)


async def _delete(app: "web.Application", by: "Operator", wanted: str) -> "asyncpg.Record":
    from service.admin import changes
    from service.commands.connection import require_services_key

    await require_services_key(app)
    return await _change(app, wanted, lambda conn, id_: changes.delete(conn, app, id_, by))


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@click.option("--reason", required=True, help="Reason for other administrators to read.")
@click.option("--until", metavar="TIME", help="End of the suspension (RFC 3339); none by default.")
@operator_option
@json_option
def suspend(
    account: str, reason: str, until: str | None, operator: str | None, as_json: bool
) -> None:
    """Suspend an account: refuse sign-in and end all its sessions."""
    from service.admin import changes
    from service.admin.schemas import SUSPEND_USER
    from service.commands.arguments import check_account, load
    from service.commands.connection import run

    by, wanted = name_operator(operator), check_account(account)
    given = load(SUSPEND_USER, {"reason": reason, "until": until})
    why, end = given["reason"], given.get("until")
    user = run(
        lambda app: _change(app, wanted, lambda conn, id_: changes.suspend(conn, id_, by, why, end))
    )
    _print_change("suspended", user, as_json)


@command.command()
@click.argument("account", metavar="ID|EMAIL")
@operator_option
@json_option
def reinstate(account: str, operator: str | None, as_json: bool) -> None:
    """Reactivate an account that is suspended or being deleted."""
    from service.admin import changes
    from service.commands.arguments import check_account
    from service.commands.connection import run

    by, wanted = name_operator(operator), check_account(account)
    user = run(lambda app: _change(app, wanted, lambda conn, id_: changes.reinstate(conn, id_, by)))
    _print_change("active", user, as_json)


async def _change(
    app: "web.Application",
    wanted: str,
    change: "Callable[[Connection, uuid.UUID], Awaitable[T]]",
) -> T:
    """Find the account and change it, in one transaction."""
    from service.commands.arguments import get_account
    from service.db.transactions import write

    async def work(conn: "Connection") -> T:
        user = await get_account(conn, wanted)
        return await change(conn, user["id"])

    return await write(app, work)


def _print_change(done: str, user: "asyncpg.Record", as_json: bool) -> None:
    from service.admin.schemas import ADMIN_USER
    from service.commands.output import print_json, visible
    from service.json_codec import plain

    if as_json:
        print_json(plain(ADMIN_USER.dump(user)))
    else:
        click.echo(f"{done}  {visible(user['email'])}")
