"""The second step of a sign-in, for accounts with a second factor."""

from collections.abc import Sequence
from typing import Any

import asyncpg
from aiohttp import web

from service.accounts import queries as accounts
from service.auth.attempts import count_guess, report_refusal
from service.auth.schemas import TOKENS, TOKENS_EXAMPLE
from service.auth.signing_keys import signing_key
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import read, write
from service.factors import challenges, codes, passkeys, queries
from service.factors.problems import (
    INVALID_CHALLENGE,
    PASSKEYS_NOT_CONFIGURED,
    REFUSED_ASSERTION,
    WRONG_SECOND_FACTOR,
)
from service.factors.webauthn import Credential, request_options
from service.http.descriptions import Success, describe
from service.http.field_errors import require_one
from service.http.problems import MISCONFIGURED, Problem
from service.http.requests import json_response, read_body
from service.mail.notices import send_mail
from service.sessions import schemas
from service.sessions.start import complete_sign_in, may_sign_in, report_success
from service.throttle.limits import TOO_MANY_REQUESTS, kept_counts


@describe(
    {200: Success("Signed in.", TOKENS, example=TOKENS_EXAMPLE)},
    body=schemas.SECOND_FACTOR,
    example={"challenge": schemas.EXAMPLE_CHALLENGE, "code": "492039"},
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
    token_hash = challenges.hash_token(body["challenge"])
    account = await _find_challenge(request, token_hash)
    await count_guess(request, account["email_folded"])
    try:
        tokens = await _try_factor(request, body, token_hash, account)
    except Problem as problem:
        if problem.status == 401:
            report_refusal(request.app, "wrong", account["user_id"])
        raise
    report_success(request)
    return json_response(tokens)


async def _find_challenge(request: web.Request, token_hash: bytes) -> asyncpg.Record:
    account = await read(request.app, queries.find_challenge, token_hash)
    if account is None:
        raise Problem(INVALID_CHALLENGE)
    REQUEST_CONTEXT.get().user_id = account["user_id"]
    return account


async def _try_factor(
    request: web.Request, body: dict[str, Any], token_hash: bytes, account: asyncpg.Record
) -> dict[str, object]:
    user_id, code = account["user_id"], body.get("code")
    apps = await write(request.app, _take_try, token_hash, account, is_code=code is not None)
    match = codes.match_code(request.app, apps, code) if code is not None else None
    if code is not None and match is None:
        await write(request.app, codes.report_locked, request, user_id, apps)
        raise Problem(WRONG_SECOND_FACTOR)
    used = None
    if "credential" in body:
        signed = challenges.passkey_challenge_of(body["challenge"])
        used = await passkeys.check_assertion(
            request.app, signed, body["credential"], refusals=REFUSED_ASSERTION, owner_id=user_id
        )
    # Load the keys before the transaction, which must not wait for another connection.
    await signing_key(request.app)
    proof = match or used or str(body["recovery_code"])
    return await write(request.app, _finish, request, token_hash, account, proof)


async def _take_try(
    conn: Connection, token_hash: bytes, account: asyncpg.Record, *, is_code: bool
) -> Sequence[asyncpg.Record]:
    """Take a try before it is known whether it is right, so that no number at once gets more."""
    if not await queries.take_try(conn, token_hash):
        raise Problem(INVALID_CHALLENGE)
    return await queries.count_failure(conn, account["user_id"]) if is_code else ()


async def _finish(
    conn: Connection,
    request: web.Request,
    token_hash: bytes,
    account: asyncpg.Record,
    proof: codes.Match | passkeys.Used | str,
) -> dict[str, object]:
    """Use up the challenge and the proof, and open the session."""
    user = await accounts.lock_sign_in(conn, account["user_id"])
    challenge = await queries.use_sign_in_challenge(conn, token_hash)
    if user is None or challenge is None or not may_sign_in(request, user):
        raise Problem(INVALID_CHALLENGE)
    match proof:
        case codes.Match(factor_id, step):
            method, is_good = "otp", await queries.use_step(conn, factor_id, step)
        case passkeys.Used():
            method, is_good = proof.method, True
            await passkeys.note_use(conn, proof, REFUSED_ASSERTION)
        case _:
            is_good = await codes.use_recovery_code(conn, request.app, user["id"], proof)
            method = "rec"
    if not is_good:
        raise Problem(WRONG_SECOND_FACTOR)
    if method == "rec":
        owner = await accounts.lock_profile(conn, user["id"])
        assert owner is not None  # noqa: S101
        left = str(await queries.count_recovery_codes(conn, user["id"]))
        await send_mail(conn, request.app, owner, "recovery_code_used", left=left)
    return await complete_sign_in(
        conn,
        request,
        user,
        amr=[*challenge["amr"], method],
        aal=2,
        earlier=kept_counts(challenge["throttle_counts"]),
    )


@describe(
    {
        200: Success(
            "What the browser is to ask the authenticator.",
            schemas.PASSKEY_OPTIONS,
            example={"options": schemas.REQUEST_OPTIONS_EXAMPLE},
        )
    },
    body=schemas.CHALLENGE_ONLY,
    example={"challenge": schemas.EXAMPLE_CHALLENGE},
    problems=(INVALID_CHALLENGE, PASSKEYS_NOT_CONFIGURED),
)
async def second_factor_options(request: web.Request) -> web.Response:
    """Return the options with which a passkey becomes the second factor of a sign-in.

    Pass `options` to `PublicKeyCredential.parseRequestOptionsFromJSON()`.
    """
    body = await read_body(request, schemas.CHALLENGE_ONLY)
    account = await _find_challenge(request, challenges.hash_token(body["challenge"]))
    rows = await read(request.app, queries.list_passkeys, account["user_id"])
    allowed = [Credential(row["credential_id"], row["transports"]) for row in rows]
    signed = challenges.passkey_challenge_of(body["challenge"])
    return json_response({"options": request_options(passkeys.site(request.app), signed, allowed)})
