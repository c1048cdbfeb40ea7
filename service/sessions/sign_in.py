"""Sign-in with a password."""

from typing import Literal

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.auth.attempts import count_attempt, report_refusal
from service.auth.passwords import TOO_MANY_SIGN_INS, rehash_password, verify_password
from service.auth.schemas import TOKENS, TOKENS_EXAMPLE
from service.auth.signing_keys import signing_key
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import read, write
from service.factors import challenge_queries, challenges, queries
from service.factors.problems import SECOND_FACTOR_REQUIRED
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.fields import fold_email
from service.http.problems import CHALLENGE, MISCONFIGURED, Problem, ProblemType
from service.http.requests import json_response, read_body
from service.sessions import schemas as sessions
from service.sessions.start import complete_sign_in, may_sign_in, report_success
from service.telemetry.metrics import count
from service.throttle import limits as throttle
from service.throttle.limits import TOO_MANY_REQUESTS

INVALID_CREDENTIALS = ProblemType(401, "invalid_credentials", "Wrong email or password.", CHALLENGE)


@describe(
    {200: Success("Signed in.", TOKENS, example=TOKENS_EXAMPLE)},
    body=sessions.LOGIN,
    example={"email": examples.EMAIL, "password": examples.PASSWORD},
    problems=(
        INVALID_CREDENTIALS,
        SECOND_FACTOR_REQUIRED,
        TOO_MANY_REQUESTS,
        TOO_MANY_SIGN_INS,
        MISCONFIGURED,
    ),
)
async def login(request: web.Request) -> web.Response:
    """Sign in with email and password.

    The response is the same whether the password is wrong, the account does not exist, or it is
    not allowed to sign in. If the account has a second factor, a right password opens no session:
    the problem `second_factor_required` has a `challenge` for `POST /api/v1/auth/second-factor`,
    and lists the `factors` that the account can use: `totp`, `passkey`, `recovery_code`.
    """
    body = await read_body(request, sessions.LOGIN)
    email_folded = fold_email(body["email"])
    await count_attempt(request, email_folded)
    tokens = await _try_to_sign_in(request, email_folded, body["password"])
    report_success(request)
    return json_response(tokens)


async def _try_to_sign_in(
    request: web.Request, email_folded: str, password: str
) -> dict[str, object]:
    """Return the tokens of a new session. Raises Problem 401."""
    outcome: Literal["wrong", "refused"] = "refused"
    # Retry once: a concurrent sign-in may have rehashed the password during verification.
    for _ in range(2):
        account = await read(request.app, credentials.find_credentials, email_folded)
        allowed = account is not None and may_sign_in(request, account)
        # Refused like an unknown account, so that timing does not reveal whether it is right.
        password_hash = account["password_hash"] if account and allowed else None
        verified = await verify_password(request.app, password_hash, password)
        if account is None or not verified:
            outcome = "refused" if account and not allowed else "wrong"
            break
        rehashed = await rehash_password(request.app, account["password_hash"], password)
        # Load the keys before the transaction, which must not wait for another connection.
        await signing_key(request.app)
        tokens = await write(request.app, _sign_in, request, account, rehashed)
        if tokens is not None:
            REQUEST_CONTEXT.get().user_id = account["id"]
            if isinstance(tokens, Problem):
                count(request.app, "sign_ins", outcome="second_factor_required")
                raise tokens
            return tokens
    report_refusal(request.app, outcome, account["id"] if account else None)
    raise Problem(INVALID_CREDENTIALS)


async def _sign_in(
    conn: Connection, request: web.Request, account: asyncpg.Record, rehashed: str | None
) -> dict[str, object] | Problem | None:
    """Open a session, or return None if sign-in is not allowed or the hash has just changed.

    For an account with a second factor, return the problem that asks for it.
    """
    user = await credentials.lock_credentials(conn, account["id"], account["password_hash"])
    if user is None or not may_sign_in(request, user):
        return None
    if rehashed is not None:
        await credentials.update_password(conn, user["id"], rehashed)
    if user["has_second_factor"]:
        return await _ask_for_second_factor(conn, request, user)
    return await complete_sign_in(conn, request, user, amr=["pwd"], aal=1)


async def _ask_for_second_factor(
    conn: Connection, request: web.Request, user: asyncpg.Record
) -> Problem:
    """Issue a challenge. The attempt is refunded only once the whole sign-in has succeeded."""
    token = challenges.new_token()
    await challenge_queries.insert_challenge(
        conn,
        token_hash=challenges.hash_token(token),
        user_id=user["id"],
        amr=["pwd"],
        tries=challenges.TRIES,
        ttl_s=challenges.TTL_S,
        throttle_counts=throttle.counts_to_keep(request),
        newest=challenges.IN_PROGRESS_MAX - 1,
    )
    usable = await queries.find_usable(conn, user["id"])
    return Problem(SECOND_FACTOR_REQUIRED, members={"challenge": token, "factors": usable})
