"""Endpoints that send mailed links and accept their tokens."""

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.passwords import TOO_MANY_SIGN_INS, hash_password, require_acceptable
from service.db.connection import Connection
from service.db.transactions import read
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.fields import fold_email
from service.http.idempotency import find_stored_response, write_once
from service.http.problems import EMAIL_TAKEN, Problem, ProblemType
from service.http.requests import read_body, uniform_time
from service.mail import notices
from service.recovery import links, queries, schemas
from service.sessions import queries as session_queries
from service.throttle import known_networks
from service.throttle import limits as throttle

INVALID_LINK = ProblemType(
    400, "invalid_token", "This link is invalid or has expired. Request a new one."
)

_EXAMPLE_TOKEN = "Hk3vX0m2yQ8rT5wL9bN1cJ7pF4sD6gA0zE3uI8oK2hM"  # noqa: S105
_describe_link_request = describe(
    {202: Success("Accepted. The response is the same whether or not an email is sent.")},
    body=schemas.EMAIL_ONLY,
    example={"email": examples.EMAIL},
    problems=(throttle.TOO_MANY_REQUESTS,),
    idempotent=True,
)

VERIFYING = ["email_verify", "email_change", "email_revert"]


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
    example={"token": _EXAMPLE_TOKEN, "password": examples.PASSWORD},
    problems=(INVALID_LINK, TOO_MANY_SIGN_INS),
    idempotent=True,
)
async def reset_password(request: web.Request) -> web.Response:
    """Set a new password with the token from a mailed link.

    The token works once. All sessions end.
    """
    body = await read_body(request, schemas.RESET)
    if stored := await find_stored_response(request):
        return stored
    token_hash = links.hash_token(body["token"])
    # Check the token before hashing, so that made-up tokens cost no hash.
    owner = await read(request.app, queries.find_token, token_hash, ["password_reset"])
    if owner is None:
        raise Problem(INVALID_LINK)
    personal = (owner["email"], owner["name"])
    require_acceptable(request.app, body["password"], "#/password", personal)
    password_hash = await hash_password(request.app, body["password"])
    return await write_once(request, _reset, request, token_hash, password_hash)


async def _reset(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str
) -> web.Response:
    _, user = await _take_token(conn, token_hash, ["password_reset"])
    await accounts.update_password(conn, user["id"], password_hash)
    # The link proves the current email, because changing the email deletes older links.
    await accounts.verify_email(conn, user["id"])
    await session_queries.end_sessions(conn, user["id"])
    # An attacker who knew the old password may have requested an email change.
    await queries.delete_tokens(conn, user["id"], "email_change")
    # The mailbox proves ownership, and a known network has a sign-in limit of its own.
    await known_networks.remember_network(conn, request, user["id"])
    await notices.send_mail(conn, request.app, user, "password_changed")
    await record(conn, request, "password.reset", user["id"], actor_id=user["id"])
    return web.Response(status=204)


@describe(
    {204: Success("The email has been verified, changed or restored.")},
    body=schemas.VERIFY,
    example={"token": _EXAMPLE_TOKEN},
    problems=(INVALID_LINK, EMAIL_TAKEN),
    idempotent=True,
)
async def verify_email(request: web.Request) -> web.Response:
    """Verify, change or restore an email with the token from a mailed link."""
    body = await read_body(request, schemas.VERIFY)
    return await write_once(request, _verify, request, links.hash_token(body["token"]))


async def _verify(conn: Connection, request: web.Request, token_hash: bytes) -> web.Response:
    token, user = await _take_token(conn, token_hash, VERIFYING)
    if token["purpose"] == "email_verify":
        await accounts.verify_email(conn, user["id"])
        await _record(conn, request, user, "email.verify", user["email"])
        return web.Response(status=204)
    await _change_email(conn, user, token["email"])
    await queries.delete_tokens(conn, user["id"], "password_reset")
    await queries.delete_tokens(conn, user["id"], "email_verify")
    if token["purpose"] == "email_change":
        if user["email_verified"]:
            # An unverified email may be mistyped, so it gets no link to revert the change.
            await links.offer_email_revert(conn, request.app, user)
        await _record(conn, request, user, "email.change", token["email"])
    else:
        # The email change required the password, so the owner must set a new one.
        await session_queries.end_sessions(conn, user["id"])
        await accounts.update_password(conn, user["id"], None)
        await queries.delete_tokens(conn, user["id"], "email_change")
        await queries.delete_reverts_since(conn, user["id"], token["created_at"])
        restored = await accounts.lock_profile(conn, user["id"])
        assert restored is not None  # noqa: S101
        await links.start_password_reset(conn, request.app, restored)
        await _record(conn, request, user, "email.revert", token["email"])
    return web.Response(status=204)


async def _take_token(
    conn: Connection, token_hash: bytes, purposes: list[str]
) -> tuple[asyncpg.Record, asyncpg.Record]:
    """Consume the token and return it with its owner, locked.

    The owner is locked first, in the same order as when a link is sent. Raises Problem 400 if the
    token is invalid or has expired.
    """
    owner = await queries.find_token(conn, token_hash, purposes)
    user = await accounts.lock_profile(conn, owner["id"]) if owner else None
    token = await queries.take_token(conn, token_hash, purposes)
    if token is None or user is None:
        raise Problem(INVALID_LINK)
    return token, user


async def _change_email(conn: Connection, user: asyncpg.Record, email: str) -> None:
    try:
        await accounts.update_email(conn, user["id"], email, fold_email(email))
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise Problem(EMAIL_TAKEN) from None


async def _record(
    conn: Connection, request: web.Request, user: asyncpg.Record, action: str, email: str
) -> None:
    before: dict[str, Any] = {"email": user["email"], "email_verified": user["email_verified"]}
    after = {"email": email, "email_verified": True}
    await record(conn, request, action, user["id"], actor_id=user["id"], before=before, after=after)
