"""Registration and sign-in, and the guard that lets only signed-in callers through."""

import functools
import logging
import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler

from service import throttle
from service.addresses import client_address
from service.admin import queries as admin_queries
from service.audit.events import record, user_agent
from service.auth import queries, schemas
from service.auth.passwords import (
    hash_password,
    rehash_password,
    require_acceptable,
    verify_password,
)
from service.auth.signing_keys import PUBLIC_KEYS_MAX_AGE_S, public_keys, signing_key
from service.auth.tokens import find_verified, token_response, verify_access_token
from service.database import Connection, read, write
from service.errors import Problem, not_signed_in, refused
from service.fields import fold_email
from service.idempotency import write_once
from service.keys import REGISTERED, SETTINGS, SIGNED_IN, USER
from service.metrics import count
from service.recovery.links import send_mail, start_email_verification
from service.requests import json_response, read_body, uniform_time
from service.sessions import queries as session_queries
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.users import queries as user_queries
from service.users.schemas import OWN_PROFILE

log = logging.getLogger(__name__)


def anyone(app: web.Application, handler: Handler) -> Handler:
    """Access for all: the route asks for no token."""
    return handler


def signed_in(app: web.Application, handler: Handler) -> Handler:
    """Access for the bearer of a token whose session is alive.

    One read gives user and session.
    """
    sessions = app[SIGNED_IN]

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise not_signed_in()
        token = token.strip()
        bearer = find_verified(app, token) or await verify_access_token(app, token)
        user = await sessions.find(bearer.session_id)
        if user is None or user["id"] != bearer.user_id:
            raise not_signed_in("The session has ended; sign in again.", "invalid_token")
        request[USER] = user
        return await handler(request)

    return guarded


def support(app: web.Application, handler: Handler) -> Handler:
    """Access for those who help users: support may read, and so may administrators."""
    return signed_in(app, _only_for(handler, "support", "admin"))


def admin(app: web.Application, handler: Handler) -> Handler:
    """Access for administrators."""
    return signed_in(app, _only_for(handler, "admin"))


def _only_for(handler: Handler, *roles: str) -> Handler:
    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        role = request[USER]["role"]
        if role == "user" and "user_id" in request.match_info:
            # Whoever may read nobody's account is not told whose are there.
            raise Problem(404, "not_found", "There is no such account.")
        if role not in roles:
            raise Problem(403, "forbidden", "Your role does not allow this.")
        return await handler(request)

    return guarded


async def register(request: web.Request) -> web.Response:
    """Create an account and sign it in, or, where addresses are verified first, mail its owner."""
    body = await read_body(request, schemas.REGISTER)
    require_acceptable(request.app, body["password"], "#/password", (body["email"], body["name"]))
    await throttle.check(request, throttle.REGISTRATION)
    password_hash = await hash_password(request.app, body["password"])
    if not request.app[SETTINGS].require_email_verification:
        await signing_key(request.app)  # as at a sign-in
        response = await write_once(request, _register, request, body, password_hash)
    else:
        async with uniform_time():
            response = await write_once(request, _register_unverified, request, body, password_hash)
    if request.get(REGISTERED):
        count(request.app, "registrations")
    return response


