"""The start of a session, at sign-in or registration."""

import uuid

import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit.events import record, user_agent
from service.auth.tokens import token_response
from service.context import SETTINGS
from service.db.connection import Connection
from service.http.client_ip import client_ip
from service.sessions import queries as session_queries
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.throttle import known_networks

# Bounds the work of a sign-in, if SESSIONS_PER_ACCOUNT has been lowered.
ENDED_AT_ONCE = 10


async def open_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID
) -> dict[str, object]:
    """Open a session and return its tokens.

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
    await session_queries.insert_session(
        conn,
        session_id=session_id,
        user_id=user_id,
        refresh_token_hash=hash_refresh_token(refresh_token),
        ttl_s=settings.session_ttl_s,
        idle_ttl_s=settings.session_idle_ttl_s,
        user_agent=user_agent(request),
        ip=client_ip(request),
    )
    await known_networks.remember_network(conn, request, user_id)
    return await token_response(request.app, user_id, session_id, refresh_token)
