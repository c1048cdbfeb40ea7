"""Record audit events in the transaction of the change that they describe."""

import uuid
from typing import Any

import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit import queries
from service.context import REQUEST_CONTEXT, USER
from service.db.connection import Connection
from service.http.client_ip import client_ip

USER_AGENT_MAX_LENGTH = 400


async def record(
    conn: Connection,
    request: web.Request,
    action: str,
    subject_id: uuid.UUID | None,
    *,
    actor_id: uuid.UUID | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append an event by the signed-in user, or by ``actor_id`` if no user is signed in.

    ``action`` has the form object.verb (``user.suspend``). ``before`` and ``after`` hold the
    changed values as JSON, never a password, hash or token.
    """
    user = request.get(USER)
    await queries.insert_event(
        conn,
        event_id=uuid_utils.uuid7(),
        action=action,
        actor_id=user["id"] if user else actor_id,
        actor_role=user["role"] if user else None,
        subject_id=subject_id,
        ip=client_ip(request),
        user_agent=user_agent(request),
        request_id=REQUEST_CONTEXT.get().request_id,
        before=before,
        after=after,
    )


async def record_unattended(
    conn: Connection,
    action: str,
    subject_id: uuid.UUID | None,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append an event without an actor, for a job or the command line."""
    await queries.insert_event(
        conn,
        event_id=uuid_utils.uuid7(),
        action=action,
        actor_id=None,
        actor_role=None,
        subject_id=subject_id,
        ip=None,
        user_agent=None,
        request_id=None,
        before=before,
        after=after,
    )


def user_agent(request: web.Request) -> str:
    """Return the User-Agent, truncated and without characters that text columns cannot hold."""
    text = request.headers.get("User-Agent", "").encode("utf-8", "replace").decode()
    return text.replace("\0", "")[:USER_AGENT_MAX_LENGTH]
