"""Registration and sign-in, and the guard that lets only signed-in callers through."""

import functools
import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler

from service.auth import queries, schemas
from service.auth.passwords import hash_password, require_acceptable, verify_password
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


def support(handler: Handler) -> Handler:
    """Access for those who help users: support may read, and so may administrators."""
    return signed_in(_only_for(handler, "support", "admin"))


def admin(handler: Handler) -> Handler:
    """Access for administrators."""
    return signed_in(_only_for(handler, "admin"))


def _only_for(handler: Handler, *roles: str) -> Handler:
    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        if request[USER]["role"] not in roles:
            raise Problem(403, "forbidden", "Your role does not allow this.")
        return await handler(request)

    return guarded


async def register(request: web.Request) -> web.Response:
    """Create an account and sign it in."""
    body = await read_body(request, schemas.REGISTER)
    require_acceptable(request.app, body["password"], "#/password")
    password_hash = await hash_password(request.app, body["password"])
    refresh_token = new_refresh_token()
    user, session_id = await write(
        request.app,
        _create_account,
        body,
        password_hash,
        refresh_token,
        request.app[SETTINGS].session_ttl_s,
    )
    tokens = await _tokens(request.app, user["id"], session_id, refresh_token)
    return json_response({**tokens, "user": OWN_PROFILE.dump(user)}, status=201)


async def _create_account(
    conn: Connection,
    body: dict[str, Any],
    password_hash: str,
    refresh_token: str,
    session_ttl_s: int,
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
    return user, await _open_session(conn, user["id"], refresh_token, session_ttl_s)


async def login(request: web.Request) -> web.Response:
    """Exchange address and password for tokens; every way to be refused looks the same."""
    body = await read_body(request, schemas.LOGIN)
    refused = Problem(401, "invalid_credentials", "Wrong e-mail address or password.")
    account = await read(request.app, queries.find_credentials, fold_email(body["email"]))
    password_hash = account["password_hash"] if account else None
    verified = await verify_password(request.app, password_hash, body["password"])
    if account is None or not verified:
        raise refused
    refresh_token = new_refresh_token()
    session_id = await write(
        request.app,
        _sign_in,
        account["id"],
        account["password_hash"],
        refresh_token,
        request.app[SETTINGS].session_ttl_s,
    )
    if session_id is None:
        raise refused
    return json_response(await _tokens(request.app, account["id"], session_id, refresh_token))


async def _sign_in(
    conn: Connection,
    user_id: uuid.UUID,
    password_hash: str,
    refresh_token: str,
    session_ttl_s: int,
) -> uuid.UUID | None:
    if not await queries.lock_credentials(conn, user_id, password_hash):
        return None
    return await _open_session(conn, user_id, refresh_token, session_ttl_s)


async def _open_session(
    conn: Connection, user_id: uuid.UUID, refresh_token: str, session_ttl_s: int
) -> uuid.UUID:
    session_id = uuid_utils.uuid7()
    await session_queries.insert_session(
        conn, session_id, user_id, hash_refresh_token(refresh_token), session_ttl_s
    )
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
