"""Command-line arguments, validated by the schemas that validate requests."""

import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import asyncpg
import click
from marshmallow import Schema, ValidationError, fields

from service.accounts import queries as accounts
from service.db.connection import Connection
from service.exceptions import ArgumentError
from service.http.fields import UUID_PATTERN, EmailAddress, NewPassword, fold_email
from service.http.problems import ACCOUNT_NOT_FOUND, Problem

_UUID = re.compile(UUID_PATTERN)


def load(schema: Schema, given: Mapping[str, str | None]) -> dict[str, Any]:
    """Validate the options that were given. Raises ArgumentError."""
    try:
        loaded: dict[str, Any] = schema.load(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        name, messages = next(iter(error.messages_dict.items()))
        while isinstance(messages, dict):  # errors inside the option's JSON
            messages = next(iter(messages.values()))
        raise ArgumentError(f"--{name.replace('_', '-')}: {messages[0]}") from None
    return loaded


def check(field: fields.Field[Any], name: str, text: str) -> str:
    """Validate the text of argument ``name``. Raises ArgumentError."""
    try:
        checked: str = field.deserialize(text)
    except ValidationError as error:
        raise ArgumentError(f"{name}: {error.messages[0]}") from None
    return checked


def check_account(text: str) -> str:
    """Return an account's id unchanged, or its email case-folded. Raises ArgumentError."""
    if _UUID.fullmatch(text):
        return text
    return fold_email(check(EmailAddress(), "ID or EMAIL", text))


async def get_account(conn: Connection, account: str) -> asyncpg.Record:
    """Get the account by an id or email from ``check_account``. Raises Problem 404."""
    if _UUID.fullmatch(account):
        user = await accounts.find_account(conn, uuid.UUID(account))
    else:
        user = await accounts.find_account_by_email(conn, account)
    if user is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    return user


async def get_account_id(conn: Connection, account: str) -> uuid.UUID:
    """Return the id, which may be of a purged account, or get the id of the email's account."""
    if _UUID.fullmatch(account):
        return uuid.UUID(account)
    id_: uuid.UUID = (await get_account(conn, account))["id"]
    return id_


def read_password() -> str:
    """Prompt for it twice without echo, or read a line from stdin if that is not a terminal.

    Raises ArgumentError if no account could have this password.
    """
    if sys.stdin.isatty():
        typed = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        try:
            # Some shells and editors write a byte order mark first.
            typed = sys.stdin.readline().removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ArgumentError(f"password: expected text in {error.encoding}") from None
        except OSError as error:
            raise ArgumentError(f"password: cannot be read: {error.strerror or error}") from None
    return check(NewPassword(), "password", typed)