async def _register(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> web.Response:
    user = await _create_account(conn, request, body, password_hash)
    if user is None:
        raise Problem(409, "email_taken", "There is an account with this address.")
    tokens = await _open_session(conn, request, user["id"])
    return json_response({**tokens, "user": OWN_PROFILE.dump(user)}, status=201)


async def _register_unverified(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> web.Response:
    """202 whether the address is taken or not: what it is, only its owner's mailbox is told."""
    if await _create_account(conn, request, body, password_hash) is None:
        owner = await user_queries.lock_by_email(conn, fold_email(body["email"]))
        if owner is not None:
            await send_mail(conn, request.app, owner, "account_exists")
    return web.Response(status=202)


async def _create_account(
    conn: Connection, request: web.Request, body: dict[str, Any], password_hash: str
) -> asyncpg.Record | None:
    user = await user_queries.insert_user(
        conn,
        user_id=uuid_utils.uuid7(),
        email=body["email"],
        email_folded=fold_email(body["email"]),
        name=body["name"],
        password_hash=password_hash,
    )
    if user is not None:
        await start_email_verification(conn, request.app, user)
        await record(conn, request, "user.register", user["id"], actor_id=user["id"])
    request[REGISTERED] = user is not None
    return user


async def login(request: web.Request) -> web.Response:
    """Exchange address and password for tokens; every way to be refused looks the same."""
    body = await read_body(request, schemas.LOGIN)
    email_folded = fold_email(body["email"])
    try:
        await throttle.check(request, throttle.SIGN_IN, email_folded)
    except Problem as problem:
        if problem.status == 429:
            count(request.app, "sign_ins", outcome="throttled")
        raise
    outcome, tokens = await _try_to_sign_in(request, email_folded, body["password"])
    count(request.app, "sign_ins", outcome=outcome)
    if tokens is None:
        raise refused("invalid_credentials", "Wrong e-mail address or password.")
    return json_response(tokens)


async def _try_to_sign_in(
    request: web.Request, email_folded: str, password: str
) -> tuple[str, dict[str, object] | None]:
    """What came of it, for the operator alone, and the tokens where it is a success."""
    outcome = "refused"
    # Twice, for the sign-in whose hash was replaced, while it was verified, by another's rehash.
    for _ in range(2):
        account = await read(request.app, queries.find_credentials, email_folded)
        password_hash = account["password_hash"] if account else None
        verified = await verify_password(request.app, password_hash, password)
        if account is None or not verified:
            outcome = "wrong"
            break
        if not _may_sign_in(request, account):
            break
        rehashed = await rehash_password(request.app, account["password_hash"], password)
        # No transaction waits for keys that are read in another.
        await signing_key(request.app)
        tokens = await write(request.app, _sign_in, request, account, rehashed)
        if tokens is not None:
            return "success", tokens
    # Whom they try to be is nowhere else: the request's line knows only those who signed in.
    log.info("sign-in refused", extra={"account_id": account["id"] if account else None})
    return outcome, None


def _may_sign_in(request: web.Request, account: asyncpg.Record) -> bool:
    """Looked at after the password, so that an account that may not takes no other time."""
    unverified = request.app[SETTINGS].require_email_verification and not account["email_verified"]
    return not account["suspended"] and not unverified


async def _sign_in(
    conn: Connection, request: web.Request, account: asyncpg.Record, rehashed: str | None
) -> dict[str, object] | None:
    """Open a session; None where the account may not, or its hash has just been changed."""
    user = await queries.lock_credentials(conn, account["id"], account["password_hash"])
    if user is None or not _may_sign_in(request, user):
        return None
    if user["status"] != "active":
        # A deletion asked for and regretted, or a suspension that has passed.
        await admin_queries.reactivate_account(conn, user["id"])
        before = {"status": user["status"]}
        await record(
            conn, request, "user.reactivate", user["id"], actor_id=user["id"], before=before
        )
    if rehashed is not None:
        await user_queries.update_password(conn, user["id"], rehashed)
    await record(conn, request, "session.start", user["id"], actor_id=user["id"])
    tokens = await _open_session(conn, request, user["id"])
    await throttle.forgive(conn, request)
    return tokens


async def _open_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID
) -> dict[str, object]:
    """A new session and the tokens that belong to it."""
    settings = request.app[SETTINGS]
    session_id = uuid_utils.uuid7()
    refresh_token = new_refresh_token()
    await session_queries.insert_session(
        conn,
        session_id=session_id,
        user_id=user_id,
        refresh_token_hash=hash_refresh_token(refresh_token),
        ttl_s=settings.session_ttl_s,
        idle_ttl_s=settings.session_idle_ttl_s,
        user_agent=user_agent(request),
        address=client_address(request),
    )
    await throttle.remember_network(conn, request, user_id)
    return await token_response(request.app, user_id, session_id, refresh_token)


async def jwks(request: web.Request) -> web.Response:
    """The keys that verify access tokens, for other services (RFC 7517)."""
    keys = {"keys": await public_keys(request.app)}
    return json_response(
        keys, headers={"Cache-Control": f"public, max-age={PUBLIC_KEYS_MAX_AGE_S}"}
    )
