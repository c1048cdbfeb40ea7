"""Arguments of the command line, checked by the schemas that check requests."""

import re
import uuid
from collections.abc import Mapping
from typing import Any

import asyncpg
from marshmallow import Schema, ValidationError, fields

from service.accounts import queries as accounts
from service.db.connection import Connection
from service.exceptions import ArgumentError
from service.http.fields import UUID_PATTERN, EmailAddress, fold_email
from service.http.problems import ACCOUNT_NOT_FOUND, Problem

_UUID = re.compile(UUID_PATTERN)


def load(schema: Schema, given: Mapping[str, str | None]) -> dict[str, Any]:
    """What of the options was given, as ``schema`` loads it. Raises ArgumentError."""
    try:
        loaded: dict[str, Any] = schema.load(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        name, messages = next(iter(error.messages_dict.items()))
        while isinstance(messages, dict):  # of a member of the option's JSON
            messages = next(iter(messages.values()))
        raise ArgumentError(f"--{name.replace('_', '-')}: {messages[0]}") from None
    return loaded


def check(field: fields.Field[Any], name: str, text: str) -> str:
    """The text as ``field`` loads it. Raises ArgumentError, which calls it ``name``."""
    try:
        checked: str = field.deserialize(text)
    except ValidationError as error:
        raise ArgumentError(f"{name}: {error.messages[0]}") from None
    return checked


def check_account(text: str) -> str:
    """An account's id, or its address in caseless form. Raises ArgumentError."""
    if _UUID.fullmatch(text):
        return text
    return fold_email(check(EmailAddress(), "ID or EMAIL", text))


async def get_account(conn: Connection, account: str) -> asyncpg.Record:
    """The account of that id or address: see ``check_account``. Raises Problem 404."""
    if _UUID.fullmatch(account):
        user = await accounts.find_account(conn, uuid.UUID(account))
    else:
        user = await accounts.find_account_by_email(conn, account)
    if user is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    return user
