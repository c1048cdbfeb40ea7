"""Registration and sign-in, and the guard that lets only signed-in callers through."""

import functools
import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler

from service import throttle
from service.auth import queries, schemas
from service.auth.passwords import (
    hash_password,
    rehash_password,
    require_acceptable,
    verify_password,
)
from service.auth.tokens import public_keys, sign_access_token, verify_access_token
from service.database import Connection, read, write
from service.errors import Problem, not_signed_in
from service.fields import fold_email
from service.keys import SETTINGS, USER
from service.requests import json_response, read_body
from service.sessions import queries as session_queries
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.users import queries as user_queries
from service.users.schemas import OWN_PROFILE


def anyone(handler: Handler) -> Handler:
    """Access for all: the route asks for no token."""
    return handler


def signed_in(handler: Handler) -> Handler:
    """Access for the bearer of a token whose session is alive: one read gives user and session."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise not_signed_in()
        bearer = await verify_access_token(request.app, token.strip())
        user = await read(
            request.app, session_queries.find_signed_in, bearer.session_id, bearer.user_id
        )
        if user is None:
            raise not_signed_in("The session has ended; sign in again.", "invalid_token")
        request[USER] = user
        return await handler(request)

    return guarded


async def register(request: web.Request) -> web.Response:
    """Create an account and sign it in."""
    body = await read_body(request, schemas.REGISTER)
    require_acceptable(request.app, body["password"], "#/password")
    await throttle.check(request, throttle.REGISTRATION)
    password_hash = await hash_password(request.app, body["password"])
    refresh_token = new_refresh_token()
    user, session_id = await write(
        request.app, _create_account, request, body, password_hash, refresh_token
    )
    tokens = await _tokens(request.app, user["id"], session_id, refresh_token)
    return json_response({**tokens, "user": OWN_PROFILE.dump(user)}, status=201)


async def _create_account(
    conn: Connection,
    request: web.Request,
    body: dict[str, Any],
    password_hash: str,
    refresh_token: str,
) -> tuple[asyncpg.Record, uuid.UUID]:
    try:
        user = await user_queries.insert_user(
            conn,
            user_id=uuid_utils.uuid7(),
            email=body["email"],
            email_folded=fold_email(body["email"]),
            name=body["name"],
            password_hash=password_hash,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "users_email_folded_key":
            raise
        raise Problem(409, "email_taken", "There is an account with this address.") from None
    return user, await _open_session(conn, request, user["id"], refresh_token)


async def login(request: web.Request) -> web.Response:
    """Exchange address and password for tokens; every way to be refused looks the same."""
    body = await read_body(request, schemas.LOGIN)
    email_folded = fold_email(body["email"])
    await throttle.check(request, throttle.SIGN_IN, email_folded)
    # Twice, for the sign-in whose hash was replaced, while it was verified, by another's rehash.
    for _ in range(2):
        account = await read(request.app, queries.find_credentials, email_folded)
        password_hash = account["password_hash"] if account else None
        verified = await verify_password(request.app, password_hash, body["password"])
        if account is None or not verified:
            break
        rehashed = await rehash_password(request.app, account["password_hash"], body["password"])
        refresh_token = new_refresh_token()
        session_id = await write(request.app, _sign_in, request, account, rehashed, refresh_token)
        if session_id is not None:
            return json_response(
                await _tokens(request.app, account["id"], session_id, refresh_token)
            )
    raise Problem(401, "invalid_credentials", "Wrong e-mail address or password.")


async def _sign_in(
    conn: Connection,
    request: web.Request,
    account: asyncpg.Record,
    rehashed: str | None,
    refresh_token: str,
) -> uuid.UUID | None:
    """Open a session; None where the password, or its hash, has just been changed."""
    if not await queries.lock_credentials(conn, account["id"], account["password_hash"]):
        return None
    if rehashed is not None:
        await queries.replace_password_hash(conn, account["id"], rehashed)
    session_id = await _open_session(conn, request, account["id"], refresh_token)
    await throttle.forgive(conn, request)
    return session_id


async def _open_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID, refresh_token: str
) -> uuid.UUID:
    session_id = uuid_utils.uuid7()
    await session_queries.insert_session(
        conn,
        session_id,
        user_id,
        hash_refresh_token(refresh_token),
        request.app[SETTINGS].session_ttl_s,
    )
    await throttle.remember_network(conn, request, user_id)
    return session_id


async def _tokens(
    app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID, refresh_token: str
) -> dict[str, object]:
    """The token response of RFC 6749 §5.1."""
    return {
        "access_token": await sign_access_token(app, user_id, session_id),
        "token_type": "bearer",
        "expires_in": app[SETTINGS].access_token_ttl_s,
        "refresh_token": refresh_token,
    }


async def jwks(request: web.Request) -> web.Response:
    """The keys that verify access tokens, for other services (RFC 7517)."""
    keys = {"keys": await public_keys(request.app)}
    return json_response(keys, headers={"Cache-Control": "public, max-age=300"})
