"""Endpoints that send mailed links, and accept those that reset a password or restore an email."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.passwords import TOO_MANY_SIGN_INS
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import read
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.fields import fold_email
from service.http.idempotency import write_once
from service.http.problems import EMAIL_TAKEN, Problem
from service.http.requests import json_response, read_body, uniform_time
from service.recovery import links, queries, schemas
from service.recovery.accepting import (
    EXAMPLE_TOKEN,
    INVALID_LINK,
    change_email,
    forget_factors,
    get_link,
    hash_new,
    record_change,
    take_over,
    take_token,
)
from service.sessions import queries as session_queries
from service.throttle import limits as throttle

# Second factors that were added so long before a change of email that is reverted go, too.
FACTORS_SUSPECT_DAYS = 7

_describe_link_request = describe(
    {202: Success("Accepted. The response is the same whether or not an email is sent.")},
    body=schemas.EMAIL_ONLY,
    example={"email": examples.EMAIL},
    problems=(throttle.TOO_MANY_REQUESTS,),
    idempotent=True,
)

RESETTING = ["password_reset"]
REVERTING = ["email_revert"]


@_describe_link_request
async def forgot_password(request: web.Request) -> web.Response:
    """Send a link to reset the password.

    The response is the same whether or not the email belongs to an account.
    """
    return await _send_link_if_known(request, throttle.PASSWORD_RESET, _start_reset)


@_describe_link_request
async def resend_verification(request: web.Request) -> web.Response:
    """Send a new link to verify an email.

    The response is the same whether or not the email belongs to an unverified account.
    """
    return await _send_link_if_known(request, throttle.VERIFICATION, _start_verification)


async def _send_link_if_known(
    request: web.Request,
    action: throttle.Action,
    start: Callable[[Connection, web.Request, asyncpg.Record], Awaitable[None]],
) -> web.Response:
    body = await read_body(request, schemas.EMAIL_ONLY)
    await throttle.check(request, action, fold_email(body["email"]))
    async with uniform_time():
        return await write_once(request, _start_if_known, request, body["email"], start)


async def _start_if_known(
    conn: Connection,
    request: web.Request,
    email: str,
    start: Callable[[Connection, web.Request, asyncpg.Record], Awaitable[None]],
) -> web.Response:
    user = await accounts.lock_by_email(conn, fold_email(email))
    if user is not None:
        await start(conn, request, user)
    return web.Response(status=202)


async def _start_reset(conn: Connection, request: web.Request, user: asyncpg.Record) -> None:
    await links.start_password_reset(conn, request.app, user)
    await record(conn, request, "password.forgot", user["id"])


async def _start_verification(conn: Connection, request: web.Request, user: asyncpg.Record) -> None:
    if not user["email_verified"]:
        await links.start_email_verification(conn, request.app, user)


@describe(
    {204: Success("The password has been set. All sessions have ended.")},
    body=schemas.RESET,
    example={"token": EXAMPLE_TOKEN, "password": examples.PASSWORD},
    problems=(INVALID_LINK, TOO_MANY_SIGN_INS),
    idempotent=True,
)
async def reset_password(request: web.Request) -> web.Response:
    """Set a new password with the token from a mailed link.

    The token works once. All sessions end. If the email was unverified, it is verified, and the
    name and settings are cleared, because anyone may have registered it.
    """
    body = await read_body(request, schemas.RESET)
    token_hash = links.hash_token(body["token"])
    link = await get_link(request, token_hash, RESETTING)
    password_hash = await hash_new(request, link, body["password"], "#/password")
    return await write_once(request, _reset, request, token_hash, password_hash)


async def _reset(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str
) -> web.Response:
    _, user = await take_token(conn, token_hash, RESETTING)
    await take_over(conn, request, user, password_hash)
    return web.Response(status=204)


@describe(
    {200: Success("What was done.", schemas.REVERTED, example={"done": "email_reverted"})},
    body=schemas.TOKEN_ONLY,
    example={"token": EXAMPLE_TOKEN},
    problems=(INVALID_LINK, EMAIL_TAKEN),
    idempotent=True,
)
async def revert_email(request: web.Request) -> web.Response:
    """Restore an account's previous email with the token from a mailed link.

    All sessions end. The password is removed, and so are second factors that were added since a
    week before the change, with the recovery codes. The restored email receives a link to set a new
    password. Ask a person before you call this: mail scanners open links too.
    """
    body = await read_body(request, schemas.TOKEN_ONLY)
    return await write_once(request, _revert, request, links.hash_token(body["token"]))


async def _revert(conn: Connection, request: web.Request, token_hash: bytes) -> web.Response:
    token, user = await take_token(conn, token_hash, REVERTING)
    await change_email(conn, user, token["email"])
    # Whoever changed the email may know the password, so the owner must set a new one.
    await session_queries.end_sessions(conn, user["id"])
    await credentials.update_password(conn, user["id"], None)
    await queries.delete_tokens(conn, user["id"], "email_change")
    await queries.delete_reverts_since(conn, user["id"], token["created_at"])
    # Whoever changed the email may have added factors before, to keep the owner out.
    since = token["created_at"] - timedelta(days=FACTORS_SUSPECT_DAYS)
    await forget_factors(conn, request, user["id"], since)
    restored = await accounts.lock_profile(conn, user["id"])
    assert restored is not None  # noqa: S101
    await links.start_password_reset(conn, request.app, restored)
    await record_change(conn, request, user, "email.revert", token["email"])
    return json_response({"done": "email_reverted"})


@describe(
    {
        200: Success(
            "What the link does.",
            schemas.LINK,
            example={
                "purpose": "email_revert",
                "email": examples.EMAIL,
                "expires_at": examples.EXPIRES_AT,
            },
        )
    },
    body=schemas.TOKEN_ONLY,
    example={"token": EXAMPLE_TOKEN},
    problems=(INVALID_LINK, throttle.TOO_MANY_REQUESTS),
)
async def inspect_link(request: web.Request) -> web.Response:
    """Say what a mailed link does, or has done, without using it.

    With this, a page can ask a person before it goes on.
    """
    body = await read_body(request, schemas.TOKEN_ONLY)
    await throttle.check(request, throttle.LINK)
    link = await read(request.app, queries.find_link, links.hash_token(body["token"]))
    if link is None:
        raise Problem(INVALID_LINK)
    REQUEST_CONTEXT.get().user_id = link["user_id"]
    return json_response(schemas.LINK.dump(link))
