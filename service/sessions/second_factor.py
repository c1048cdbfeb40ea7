"""The second step of a sign-in, for accounts with a second factor."""

import uuid
from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.auth.attempts import count_guess, report_refusal
from service.auth.schemas import TOKENS, TOKENS_EXAMPLE
from service.auth.signing_keys import signing_key
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import read, write
from service.factors import challenge_queries, challenges, codes, passkeys, queries
from service.factors.problems import (
    INVALID_CHALLENGE,
    PASSKEYS_NOT_CONFIGURED,
    REFUSED_ASSERTION,
    WRONG_SECOND_FACTOR,
)
from service.factors.schemas import EXAMPLE_CHALLENGE
from service.factors.webauthn import Credential, request_options
from service.http.descriptions import Success, describe
from service.http.field_errors import require_one
from service.http.problems import MISCONFIGURED, Problem
from service.http.requests import json_response, read_body
from service.sessions import schemas
from service.sessions.start import complete_sign_in, may_sign_in, report_success
from service.throttle.limits import TOO_MANY_REQUESTS, kept_counts


@describe(
    {200: Success("Signed in.", TOKENS, example=TOKENS_EXAMPLE)},
    body=schemas.SECOND_FACTOR,
    example={"challenge": EXAMPLE_CHALLENGE, "code": "492039"},
    problems=(
        INVALID_CHALLENGE,
        WRONG_SECOND_FACTOR,
        *REFUSED_ASSERTION,
        PASSKEYS_NOT_CONFIGURED,
        TOO_MANY_REQUESTS,
        MISCONFIGURED,
    ),
)
async def use_second_factor(request: web.Request) -> web.Response:
    """Complete a sign-in with a second factor.

    Send the `challenge` from the sign-in and one of these: the `code` that an app shows, a
    `recovery_code`, or the `credential` of a passkey. A challenge is good for five minutes and five
    tries. Each code is good once.
    """
    body = await read_body(request, schemas.SECOND_FACTOR)
    require_one(body, "code", "recovery_code", "credential")
    account = await _find_challenge(request, body["challenge"])
    await count_guess(request, account["email_folded"])
    try:
        tokens = await _try_factor(request, body, account)
    except Problem as problem:
        if problem.status == 401:
            report_refusal(request.app, "wrong", account["user_id"])
        raise
    report_success(request)
    return json_response(tokens)


async def _find_challenge(request: web.Request, challenge: str) -> asyncpg.Record:
    token_hash = challenges.hash_token(challenge)
    account = await read(request.app, challenge_queries.find_challenge, token_hash)
    if account is None:
        raise Problem(INVALID_CHALLENGE)
    REQUEST_CONTEXT.get().user_id = account["user_id"]
    return account


async def _try_factor(
    request: web.Request, body: dict[str, Any], account: asyncpg.Record
) -> dict[str, object]:
    """Return the tokens of a new session. Raises a Problem, after it has used up a try."""
    used = None
    if "credential" in body:
        signed = challenges.passkey_challenge_of(body["challenge"])
        try:
            used = await passkeys.check_assertion(
                request.app,
                signed,
                body["credential"],
                refusals=REFUSED_ASSERTION,
                owner_id=account["user_id"],
            )
        except Problem:
            await write(request.app, _take_try, body["challenge"])
            raise
    # Load the keys before the transaction, which must not wait for another connection.
    await signing_key(request.app)
    tokens = await write(request.app, _finish, request, account["user_id"], body, used)
    if isinstance(tokens, Problem):
        raise tokens
    return tokens


async def _take_try(conn: Connection, challenge: str) -> bool:
    return await challenge_queries.take_try(conn, challenges.hash_token(challenge))


async def _finish(
    conn: Connection,
    request: web.Request,
    user_id: uuid.UUID,
    body: dict[str, Any],
    used: passkeys.Used | None,
) -> dict[str, object] | Problem:
    """Check a code, use up the challenge and the proof, and open the session.

    A problem is returned, not raised, so that the try that it used up is stored. The account is
    locked first, so that of any number at once, each sees what the others have used.
    """
    user = await credentials.lock_sign_in(conn, user_id)
    if (
        user is None
        or not may_sign_in(request, user)
        or not await _take_try(conn, body["challenge"])
    ):
        return Problem(INVALID_CHALLENGE)
    if used is not None:
        await passkeys.note_use(conn, used, REFUSED_ASSERTION)
        method = used.method
    elif "code" in body:
        if not await codes.use_code(conn, request, user_id, body["code"]):
            return Problem(WRONG_SECOND_FACTOR)
        method = "otp"
    else:
        if not await codes.use_recovery_code(conn, request, user_id, body["recovery_code"]):
            return Problem(WRONG_SECOND_FACTOR)
        method = "rec"
    token_hash = challenges.hash_token(body["challenge"])
    challenge = await challenge_queries.use_sign_in_challenge(conn, token_hash)
    return await complete_sign_in(
        conn,
        request,
        user,
        amr=[*challenge["amr"], method],
        aal=2,
        earlier=kept_counts(challenge["throttle_counts"], challenge["age"]),
    )


@describe(
    {
        200: Success(
            "Options for the browser.",
            schemas.PASSKEY_OPTIONS,
            example={"options": schemas.REQUEST_OPTIONS_EXAMPLE},
        )
    },
    body=schemas.CHALLENGE_ONLY,
    example={"challenge": EXAMPLE_CHALLENGE},
    problems=(INVALID_CHALLENGE, PASSKEYS_NOT_CONFIGURED),
)
async def second_factor_options(request: web.Request) -> web.Response:
    """Return the options with which a passkey becomes the second factor of a sign-in.

    Pass `options` to `PublicKeyCredential.parseRequestOptionsFromJSON()`.
    """
    body = await read_body(request, schemas.CHALLENGE_ONLY)
    account = await _find_challenge(request, body["challenge"])
    rows = await read(request.app, queries.list_passkeys, account["user_id"])
    allowed = [Credential(row["credential_id"], row["transports"]) for row in rows]
    signed = challenges.passkey_challenge_of(body["challenge"])
    return json_response({"options": request_options(passkeys.site(request.app), signed, allowed)})
