"""The start of a session, at sign-in or registration."""

import uuid
from collections.abc import Sequence

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record, user_agent
from service.auth.assurance import Assurance
from service.auth.tokens import token_response
from service.context import SETTINGS
from service.db.connection import Connection
from service.http.client_ip import client_ip
from service.sessions import queries as session_queries
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.telemetry.metrics import count
from service.throttle import known_networks
from service.throttle import limits as throttle
from service.throttle.limits import Count

# Bounds the work of a sign-in, if SESSIONS_PER_ACCOUNT has been lowered.
ENDED_AT_ONCE = 10
# The methods of the sign-in that the request completed, which are counted only after the commit.
METHODS: web.RequestKey[list[str]] = web.RequestKey("methods")


async def open_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID, amr: list[str], aal: int
) -> dict[str, object]:
    """Open a session and return its tokens.

    ``amr`` are the methods by which its owner has just proved the level ``aal``.

    If the account then has more than ``sessions_per_account``, its oldest session ends. The caller
    must have locked the account, so that concurrent sign-ins do not exceed the limit.
    """
    settings = request.app[SETTINGS]
    ended = await session_queries.end_sessions_beyond(
        conn, user_id, settings.sessions_per_account - 1, ENDED_AT_ONCE
    )
    for old_id in ended:
        before = {"session_id": str(old_id)}
        await record(conn, request, "session.end", user_id, actor_id=user_id, before=before)
    session_id = uuid_utils.uuid7()
    refresh_token = new_refresh_token()
    proved_at = await session_queries.insert_session(
        conn,
        session_id=session_id,
        user_id=user_id,
        refresh_token_hash=hash_refresh_token(refresh_token),
        ttl_s=settings.session_ttl_s,
        idle_ttl_s=settings.session_idle_ttl_s,
        user_agent=user_agent(request),
        ip=client_ip(request),
        amr=amr,
        aal=aal,
    )
    await known_networks.remember_network(conn, request, user_id)
    assurance = Assurance(amr, aal, proved_at)
    tokens = await token_response(request.app, user_id, session_id, assurance)
    return {**tokens, "refresh_token": refresh_token}


def may_sign_in(request: web.Request, account: asyncpg.Record) -> bool:
    """Return whether the account may sign in with the right proof."""
    unverified = request.app[SETTINGS].require_email_verification and not account["email_verified"]
    return not account["barred"] and not unverified


def report_success(request: web.Request) -> None:
    """Count a completed sign-in and its methods. Call it once the transaction has committed."""
    count(request.app, "sign_ins", outcome="success")
    for method in request[METHODS]:
        count(request.app, "sign_in_methods", method=method)


async def complete_sign_in(
    conn: Connection,
    request: web.Request,
    account: asyncpg.Record,
    *,
    amr: list[str],
    aal: int,
    earlier: Sequence[Count] = (),
) -> dict[str, object]:
    """Open a session for an account that is locked and may sign in, and return its tokens.

    ``earlier`` are the counts of the sign-in's first step, for ``throttle.refund``.
    """
    if account["status"] != "active":
        # Sign-in cancels the owner's own deletion and clears an expired suspension.
        await accounts.reactivate_account(conn, account["id"])
        before = {"status": account["status"]}
        await record(
            conn, request, "user.reactivate", account["id"], actor_id=account["id"], before=before
        )
    after = {"amr": amr}
    await record(conn, request, "session.start", account["id"], actor_id=account["id"], after=after)
    tokens = await open_session(conn, request, account["id"], amr, aal)
    request[METHODS] = amr
    await throttle.refund(conn, request, earlier)
    return tokens
