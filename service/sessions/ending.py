"""Ending all of an account's sessions except the current one."""

from aiohttp import web

from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED
from service.context import USER
from service.db.connection import Connection
from service.http.problems import Problem
from service.sessions import queries


async def end_other_sessions(conn: Connection, request: web.Request) -> None:
    """End all sessions of the account but the current one. Raises Problem 401 if that has ended."""
    user = request[USER]
    if not await queries.end_sessions(conn, user["id"], but=user["session_id"]):
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
