"""Endpoints that send mailed links and accept their tokens."""

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.attempts import require_own
from service.auth.guards import identify
from service.auth.passwords import (
    REPLACED_MEANWHILE,
    TOO_MANY_SIGN_INS,
    WRONG_PASSWORD,
    hash_password,
    require_acceptable,
)
from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED
from service.context import REQUEST_CONTEXT, USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.field_errors import field_error
from service.http.fields import fold_email
from service.http.idempotency import find_stored_response, write_once
from service.http.problems import EMAIL_TAKEN, Problem, ProblemType, invalid_fields
from service.http.requests import json_response, read_body, uniform_time
from service.mail import notices
from service.recovery import links, queries, schemas
from service.sessions import queries as session_queries
from service.throttle import known_networks
from service.throttle import limits as throttle

INVALID_LINK = ProblemType(
    400, "invalid_token", "This link is invalid or has expired. Request a new one."
)
PROOF_REQUIRED = ProblemType(
    403,
    "proof_required",
    "The link proves the mailbox. To prove that the account is yours, sign in, send its password,"
    " or choose a new one.",
)

_EXAMPLE_TOKEN = "Hk3vX0m2yQ8rT5wL9bN1cJ7pF4sD6gA0zE3uI8oK2hM"  # noqa: S105
_describe_link_request = describe(
    {202: Success("Accepted. The response is the same whether or not an email is sent.")},
    body=schemas.EMAIL_ONLY,
    example={"email": examples.EMAIL},
    problems=(throttle.TOO_MANY_REQUESTS,),
    idempotent=True,
)

RESETTING = ["password_reset"]
VERIFYING = ["email_verify", "email_change"]
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
    example={"token": _EXAMPLE_TOKEN, "password": examples.PASSWORD},
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
    link = await _find_link(request, token_hash, RESETTING)
    password_hash = await _hash_new(request, link, body["password"], "#/password")
    return await write_once(request, _reset, request, token_hash, password_hash)


async def _reset(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str
) -> web.Response:
    _, user = await _take_token(conn, token_hash, RESETTING)
    await _take_over(conn, request, user, password_hash)
    return web.Response(status=204)


@describe(
    {200: Success("What was done.", schemas.VERIFIED, example={"done": "verified"})},
    body=schemas.VERIFY,
    example={"token": _EXAMPLE_TOKEN, "password": examples.PASSWORD},
    problems=(
        INVALID_LINK,
        PROOF_REQUIRED,
        WRONG_PASSWORD,
        EMAIL_TAKEN,
        throttle.TOO_MANY_REQUESTS,
        TOO_MANY_SIGN_INS,
    ),
    idempotent=True,
)
async def verify_email(request: web.Request) -> web.Response:
    """Verify or change an email with the token from a mailed link.

    The link proves the mailbox, but anyone may have registered the email. So one more proof is
    needed: the access token of the account's own session, its `password`, or a `new_password`. A
    new password takes the account over: it ends all sessions and pending changes, and clears the
    name and settings. It does not confirm a change of email. For a day, a used link gets the same
    response again, without a proof.
    """
    body = await read_body(request, schemas.VERIFY)
    if "password" in body and "new_password" in body:
        text = "Send either this or the password."
        raise invalid_fields(field_error("#/new_password", "exclusive", text))
    if body.keys() == {"token"} and "Authorization" in request.headers:
        await identify(request.app, request)
        # Stored for the account, which was not known before.
        if stored := await find_stored_response(request):
            return stored
    token_hash = links.hash_token(body["token"])
    try:
        return await _use_link(request, body, token_hash)
    except Problem as problem:
        # Also raised if another request has used the link meanwhile.
        if (problem.status, problem.code) != INVALID_LINK[:2]:
            raise
    return await _repeat_outcome(request, token_hash, body.get("new_password"))


async def _use_link(request: web.Request, body: dict[str, Any], token_hash: bytes) -> web.Response:
    link = await _find_link(request, token_hash, VERIFYING)
    if link["purpose"] == "email_verify" and "new_password" in body:
        new_hash = await _hash_new(request, link, body["new_password"], "#/new_password")
        return await write_once(request, _verify_and_take_over, request, token_hash, new_hash)
    password_hash = await _prove_ownership(request, link, body.get("password"))
    return await write_once(request, _verify, request, token_hash, password_hash)


async def _repeat_outcome(
    request: web.Request, token_hash: bytes, new_password: str | None
) -> web.Response:
    """Say again what a used link did, and change nothing. Raises Problem 400 if it did nothing.

    A new password must be the account's by now, or the response would claim that it was set.
    """
    link = await _find_link(request, token_hash, list(links.OUTCOMES.values()))
    if new_password is not None:
        account = await read(request.app, accounts.find_own_credentials, link["id"])
        password_hash = account["password_hash"] if account else None
        await require_own(request, link, password_hash, new_password, INVALID_LINK)
    await write(request.app, throttle.refund, request)
    return json_response({"done": schemas.DONE[link["purpose"]]})


async def _prove_ownership(
    request: web.Request, link: asyncpg.Record, password: str | None
) -> str | None:
    """Return the hash of the verified password, or None if the session is the proof."""
    if password is not None:
        account = await read(request.app, accounts.find_own_credentials, link["id"])
        password_hash = account["password_hash"] if account else None
        await require_own(request, link, password_hash, password)
        return password_hash
    if USER in request and request[USER]["id"] == link["id"]:
        return None
    if link["purpose"] == "email_change":
        raise Problem(
            PROOF_REQUIRED,
            "The link proves the mailbox. To prove that the account is yours, sign in or send its"
            " password.",
        )
    raise Problem(PROOF_REQUIRED)


