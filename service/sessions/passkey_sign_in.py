"""Sign-in with a passkey alone, without a name."""

from aiohttp import web

from service.accounts import credential_queries as credentials
from service.auth.attempts import count_guess, report_refusal
from service.auth.schemas import TOKENS, TOKENS_EXAMPLE
from service.auth.signing_keys import signing_key
from service.context import REQUEST_CONTEXT
from service.db.connection import Connection
from service.db.transactions import write
from service.factors import challenges, passkeys
from service.factors.problems import (
    INVALID_CHALLENGE,
    PASSKEYS_NOT_CONFIGURED,
    REFUSED_ASSERTION,
)
from service.factors.schemas import EXAMPLE_CHALLENGE
from service.factors.webauthn import request_options
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.problems import MISCONFIGURED, Problem
from service.http.requests import json_response, read_body
from service.sessions import schemas
from service.sessions.start import complete_sign_in, may_sign_in, report_success
from service.throttle.limits import TOO_MANY_REQUESTS


@describe(
    {
        200: Success(
            "Options for the browser.",
            schemas.PASSKEY_CHALLENGE,
            example={
                "challenge_id": EXAMPLE_CHALLENGE,
                "options": schemas.REQUEST_OPTIONS_EXAMPLE,
                "expires_at": examples.EXPIRES_AT,
            },
        )
    },
    problems=(PASSKEYS_NOT_CONFIGURED,),
)
async def passkey_options(request: web.Request) -> web.Response:
    """Return the options for signing in, or proving again who you are, with a passkey.

    Pass `options` to `PublicKeyCredential.parseRequestOptionsFromJSON()`. The passkey says whose it
    is, so no email is needed.
    """
    rp = passkeys.site(request.app)
    challenge = await challenges.new_passkey_challenge(request.app, challenges.SIGN_IN)
    return json_response(
        {
            "challenge_id": challenge.id,
            "options": request_options(rp, challenge.value, ()),
            "expires_at": challenge.expires_at,
        }
    )


@describe(
    {200: Success("Signed in.", TOKENS, example=TOKENS_EXAMPLE)},
    body=schemas.PASSKEY_SIGN_IN,
    example={
        "challenge_id": EXAMPLE_CHALLENGE,
        "credential": schemas.ASSERTION_EXAMPLE,
    },
    problems=(
        INVALID_CHALLENGE,
        *REFUSED_ASSERTION,
        PASSKEYS_NOT_CONFIGURED,
        TOO_MANY_REQUESTS,
        MISCONFIGURED,
    ),
)
async def use_passkey(request: web.Request) -> web.Response:
    """Sign in with a passkey.

    Send the `challenge_id` of the options and what `toJSON()` of the browser's credential returns.
    A passkey is two factors in one, so none is asked for in addition.
    """
    body = await read_body(request, schemas.PASSKEY_SIGN_IN)
    challenge = challenges.open_passkey_challenge(
        request.app, body["challenge_id"], challenges.SIGN_IN, INVALID_CHALLENGE
    )
    # Only by client: whoever knows a passkey's id must not be able to lock its owner out.
    await count_guess(request, None)
    user_id = None
    try:
        used = await passkeys.check_assertion(
            request.app, challenge.value, body["credential"], refusals=REFUSED_ASSERTION
        )
        user_id = REQUEST_CONTEXT.get().user_id = used.user_id
        await signing_key(request.app)
        tokens = await write(request.app, _sign_in, request, challenge, used)
    except Problem as problem:
        if problem.status == 401:
            report_refusal(request.app, "wrong", user_id)
        raise
    if tokens is None:
        report_refusal(request.app, "refused", user_id)
        raise Problem(REFUSED_ASSERTION[0], "This passkey cannot sign in.")
    report_success(request)
    return json_response(tokens)


async def _sign_in(
    conn: Connection,
    request: web.Request,
    challenge: challenges.PasskeyChallenge,
    used: passkeys.Used,
) -> dict[str, object] | None:
    """Open a session, or return None if the account may not sign in."""
    user = await credentials.lock_sign_in(conn, used.user_id)
    if user is None or not may_sign_in(request, user):
        return None
    await challenges.use_passkey_challenge(conn, challenge, INVALID_CHALLENGE)
    await passkeys.note_use(conn, used, REFUSED_ASSERTION)
    return await complete_sign_in(conn, request, user, amr=[used.method], aal=2)
