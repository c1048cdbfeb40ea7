"""Registration."""

import uuid
from operator import attrgetter
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.passwords import (
    TOO_MANY_SIGN_INS,
    hash_password,
    require_acceptable,
    require_room,
)
from service.auth.schemas import TOKENS_EXAMPLE
from service.auth.signing_keys import signing_key
from service.context import REQUEST_CONTEXT, SETTINGS
from service.db.connection import Connection
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.fields import fold_email
from service.http.idempotency import write_once
from service.http.problems import EMAIL_TAKEN, MISCONFIGURED, Problem
from service.http.requests import json_response, read_body, uniform_time
from service.mail.notices import send_mail
from service.recovery.links import start_email_verification
from service.sessions.start import open_session
from service.telemetry.metrics import count
from service.throttle import limits as throttle
from service.throttle.limits import TOO_MANY_REQUESTS
from service.users import schemas as users
from service.users.schemas import OWN_PROFILE

# The account that the request created, which is counted and logged only after the commit.
REGISTERED: web.RequestKey["uuid.UUID | None"] = web.RequestKey("registered")


@describe(
    {
        201: Success(
            "Created and signed in.",
            users.REGISTERED,
            example={
                **TOKENS_EXAMPLE,
                "user": {
                    **users.PROFILE_EXAMPLE,
                    "email_verified": False,
                    "updated_at": examples.CREATED_AT,
                },
            },
            when=lambda settings: not settings.require_email_verification,
        ),
        202: Success(
            "Accepted. The email must be verified first; instructions are sent to it.",
            when=attrgetter("require_email_verification"),
        ),
    },
    body=users.REGISTER,
    example={"email": examples.EMAIL, "password": examples.PASSWORD, "name": examples.NAME},
    problems=(EMAIL_TAKEN, TOO_MANY_REQUESTS, TOO_MANY_SIGN_INS, MISCONFIGURED),
    idempotent=True,
)
async def register(request: web.Request) -> web.Response:
    """Create an account and sign in.

    If emails must be verified first, the response is 202 whether or not the email is taken.
    """
    body = await read_body(request, users.REGISTER)
    require_room(request.app)
    await throttle.check(request, throttle.REGISTRATION)
    require_acceptable(request.app, body["password"], "#/password", (body["email"], body["name"]))
    password_hash = await hash_password(request.app, body["password"])
    if not request.app[SETTINGS].require_email_verification:
        await signing_key(request.app)  # outside the transaction, as at sign-in
        response = await write_once(request, _register, request, body, password_hash)
    else:
        async with uniform_time():
            response = await write_once(request, _register_unverified, request, body, password_hash)
    if user_id := request.get(REGISTERED):
        REQUEST_CONTEXT.get().user_id = user_id
        count(request.app, "registrations")
    return response


async def _register(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> web.Response:
    user = await _create_account(conn, request, body, password_hash)
    if user is None:
        raise Problem(EMAIL_TAKEN)
    tokens = await open_session(conn, request, user["id"], ["pwd"], 1)
    return json_response({**tokens, "user": OWN_PROFILE.dump(user)}, status=201)


async def _register_unverified(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> web.Response:
    """Respond 202 whether or not the email is taken. Only the mail reveals which."""
    if await _create_account(conn, request, body, password_hash) is None:
        owner = await accounts.lock_by_email(conn, fold_email(body["email"]))
        if owner is not None:
            await send_mail(conn, request.app, owner, "account_exists")
    return web.Response(status=202)


async def _create_account(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> asyncpg.Record | None:
    user = await accounts.insert_user(
        conn,
        user_id=uuid_utils.uuid7(),
        email=body["email"],
        email_folded=fold_email(body["email"]),
        name=body["name"],
        password_hash=password_hash,
    )
    if user is not None:
        await start_email_verification(conn, request.app, user)
        await record(conn, request, "user.register", user["id"], actor_id=user["id"])
    request[REGISTERED] = user["id"] if user else None
    return user
