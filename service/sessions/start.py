"""The start of a session, at sign-in or registration."""

import uuid

import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit.events import user_agent
from service.auth.tokens import token_response
from service.context import SETTINGS
from service.db.connection import Connection
from service.http.client_ip import client_ip
from service.sessions import queries as session_queries
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.throttle import known_networks


async def open_session(
    conn: Connection, request: web.Request, user_id: uuid.UUID
) -> dict[str, object]:
    """Open a session and return its tokens."""
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
        ip=client_ip(request),
    )
    await known_networks.remember_network(conn, request, user_id)
    return await token_response(request.app, user_id, session_id, refresh_token)
