"""Endpoints for owners to list, add, rename and remove their second factors and passkeys."""

import asyncio
import os
import uuid

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.accounts import queries as accounts
from service.audit.events import record
from service.auth.assurance import (
    RECENT_S,
    needs_second_factor,
    require_level,
    require_recent,
)
from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED
from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.factors import challenge_queries, challenges, codes, passkeys, queries, schemas, totp
from service.factors.aaguids import name_of
from service.factors.listing import describe_factors, event_of
from service.factors.problems import (
    CREDENTIAL_TAKEN,
    EXPIRED_CHALLENGE,
    FACTOR_NOT_FOUND,
    LAST_SECOND_FACTOR,
    LAST_WAY_IN,
    PASSKEYS_NOT_CONFIGURED,
    REFUSED_REGISTRATION,
    TOO_MANY_FACTORS,
    WRONG_CODE,
    refused,
)
from service.factors.removal import update_after_removal
from service.factors.webauthn import (
    NewPasskey,
    PasskeyRefused,
    creation_options,
    verify_registration,
)
from service.http import examples
from service.http.descriptions import Success, describe
from service.http.fields import fold_email
from service.http.idempotency import write_once
from service.http.problems import MISCONFIGURED, Problem
from service.http.requests import json_response, read_body
from service.mail.notices import send_mail
from service.recovery.queries import delete_tokens
from service.sessions import queries as session_queries
from service.sessions.ending import end_other_sessions
from service.throttle import limits as throttle
from service.throttle.limits import TOO_MANY_REQUESTS

# Of one account.
TOTP_MAX = 3
PASSKEYS_MAX = 20
_HANDLE_BYTES = 32


@describe(
    {
        200: Success("The factors.", schemas.FACTORS, example=schemas.FACTORS_EXAMPLE),
    }
)
async def list_factors(request: web.Request) -> web.Response:
    """List the account's second factors and passkeys, oldest first."""
    return json_response(await read(request.app, describe_factors, request[USER]["id"]))


@describe(
    {
        201: Success(
            "Started. Confirm it with a code.",
            schemas.PENDING_TOTP,
            example=schemas.PENDING_TOTP_EXAMPLE,
        )
    },
    body=schemas.START_TOTP,
    body_required=False,
    example={"name": "Phone"},
    problems=(TOO_MANY_FACTORS, TOO_MANY_REQUESTS),
    idempotent=True,
)
async def start_totp(request: web.Request) -> web.Response:
    """Start to add an authenticator app, which makes one-time codes (TOTP).

    The app works once it is confirmed with a code. An unconfirmed app is deleted after an hour, or
    when you start another.
    """
    sent = await request.read()
    body = await read_body(request, schemas.START_TOTP) if sent else schemas.START_TOTP.load({})
    await throttle.check(request, throttle.SECOND_FACTORS, fold_email(request[USER]["email"]))
    secret = totp.new_secret()
    uri = totp.otpauth_uri(secret, request.app[SETTINGS].service_name, request[USER]["email"])
    # Takes milliseconds.
    qr_svg = await asyncio.to_thread(totp.qr_svg, uri)
    pending = {"secret": totp.to_base32(secret), "otpauth_uri": uri, "qr_svg": qr_svg}
    return await write_once(request, _start_totp, request, body["name"], secret, pending)


async def _start_totp(
    conn: Connection, request: web.Request, name: str, secret: bytes, pending: dict[str, str]
) -> web.Response:
    user, factor_id = await _lock_owner(conn, request), uuid_utils.uuid7()
    if await queries.count_factors(conn, user["id"], "totp") >= TOTP_MAX:
        raise Problem(TOO_MANY_FACTORS)
    await queries.insert_pending_totp(
        conn,
        factor_id=factor_id,
        user_id=user["id"],
        name=name,
        sealed_secret=codes.seal_secret(request.app, factor_id, secret),
    )
    return json_response({"id": factor_id, **pending}, status=201)


@describe(
    {
        200: Success(
            "Confirmed.",
            schemas.NEW_RECOVERY_CODES,
            example={"recovery_codes": schemas.CODES_EXAMPLE},
        )
    },
    body=schemas.CONFIRM_TOTP,
    example={"code": "492039"},
    problems=(WRONG_CODE, TOO_MANY_REQUESTS, MISCONFIGURED),
    idempotent=True,
)
async def confirm_totp(request: web.Request) -> web.Response:
    """Confirm an app with a code that it shows.

    With the first second factor, all other sessions end, and the response has recovery codes.
    """
    body = await read_body(request, schemas.CONFIRM_TOTP)
    await throttle.check(request, throttle.SECOND_FACTORS, fold_email(request[USER]["email"]))
    return await write_once(request, _confirm_totp, request, body["code"])


