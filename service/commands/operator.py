"""The operator who runs a command, named by the audit events of its changes."""

import os
import pwd
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from service.audit.events import Operator

NAME_MAX_LENGTH = 100


def operator_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--operator``, passed as the argument ``operator``: see ``name_operator``."""
    return click.option(
        "--operator",
        metavar="NAME",
        help="Your name in the audit log. The default is your OS account, also under sudo.",
    )(function)


def name_operator(given: str | None) -> "Operator":
    """Return the operator with the given name, or with that of the OS account.

    Raises ArgumentError if the name is empty, too long, or has invisible characters.
    """
    from service.audit.events import Operator
    from service.commands.arguments import check
    from service.http.fields import DisplayName

    name = _os_account() if given is None else given
    return Operator(check(DisplayName(1, NAME_MAX_LENGTH), "--operator", name))


def _os_account() -> str:
    """Return the account that ran sudo, or else runs this process, or its uid if it has no name."""
    if name := os.environ.get("SUDO_USER"):
        return name
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
