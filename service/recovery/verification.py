"""The endpoint that verifies or changes an email, with a mailed link and one more proof."""

from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.accounts import queries as accounts
from service.auth.attempts import require_own
from service.auth.guards import identify
from service.auth.passwords import REPLACED_MEANWHILE, TOO_MANY_SIGN_INS, WRONG_PASSWORD
from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED
from service.context import USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.field_errors import field_error
from service.http.idempotency import find_stored_response, write_once
from service.http.problems import EMAIL_TAKEN, Problem, ProblemType, invalid_fields
from service.http.requests import json_response, read_body
from service.recovery import links, queries, schemas
from service.recovery.accepting import (
    EXAMPLE_TOKEN,
    INVALID_LINK,
    change_email,
    get_link,
    hash_new,
    record_change,
    take_over,
    take_token,
)
from service.sessions import queries as session_queries
from service.throttle import limits as throttle

PROOF_REQUIRED = ProblemType(
    403,
    "proof_required",
    "The link proves the mailbox. To prove that the account is yours, sign in, send its password,"
    " or choose a new one.",
)

VERIFYING = ["email_verify", "email_change"]


@describe(
    {200: Success("What was done.", schemas.VERIFIED, example={"done": "verified"})},
    body=schemas.VERIFY,
    example={"token": EXAMPLE_TOKEN, "password": examples.PASSWORD},
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
    link = await get_link(request, token_hash, VERIFYING)
    if link["purpose"] == "email_verify" and "new_password" in body:
        new_hash = await hash_new(request, link, body["new_password"], "#/new_password")
        return await write_once(request, _verify_and_take_over, request, token_hash, new_hash)
    password_hash = await _prove_ownership(request, link, body.get("password"))
    return await write_once(request, _verify, request, token_hash, password_hash)


async def _repeat_outcome(
    request: web.Request, token_hash: bytes, new_password: str | None
) -> web.Response:
    """Say again what a used link did, and change nothing. Raises Problem 400 if it did nothing.

    A new password must be the account's by now, or the response would claim that it was set.
    """
    link = await get_link(request, token_hash, list(links.OUTCOMES.values()))
    if new_password is not None:
        account = await read(request.app, credentials.find_own_credentials, link["id"])
        password_hash = account["password_hash"] if account else None
        await require_own(request, link, password_hash, new_password, INVALID_LINK)
    await write(request.app, throttle.refund, request)
    return json_response({"done": schemas.DONE[link["purpose"]]})


async def _prove_ownership(
    request: web.Request, link: asyncpg.Record, password: str | None
) -> str | None:
    """Return the hash of the verified password, or None if the session is the proof."""
    if password is not None:
        account = await read(request.app, credentials.find_own_credentials, link["id"])
        password_hash = account["password_hash"] if account else None
        await require_own(request, link, password_hash, password)
        if link["purpose"] == "email_change" and account and account["has_second_factor"]:
            raise Problem(PROOF_REQUIRED, "The account has a second factor. Sign in first.")
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
    token, user = await take_token(conn, token_hash, VERIFYING)
    await _check_proof_again(conn, request, user, password_hash)
    if token["purpose"] == "email_verify":
        await accounts.verify_email(conn, user["id"])
        await queries.delete_tokens(conn, user["id"], "email_verify")
        await record_change(conn, request, user, "email.verify", user["email"])
    else:
        await change_email(conn, user, token["email"])
        if user["email_verified"]:
            # An unverified email may be mistyped, so it gets no link to revert the change.
            await links.offer_email_revert(conn, request.app, user)
        await record_change(conn, request, user, "email.change", token["email"])
    outcome = await links.keep_outcome(conn, token_hash, token)
    await throttle.refund(conn, request)
    return json_response({"done": schemas.DONE[outcome]})


async def _check_proof_again(
    conn: Connection, request: web.Request, user: asyncpg.Record, password_hash: str | None
) -> None:
    """Raise a Problem if the proof has ended since: the account is locked now."""
    if password_hash is not None:
        if not await credentials.lock_credentials(conn, user["id"], password_hash):
            raise Problem(WRONG_PASSWORD, REPLACED_MEANWHILE)
    elif not await session_queries.find_signed_in(conn, [request[USER]["session_id"]]):
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)


async def _verify_and_take_over(
    conn: Connection, request: web.Request, token_hash: bytes, password_hash: str
) -> web.Response:
    token, user = await take_token(conn, token_hash, ["email_verify"])
    if user["email_verified"]:
        # Setting the password of a verified account takes a link that expires sooner.
        raise Problem(INVALID_LINK)
    await take_over(conn, request, user, password_hash)
    outcome = await links.keep_outcome(conn, token_hash, token)
    return json_response({"done": schemas.DONE[outcome]})