async def _confirm_totp(conn: Connection, request: web.Request, code: str) -> web.Response:
    user = await _lock_owner(conn, request)
    pending = await queries.find_pending_totp(conn, user["id"], _factor_id(request))
    if pending is None:
        raise Problem(FACTOR_NOT_FOUND)
    step = codes.find_step(request.app, pending, code)
    if step is None:
        raise Problem(WRONG_CODE)
    await queries.confirm_totp(conn, pending["id"], step)
    new_codes = await _added(conn, request, user, pending, "otp")
    return json_response({"recovery_codes": new_codes})


@describe(
    {
        200: Success(
            "Options for the browser.",
            schemas.CREATION_CHALLENGE,
            example={
                "challenge_id": schemas.EXAMPLE_CHALLENGE,
                "options": schemas.CREATION_OPTIONS_EXAMPLE,
                "expires_at": examples.EXPIRES_AT,
            },
        )
    },
    problems=(TOO_MANY_FACTORS, PASSKEYS_NOT_CONFIGURED),
)
async def passkey_options(request: web.Request) -> web.Response:
    """Return the options for adding a passkey.

    Pass `options` to `PublicKeyCredential.parseCreationOptionsFromJSON()`.
    """
    rp, user = passkeys.site(request.app), request[USER]
    rows = await read(request.app, queries.list_passkeys, user["id"])
    if len(rows) >= PASSKEYS_MAX:
        raise Problem(TOO_MANY_FACTORS)
    handle = await read(request.app, credentials.find_passkey_handle, user["id"])
    if handle is None:
        chosen = os.urandom(_HANDLE_BYTES)
        handle = await write(request.app, credentials.set_passkey_handle, user["id"], chosen)
    challenge = await challenges.new_passkey_challenge(request.app, _registration(user))
    options = creation_options(
        rp,
        user_handle=handle,
        email=user["email"],
        display_name=user["name"] or user["email"],
        challenge=challenge.value,
        exclude=[row["credential_id"] for row in rows],
    )
    return json_response(
        {"challenge_id": challenge.id, "options": options, "expires_at": challenge.expires_at}
    )


@describe(
    {
        201: Success(
            "Added.",
            schemas.NEW_PASSKEY,
            example={**schemas.FACTOR_EXAMPLE, "recovery_codes": schemas.CODES_EXAMPLE},
        )
    },
    body=schemas.ADD_PASSKEY,
    example={
        "challenge_id": schemas.EXAMPLE_CHALLENGE,
        "credential": schemas.REGISTRATION_EXAMPLE,
        "name": "Phone",
    },
    problems=(
        EXPIRED_CHALLENGE,
        *REFUSED_REGISTRATION,
        CREDENTIAL_TAKEN,
        TOO_MANY_FACTORS,
        TOO_MANY_REQUESTS,
        PASSKEYS_NOT_CONFIGURED,
    ),
    idempotent=True,
)
async def add_passkey(request: web.Request) -> web.Response:
    """Add a passkey.

    Send the `challenge_id` of the options and what `toJSON()` of the browser's credential returns.
    With the first second factor, all other sessions end, and the response has recovery codes.
    """
    body = await read_body(request, schemas.ADD_PASSKEY)
    rp, user = passkeys.site(request.app), request[USER]
    challenge = challenges.open_passkey_challenge(
        request.app, body["challenge_id"], _registration(user), EXPIRED_CHALLENGE
    )
    try:
        passkey = verify_registration(rp, challenge.value, body["credential"])
    except PasskeyRefused as error:
        raise refused(error, REFUSED_REGISTRATION) from None
    name = body.get("name") or name_of(passkey.aaguid) or "Passkey"
    await throttle.check(request, throttle.SECOND_FACTORS, fold_email(user["email"]))
    return await write_once(request, _add_passkey, request, challenge, passkey, name)


async def _add_passkey(
    conn: Connection,
    request: web.Request,
    challenge: challenges.PasskeyChallenge,
    passkey: NewPasskey,
    name: str,
) -> web.Response:
    user = await _lock_owner(conn, request)
    await challenges.use_passkey_challenge(conn, challenge, EXPIRED_CHALLENGE)
    if await queries.count_factors(conn, user["id"], "passkey") >= PASSKEYS_MAX:
        raise Problem(TOO_MANY_FACTORS)
    factor = await queries.insert_passkey(
        conn, factor_id=uuid_utils.uuid7(), user_id=user["id"], name=name, **passkey._asdict()
    )
    if factor is None:
        raise Problem(CREDENTIAL_TAKEN)
    method = passkeys.method_of(passkey.backup_eligible)
    new_codes = await _added(conn, request, user, factor, method)
    return json_response(
        schemas.NEW_PASSKEY.dump({**factor, "recovery_codes": new_codes}), status=201
    )


