"""Endpoints for owners to refresh, list and end their sessions."""

import uuid
from typing import NamedTuple

import asyncpg
from aiohttp import web

from service.audit.events import record, user_agent
from service.auth.assurance import assurance_of
from service.auth.guards import identify
from service.auth.schemas import TOKENS, TOKENS_EXAMPLE
from service.auth.tokens import token_response
from service.context import REQUEST_CONTEXT, SETTINGS, USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http.client_ip import client_ip
from service.http.descriptions import Success, describe
from service.http.pages import PAGE, page_example, read_cursor, render_page
from service.http.problems import CHALLENGE, MISCONFIGURED, SESSION_NOT_FOUND, Problem, ProblemType
from service.http.requests import json_response, read_body, read_query
from service.sessions import queries, schemas
from service.sessions.ending import end_other_sessions
from service.sessions.tokens import hash_refresh_token, next_refresh_token

# How long a client whose response was lost may send a used token again. This covers short outages;
# it ends early once the successor is used.
RETRY_GRACE_S = 5 * 60

INVALID_REFRESH_TOKEN = ProblemType(
    401,
    "invalid_refresh_token",
    "This refresh token is invalid or has expired. Sign in again.",
    CHALLENGE,
)


class Refreshed(NamedTuple):
    """A refreshed session and its next refresh token."""

    session: asyncpg.Record
    refresh_token: str


@describe(
    {200: Success("A new pair of tokens.", TOKENS, example=TOKENS_EXAMPLE)},
    body=schemas.REFRESH,
    example={"refresh_token": TOKENS_EXAMPLE["refresh_token"]},
    problems=(INVALID_REFRESH_TOKEN, MISCONFIGURED),
)
async def refresh(request: web.Request) -> web.Response:
    """Exchange a refresh token for a new pair of tokens. Each refresh token works once."""
    body = await read_body(request, schemas.REFRESH)
    refreshed = await write(request.app, _rotate, request, body["refresh_token"])
    if refreshed is None:
        raise Problem(INVALID_REFRESH_TOKEN)
    session = refreshed.session
    tokens = await token_response(
        request.app, session["user_id"], session["id"], assurance_of(session)
    )
    return json_response({**tokens, "refresh_token": refreshed.refresh_token})


async def _rotate(conn: Connection, request: web.Request, token: str) -> Refreshed | None:
    """Return the session with its next token, or None if the token is invalid or replayed.

    A replay ends the session (RFC 9700 §4.14.2). That must commit, so nothing is raised here.
    Concurrent refreshes of a session queue on its row. The first creates the successor, and the
    next receives the same one, as it falls within the grace period. Once the successor is used, the
    client must have received it, so another use of its predecessor shows a thief.
    """
    settings = request.app[SETTINGS]
    token_hash = hash_refresh_token(token)
    session = await queries.lock_family(conn, token_hash)
    if session is None:
        return None
    REQUEST_CONTEXT.get().user_id = session["user_id"]
    if await queries.use_refresh_token(conn, token_hash):
        successor = next_refresh_token(token, settings.secret_key)
        await queries.extend_session(
            conn,
            session["id"],
            refresh_token_hash=hash_refresh_token(successor),
            idle_ttl_s=settings.session_idle_ttl_s,
            user_agent=user_agent(request),
            ip=client_ip(request),
        )
        return Refreshed(session, successor)
    # While SECRET_KEY is being replaced, a replica may have derived the successor with either key.
    for secret_key in settings.secret_keys:
        successor = next_refresh_token(token, secret_key)
        successor_hash = hash_refresh_token(successor)
        if await queries.is_retry(conn, token_hash, successor_hash, RETRY_GRACE_S):
            return Refreshed(session, successor)
    await queries.end_session(conn, session["user_id"], session["id"])
    await record(conn, request, "session.replay", session["user_id"])
    return None


@describe(
    {204: Success("The session has ended.")},
    body=schemas.LOGOUT,
    body_required=False,
    example={"refresh_token": TOKENS_EXAMPLE["refresh_token"]},
)
async def logout(request: web.Request) -> web.Response:
    """End the current session.

    Send its access token, its refresh token, or both. With a refresh token, the access token may
    have expired. A refresh token that was already used ends its session too. One that is unknown,
    or whose session has ended, gets the same response (RFC 7009 §2.2).
    """
    body = await read_body(request, schemas.LOGOUT) if await request.read() else {}
    try:
        await identify(request.app, request)
    except Problem:
        if "refresh_token" not in body:
            raise
    await write(request.app, _log_out, request, body.get("refresh_token"))
    return web.Response(status=204)


async def _log_out(conn: Connection, request: web.Request, refresh_token: str | None) -> None:
    if user := request.get(USER):
        await _end_session(conn, request, user["id"], user["session_id"])
    if refresh_token is not None:
        # A client that missed a refresh holds a used token, and must not stay signed in.
        session = await queries.lock_family(conn, hash_refresh_token(refresh_token))
        if session is not None:
            REQUEST_CONTEXT.get().user_id = session["user_id"]
            await _end_session(conn, request, session["user_id"], session["id"])


@describe(
    {
        200: Success(
            "A page of active sessions.",
            schemas.OWN_SESSION_PAGE,
            ("Link",),
            page_example({**schemas.SESSION_EXAMPLE, "current": True}),
        )
    },
    query=PAGE,
)
async def list_mine(request: web.Request) -> web.Response:
    """List the account's sessions, newest first, one page at a time."""
    query = read_query(request, PAGE)
    user, keyset = request[USER], queries.SESSIONS_NEWEST_FIRST
    after = read_cursor(request, query, keyset)
    rows = await read(
        request.app,
        queries.list_sessions,
        user["id"],
        after,
        query["limit"] + 1,
        user["session_id"],
    )
    return render_page(request, query, keyset, rows, schemas.OWN_SESSION)


@describe({204: Success("The session has ended.")})
async def end_one(request: web.Request) -> web.Response:
    """End one of the account's sessions."""
    session_id = uuid.UUID(request.match_info["session_id"])
    if not await write(request.app, _end_session, request, request[USER]["id"], session_id):
        raise Problem(SESSION_NOT_FOUND)
    return web.Response(status=204)


@describe({204: Success("The sessions have ended.")})
async def end_others(request: web.Request) -> web.Response:
    """End all of the account's sessions except the current one."""
    await write(request.app, _end_other_sessions, request)
    return web.Response(status=204)


async def _end_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID, session_id: uuid.UUID
) -> bool:
    ended = await queries.end_session(conn, user_id, session_id)
    if ended:
        before = {"session_id": str(session_id)}
        await record(conn, request, "session.end", user_id, actor_id=user_id, before=before)
    return ended


async def _end_other_sessions(conn: Connection, request: web.Request) -> None:
    await end_other_sessions(conn, request)
    await record(conn, request, "session.end_others", request[USER]["id"])
