"""Record audit events in the transaction of the change that they describe."""

import uuid
from typing import Any, NamedTuple, TypeAlias

import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit import queries
from service.context import REQUEST_CONTEXT, USER
from service.db.connection import Connection
from service.http.client_ip import IpAddress, client_ip

USER_AGENT_MAX_LENGTH = 400


class Operator(NamedTuple):
    """A person who runs commands on the server, by the name that they work under."""

    name: str


# Who makes a change: the client of a request, or an operator.
Author: TypeAlias = web.Request | Operator


async def record(
    conn: Connection,
    by: Author,
    action: str,
    subject_id: uuid.UUID | None,
    *,
    actor_id: uuid.UUID | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append an event by an operator, or by the request's user.

    If no user is signed in, the event is by ``actor_id``.
    ``action`` has the form object.verb (``user.suspend``). ``before`` and ``after`` hold the
    changed values as JSON, never a password, hash or token.
    """
    if isinstance(by, Operator):
        await _append(conn, action, subject_id, before, after, operator=by.name)
        return
    user = by.get(USER)
    await _append(
        conn,
        action,
        subject_id,
        before,
        after,
        actor_id=user["id"] if user else actor_id,
        actor_role=user["role"] if user else None,
        ip=client_ip(by),
        user_agent=user_agent(by),
        request_id=REQUEST_CONTEXT.get().request_id,
    )


async def record_unattended(
    conn: Connection,
    action: str,
    subject_id: uuid.UUID | None,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append an event that nobody caused, for a job."""
    await _append(conn, action, subject_id, before, after)


async def _append(
    conn: Connection,
    action: str,
    subject_id: uuid.UUID | None,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    *,
    actor_id: uuid.UUID | None = None,
    actor_role: str | None = None,
    operator: str | None = None,
    ip: IpAddress | None = None,
    user_agent: str | None = None,
    request_id: str | None = None,
) -> None:
    await queries.insert_event(
        conn,
        event_id=uuid_utils.uuid7(),
        action=action,
        actor_id=actor_id,
        actor_role=actor_role,
        operator=operator,
        subject_id=subject_id,
        ip=ip,
        user_agent=user_agent,
        request_id=request_id,
        before=before,
        after=after,
    )


def user_agent(request: web.Request) -> str:
    """Return the User-Agent, truncated and without characters that text columns cannot hold."""
    text = request.headers.get("User-Agent", "").encode("utf-8", "replace").decode()
    return text.replace("\0", "")[:USER_AGENT_MAX_LENGTH]
