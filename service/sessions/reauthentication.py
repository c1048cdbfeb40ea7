"""Proving again who you are, in a session (step-up, RFC 9470)."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from service.accounts import credential_queries as credentials
from service.audit.events import record
from service.auth.assurance import Assurance, assurance_of
from service.auth.attempts import count_guess, report_refusal, require_own
from service.auth.passwords import TOO_MANY_SIGN_INS, WRONG_PASSWORD
from service.auth.schemas import ACCESS_TOKEN, ACCESS_TOKEN_EXAMPLE
from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED, token_response
from service.context import USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.factors import challenges, codes, passkeys
from service.factors.problems import (
    EXPIRED_CHALLENGE,
    PASSKEYS_NOT_CONFIGURED,
    REFUSED_REAUTHENTICATION,
    WRONG_CODE,
)
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.field_errors import field_error, require_one
from service.http.fields import fold_email
from service.http.problems import Problem, invalid_fields
from service.http.requests import json_response, read_body
from service.sessions import queries as session_queries
from service.sessions import schemas
from service.throttle import limits as throttle


@describe(
    {200: Success("The session has been renewed.", ACCESS_TOKEN, example=ACCESS_TOKEN_EXAMPLE)},
    body=schemas.REAUTHENTICATE,
    example={"password": examples.PASSWORD},
    problems=(
        WRONG_PASSWORD,
        WRONG_CODE,
        EXPIRED_CHALLENGE,
        *REFUSED_REAUTHENTICATION,
        PASSKEYS_NOT_CONFIGURED,
        throttle.TOO_MANY_REQUESTS,
        TOO_MANY_SIGN_INS,
    ),
)
async def reauthenticate(request: web.Request) -> web.Response:
    """Prove again that the account is yours, and get a new access token for the session.

    Send the `password`, the `code` that an app shows, or a passkey: the `challenge_id` of
    `POST /api/v1/auth/passkey/options` with the `credential`. A password proves the first level
    again, and nothing about the second. A code proves the second level, and a passkey proves both.
    """
    body = await read_body(request, schemas.REAUTHENTICATE)
    require_one(body, "password", "code", "credential")
    if "credential" in body and "challenge_id" not in body:
        raise invalid_fields(field_error("#/challenge_id", "required", "Send it with credential."))
    user = request[USER]
    if "password" in body:
        account = await read(request.app, credentials.find_own_credentials, user["id"])
        password_hash = account["password_hash"] if account else None
        await require_own(request, user, password_hash, body["password"])
        proved = await write(request.app, _prove_password, request, password_hash)
    else:
        await count_guess(request, fold_email(user["email"]))
        proved = await _prove_factor(request, body)
    return json_response(await token_response(request.app, user["id"], user["session_id"], proved))


async def _prove_password(
    conn: Connection, request: web.Request, password_hash: str | None
) -> Assurance:
    if await credentials.lock_credentials(conn, request[USER]["id"], password_hash) is None:
        raise Problem(WRONG_PASSWORD)
    return await _prove(conn, request, "pwd", [1])


async def _prove_factor(request: web.Request, body: dict[str, Any]) -> Assurance:
    try:
        if "code" in body:
            proved = await write(request.app, _prove_code, request, body["code"])
            if proved is None:
                raise Problem(WRONG_CODE)
            return proved
        challenge = challenges.open_passkey_challenge(
            request.app, body["challenge_id"], challenges.SIGN_IN, EXPIRED_CHALLENGE
        )
        used = await passkeys.check_assertion(
            request.app,
            challenge.value,
            body["credential"],
            refusals=REFUSED_REAUTHENTICATION,
            owner_id=request[USER]["id"],
        )
        return await write(request.app, _prove_passkey, request, challenge, used)
    except Problem as problem:
        if problem.status == 403:
            report_refusal(request.app, "wrong", request[USER]["id"])
        raise


async def _prove_code(conn: Connection, request: web.Request, code: str) -> Assurance | None:
    """Return None for a wrong code, so that it is counted."""
    user_id = request[USER]["id"]
    await credentials.lock_sign_in(conn, user_id)
    if not await codes.use_code(conn, request, user_id, code):
        return None
    return await _prove(conn, request, "otp", [2])


async def _prove_passkey(
    conn: Connection,
    request: web.Request,
    challenge: challenges.PasskeyChallenge,
    used: passkeys.Used,
) -> Assurance:
    await credentials.lock_sign_in(conn, request[USER]["id"])
    await challenges.use_passkey_challenge(conn, challenge, EXPIRED_CHALLENGE)
    await passkeys.note_use(conn, used, REFUSED_REAUTHENTICATION)
    return await _prove(conn, request, used.method, [1, 2])


async def _prove(
    conn: Connection, request: web.Request, method: str, levels: Sequence[int]
) -> Assurance:
    """Renew the levels of the session, in which a proof has just been used."""
    user = request[USER]
    session = await session_queries.prove_level(
        conn, user["id"], user["session_id"], method=method, levels=levels
    )
    if session is None:
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
    await record(conn, request, "session.prove", user["id"], after={"method": method})
    await throttle.refund(conn, request)
    return assurance_of(session)