@describe(
    {200: Success("Renamed.", schemas.FACTOR, example=schemas.FACTOR_EXAMPLE)},
    body=schemas.RENAME_FACTOR,
    example={"name": "Work laptop"},
)
async def rename_factor(request: web.Request) -> web.Response:
    """Rename a second factor or passkey."""
    body = await read_body(request, schemas.RENAME_FACTOR)
    return json_response(await write(request.app, _rename, request, body["name"]))


async def _rename(conn: Connection, request: web.Request, name: str) -> dict[str, object]:
    user_id = request[USER]["id"]
    factor = await queries.rename_factor(conn, user_id, _factor_id(request), name)
    if factor is None:
        raise Problem(FACTOR_NOT_FOUND)
    await record(conn, request, "factor.rename", user_id, after=event_of(factor))
    renamed: dict[str, object] = schemas.FACTOR.dump(factor)
    return renamed


@describe(
    {204: Success("Removed. All other sessions have ended.")},
    problems=(LAST_SECOND_FACTOR, LAST_WAY_IN, TOO_MANY_REQUESTS),
)
async def remove_factor(request: web.Request) -> web.Response:
    """Remove a second factor or passkey.

    All other sessions end. With the last one, the recovery codes go too.
    """
    await throttle.check(request, throttle.SECOND_FACTORS, fold_email(request[USER]["email"]))
    await write(request.app, _remove, request)
    return web.Response(status=204)


async def _remove(conn: Connection, request: web.Request) -> None:
    user = await _lock_owner(conn, request)
    removed = await queries.delete_factor(conn, user["id"], _factor_id(request))
    if not removed:
        raise Problem(FACTOR_NOT_FOUND)
    await passkeys.keep_a_way_in(conn, user["id"])
    has_second_factor = await update_after_removal(conn, request, user["id"], removed)
    if not has_second_factor and needs_second_factor(request.app, user["role"]):
        raise Problem(LAST_SECOND_FACTOR)
    await end_other_sessions(conn, request)
    await send_mail(conn, request.app, user, "second_factor_removed")


@describe(
    {
        201: Success(
            "New codes. The old ones no longer work.",
            schemas.RECOVERY_CODES,
            example={"recovery_codes": schemas.CODES_EXAMPLE},
        )
    },
    problems=(TOO_MANY_REQUESTS,),
    idempotent=True,
)
async def make_recovery_codes(request: web.Request) -> web.Response:
    """Make ten new recovery codes, in place of those that are left."""
    await throttle.check(request, throttle.SECOND_FACTORS, fold_email(request[USER]["email"]))
    return await write_once(request, _make_recovery_codes, request)


async def _make_recovery_codes(conn: Connection, request: web.Request) -> web.Response:
    user = await _lock_owner(conn, request)
    require_level(request[USER], 2, RECENT_S)
    new_codes = await codes.replace_recovery_codes(conn, request.app, user["id"])
    await challenge_queries.delete_challenges(conn, user["id"])
    await send_mail(conn, request.app, user, "recovery_codes_replaced")
    await record(conn, request, "factor.replace_codes", user["id"])
    return json_response({"recovery_codes": new_codes}, status=201)


async def _added(
    conn: Connection,
    request: web.Request,
    user: asyncpg.Record,
    factor: asyncpg.Record,
    method: str,
) -> list[str] | None:
    """Apply the effects of a new factor, and return recovery codes if it is the first.

    The session has just proved it. Others, which have not, end with the first, and so do links that
    were requested without it.
    """
    new_codes = None
    if not request[USER]["has_second_factor"]:
        new_codes = await codes.replace_recovery_codes(conn, request.app, user["id"])
        await end_other_sessions(conn, request)
        for purpose in ("password_reset", "email_change"):
            await delete_tokens(conn, user["id"], purpose)
    await credentials.set_has_second_factor(conn, user["id"], has=True)
    await challenge_queries.delete_challenges(conn, user["id"])
    session_id = request[USER]["session_id"]
    if not await session_queries.prove_level(
        conn, user["id"], session_id, method=method, levels=[2]
    ):
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
    await send_mail(conn, request.app, user, "second_factor_added")
    await record(conn, request, "factor.add", user["id"], after=event_of(factor))
    return new_codes


async def _lock_owner(conn: Connection, request: web.Request) -> asyncpg.Record:
    """Lock the caller's account and return its profile.

    Raises a Problem if the session has ended. What the session proves is read again, because
    another request may just have added or removed a factor.
    """
    user = await accounts.lock_profile(conn, request[USER]["id"])
    found = await session_queries.find_signed_in(conn, [request[USER]["session_id"]])
    session = found.get(request[USER]["session_id"])
    if user is None or session is None:
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
    require_recent(session)
    request[USER] = session
    return user


def _registration(user: asyncpg.Record) -> str:
    """Bind the challenge of a registration to its session."""
    return f"{challenges.REGISTRATION} {user['session_id']}"


def _factor_id(request: web.Request) -> uuid.UUID:
    return uuid.UUID(request.match_info["factor_id"])