async def _verify(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str | None
) -> web.Response:
    token, user = await _take_token(conn, token_hash, VERIFYING)
    await _check_proof_again(conn, request, user, password_hash)
    if token["purpose"] == "email_verify":
        await accounts.verify_email(conn, user["id"])
        await queries.delete_tokens(conn, user["id"], "email_verify")
        await _record(conn, request, user, "email.verify", user["email"])
    else:
        await _change_email(conn, user, token["email"])
        if user["email_verified"]:
            # An unverified email may be mistyped, so it gets no link to revert the change.
            await links.offer_email_revert(conn, request.app, user)
        await _record(conn, request, user, "email.change", token["email"])
    outcome = await links.keep_outcome(conn, token_hash, token)
    await throttle.refund(conn, request)
    return json_response({"done": schemas.DONE[outcome]})


async def _check_proof_again(
    conn: Connection, request: web.Request, user: asyncpg.Record, password_hash: str | None
) -> None:
    """Raise a Problem if the proof has ended since: the account is locked now."""
    if password_hash is not None:
        if not await accounts.lock_credentials(conn, user["id"], password_hash):
            raise Problem(WRONG_PASSWORD, REPLACED_MEANWHILE)
    elif not await session_queries.find_signed_in(conn, [request[USER]["session_id"]]):
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)


async def _verify_and_take_over(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str
) -> web.Response:
    token, user = await _take_token(conn, token_hash, ["email_verify"])
    if user["email_verified"]:
        # Setting the password of a verified account takes a link that expires sooner.
        raise Problem(INVALID_LINK)
    await _take_over(conn, request, user, password_hash)
    outcome = await links.keep_outcome(conn, token_hash, token)
    return json_response({"done": schemas.DONE[outcome]})


async def _take_over(
    conn: Connection, request: web.Request, user: asyncpg.Record, password_hash: str
) -> None:
    """Set the password of whoever opened the link, and end what others may have started.

    The link proves the current email, because changing the email deletes older links. Links that
    restore an email stay: they were sent to mailboxes that had been proved before.
    """
    if not user["email_verified"]:
        await _record(conn, request, user, "email.verify", user["email"])
        await known_networks.forget_networks_of(conn, user["id"])
        user = await accounts.claim_account(conn, user["id"])
    await accounts.update_password(conn, user["id"], password_hash)
    await session_queries.end_sessions(conn, user["id"])
    # An attacker who knew the old password may have requested an email change.
    for purpose in ("email_change", "email_verify", "password_reset"):
        await queries.delete_tokens(conn, user["id"], purpose)
    # The mailbox proves ownership, and a known network has a sign-in limit of its own.
    await known_networks.remember_network(conn, request, user["id"])
    await notices.send_mail(conn, request.app, user, "password_changed")
    await record(conn, request, "password.reset", user["id"], actor_id=user["id"])


@describe(
    {200: Success("What was done.", schemas.REVERTED, example={"done": "email_reverted"})},
    body=schemas.TOKEN_ONLY,
    example={"token": _EXAMPLE_TOKEN},
    problems=(INVALID_LINK, EMAIL_TAKEN),
    idempotent=True,
)
async def revert_email(request: web.Request) -> web.Response:
    """Restore an account's previous email with the token from a mailed link.

    All sessions end, the password is removed, and the restored email receives a link to set a new
    one. Ask a person before you call this: mail scanners open links too.
    """
    body = await read_body(request, schemas.TOKEN_ONLY)
    return await write_once(request, _revert, request, links.hash_token(body["token"]))


async def _revert(conn: Connection, request: web.Request, token_hash: bytes) -> web.Response:
    token, user = await _take_token(conn, token_hash, REVERTING)
    await _change_email(conn, user, token["email"])
    # The email change required the password, so the owner must set a new one.
    await session_queries.end_sessions(conn, user["id"])
    await accounts.update_password(conn, user["id"], None)
    await queries.delete_tokens(conn, user["id"], "email_change")
    await queries.delete_reverts_since(conn, user["id"], token["created_at"])
    restored = await accounts.lock_profile(conn, user["id"])
    assert restored is not None  # noqa: S101
    await links.start_password_reset(conn, request.app, restored)
    await _record(conn, request, user, "email.revert", token["email"])
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
    example={"token": _EXAMPLE_TOKEN},
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


async def _find_link(
    request: web.Request, token_hash: bytes, purposes: list[str]
) -> asyncpg.Record:
    """Return the live token's purpose and account, so that made-up tokens cost no hash."""
    link = await read(request.app, queries.find_token, token_hash, purposes)
    if link is None:
        raise Problem(INVALID_LINK)
    REQUEST_CONTEXT.get().user_id = link["id"]
    return link


async def _hash_new(request: web.Request, link: asyncpg.Record, password: str, pointer: str) -> str:
    require_acceptable(request.app, password, pointer, (link["email"], link["name"]))
    return await hash_password(request.app, password)


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
    REQUEST_CONTEXT.get().user_id = user["id"]
    return token, user


async def _change_email(conn: Connection, user: asyncpg.Record, email: str) -> None:
    """Set the email, and end the links that prove the old one."""
    try:
        await accounts.update_email(conn, user["id"], email, fold_email(email))
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise Problem(EMAIL_TAKEN) from None
    for purpose in ("password_reset", "email_verify"):
        await queries.delete_tokens(conn, user["id"], purpose)


async def _record(
    conn: Connection, request: web.Request, user: asyncpg.Record, action: str, email: str
) -> None:
    before: dict[str, Any] = {"email": user["email"], "email_verified": user["email_verified"]}
    after = {"email": email, "email_verified": True}
    await record(conn, request, action, user["id"], actor_id=user["id"], before=before, after=after)
