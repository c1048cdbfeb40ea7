"""Recording an event, in the transaction of what it records."""

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
    """Append that the request's user, or ``actor_id`` where nobody is signed in, did ``action``.

    ``action`` is object.verb (``user.suspend``). ``before`` and ``after`` hold what changed, as
    JSON; never a password, a hash or a token.
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
    """Append what no request did, but a job or the command line: there is no actor."""
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
    """The client's own word for itself, cut short, without what text columns cannot hold."""
    text = request.headers.get("User-Agent", "").encode("utf-8", "replace").decode()
    return text.replace("\0", "")[:USER_AGENT_MAX_LENGTH]
