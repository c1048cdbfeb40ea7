"""``shinkei create-admin``: the first administrator, whom no request can make."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from marshmallow import ValidationError, fields

from service.admin import queries
from service.audit.events import record_unattended
from service.auth.passwords import (
    hash_password,
    hasher_context,
    require_acceptable,
)
from service.database import Connection, database_context, write
from service.errors import Problem, StartError
from service.fields import EmailAddress, Password, fold_email
from service.keys import SETTINGS
from service.settings import Settings


class ArgumentError(Exception):
    """The address or the password cannot be taken; the message is the operator's one line."""


def check_email(text: str) -> str:
    """The address, normalised. Raises ArgumentError."""
    return _check(EmailAddress(), "--email", text)


def create_administrator(settings: Settings, email: str, password: str) -> None:
    """Create an account that is an administrator, its address taken as verified.

    Raises ArgumentError for a password that may not be chosen, StartError where the address is
    taken or the database cannot do it now.
    """
    _check(Password(), "password", password)

    async def work(app: web.Application) -> None:
        require_acceptable(app, password, "#/password", (email,))
        await write(app, _create, email, await hash_password(app, password))

    asyncio.run(_run(settings, work))


def promote_administrator(settings: Settings, email: str) -> None:
    """Make an existing account an administrator. Raises StartError where there is none, active."""

    async def work(app: web.Application) -> None:
        await write(app, _promote, email)

    asyncio.run(_run(settings, work))


async def _run(settings: Settings, work: Callable[[web.Application], Awaitable[None]]) -> None:
    """Do the work with a pool of one connection and without serving anything."""
    app = web.Application()
    app[SETTINGS] = dataclasses.replace(settings, db_pool_size=1)
    app.cleanup_ctx.extend([database_context, hasher_context])
    runner = web.AppRunner(app)
    try:
        await runner.setup()
        await work(app)
    except Problem as problem:
        if problem.status == 422:
            raise ArgumentError(f"password: {problem.errors[0].detail}") from None
        raise StartError(problem.detail) from None
    finally:
        await runner.cleanup()


async def _create(conn: Connection, email: str, password_hash: str) -> None:
    try:
        user = await queries.insert_account(
            conn,
            user_id=uuid_utils.uuid7(),
            email=email,
            email_folded=fold_email(email),
            email_verified=True,
            name="",
            role="admin",
            settings={},
            password_hash=password_hash,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise StartError(
            "there is an account with this address; --promote makes it an administrator"
        ) from None
    await record_unattended(
        conn, "user.create", user["id"], after={"email": email, "role": "admin"}
    )


async def _promote(conn: Connection, email: str) -> None:
    user = await queries.lock_account_by_email(conn, fold_email(email))
    if user is None or user["status"] != "active":
        raise StartError("there is no active account with this address")
    if user["role"] == "admin":
        return
    await queries.update_account(
        conn,
        user["id"],
        name=user["name"],
        role="admin",
        email_verified=user["email_verified"],
        settings=user["settings"],
    )
    await record_unattended(
        conn, "user.update", user["id"], before={"role": user["role"]}, after={"role": "admin"}
    )


def _check(field: fields.Field[Any], name: str, text: str) -> str:
    try:
        checked: str = field.deserialize(text)
    except ValidationError as error:
        raise ArgumentError(f"{name}: {error.messages[0]}") from None
    return checked
