"""Endpoints for support staff to read accounts and for administrators to change them."""

import uuid
from datetime import datetime
from typing import Any

import asyncpg
from aiohttp import web
from marshmallow import ValidationError

from service.accounts import queries as accounts
from service.accounts.preferences import merge_preferences
from service.accounts.rules import LAST_ADMINISTRATOR, keep_an_administrator
from service.admin import changes, lists, schemas
from service.admin.changes import lock_account, record_change
from service.audit.events import record
from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import read, write
from service.factors.listing import describe_factors
from service.factors.problems import LAST_SECOND_FACTOR, LAST_WAY_IN
from service.factors.schemas import FACTORS, FACTORS_EXAMPLE
from service.http import examples
from service.http.conditional import etag_of, require_if_match
from service.http.descriptions import Success, describe
from service.http.field_errors import field_errors
from service.http.idempotency import write_once
from service.http.pages import PAGE, page_example, read_cursor, render_page
from service.http.problems import (
    ACCOUNT_NOT_FOUND,
    EMAIL_TAKEN,
    SEARCH_TOO_BROAD,
    SESSION_NOT_FOUND,
    Problem,
)
from service.http.requests import (
    json_response,
    read_body,
    read_query,
)
from service.json_codec import same
from service.sessions import queries as session_queries
from service.sessions.schemas import SESSION, SESSION_EXAMPLE


def _account(description: str, **changed: object) -> Success:
    example = {**schemas.ADMIN_USER_EXAMPLE, **changed}
    return Success(description, schemas.ADMIN_USER, ("ETag",), example)


@describe(
    {
        200: Success(
            "A page of accounts.",
            schemas.ADMIN_USER_PAGE,
            ("Link",),
            page_example(schemas.ADMIN_USER_EXAMPLE, count=1),
        )
    },
    query=schemas.LIST_USERS,
    problems=(SEARCH_TOO_BROAD,),
)
async def list_users(request: web.Request) -> web.Response:
    """List accounts, filtered and sorted, one page at a time."""
    query = read_query(request, schemas.LIST_USERS)
    keyset = lists.SORTS[query["sort"]]
    after = read_cursor(request, query, keyset)
    rows = await read_replica(
        request.app, lists.list_accounts, query, keyset, after, query["limit"] + 1
    )
    count = {}
    if "count" in query:
        exact = query["count"] == "exact"
        counted = lists.count_accounts if exact else lists.estimate_accounts
        count = {"count": await read_replica(request.app, counted, query)}
    return render_page(request, query, keyset, rows, schemas.ADMIN_USER, **count)


@describe(
    {
        201: Success(
            "Created.",
            schemas.ADMIN_USER,
            ("ETag", "Location"),
            {
                **schemas.ADMIN_USER_EXAMPLE,
                "email_verified": False,
                "version": 1,
                "updated_at": examples.CREATED_AT,
            },
        )
    },
    body=schemas.CREATE_USER,
    example={"email": examples.EMAIL, "name": examples.NAME, "role": "support"},
    problems=(EMAIL_TAKEN,),
    idempotent=True,
)
async def create_user(request: web.Request) -> web.Response:
    """Create an account without a password and send its owner a link to set one."""
    body = await read_body(request, schemas.CREATE_USER)
    return await write_once(request, _create, request, body)


async def _create(conn: Connection, request: web.Request, body: dict[str, Any]) -> web.Response:
    user = await changes.create_account(conn, request.app, request, **body)
    response = _render(user, status=201)
    response.headers["Location"] = f"/api/v1/users/{user['id']}"
    return response


@describe({200: _account("The account.")})
async def read_user(request: web.Request) -> web.Response:
    """Return an account."""
    user = await read(request.app, accounts.find_account, _user_id(request))
    if user is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    return _render(user)


@describe(
    {200: _account("The updated account.")},
    body=schemas.CHANGE_USER,
    example={"role": "support"},
    problems=(LAST_ADMINISTRATOR,),
    if_match="required",
)
async def change_user(request: web.Request) -> web.Response:
    """Update an account and merge its settings (RFC 7396).

    Omitted fields keep their values.
    """
    change = await read_body(request, schemas.CHANGE_USER)
    require_if_match(request)
    return _render(await write(request.app, _change, request, change))


async def _change(conn: Connection, request: web.Request, change: dict[str, Any]) -> asyncpg.Record:
    if change.get("role", "admin") != "admin":
        await keep_an_administrator(conn, _user_id(request))
    user = await lock_account(conn, _user_id(request), request)
    try:
        settings = merge_preferences(user["settings"], change.get("settings", {}))
    except ValidationError as error:
        raise field_errors(error, "#/settings") from None
    wanted = {
        "name": change.get("name", user["name"]),
        "role": change.get("role", user["role"]),
        "email_verified": change.get("email_verified", user["email_verified"]),
        "settings": settings,
    }
    if all(same(user[name], value) for name, value in wanted.items()):
        return user
    changed = await accounts.update_account(conn, user["id"], **wanted)
    await record_change(conn, request, "user.update", user, changed)
    return changed


@describe(
    {
        200: _account(
            "Scheduled for deletion. All sessions have ended.",
            status="deleting",
            purge_at=examples.PURGE_AT,
            deleted_by_admin=True,
        )
    },
    problems=(changes.ACCOUNT_SUSPENDED, LAST_ADMINISTRATOR),
    if_match="honoured",
)
async def delete_user(request: web.Request) -> web.Response:
    """End all sessions of an account now and delete it after a grace period.

    The owner is notified by email and cannot sign in. Only an administrator can reinstate the
    account. If the owner has already requested the deletion, its date stays the same.
    """
    return _render(await write(request.app, _delete, request))


async def _delete(conn: Connection, request: web.Request) -> asyncpg.Record:
    return await changes.delete(conn, request.app, _user_id(request), request)


@describe(
    {
        200: _account(
            "Suspended. All sessions have ended.",
            status="suspended",
            suspension_reason="Sends spam.",
        )
    },
    body=schemas.SUSPEND_USER,
    example={"reason": "Sends spam.", "until": "2126-01-31T12:00:00Z"},
    problems=(changes.ACCOUNT_DELETING, LAST_ADMINISTRATOR),
    idempotent=True,
    if_match="honoured",
)
async def suspend_user(request: web.Request) -> web.Response:
    """Suspend an account and end all its sessions now.

    The owner cannot sign in until the given time, or until the account is reinstated.
    """
    body = await read_body(request, schemas.SUSPEND_USER)
    return await write_once(request, _suspend, request, body["reason"], body.get("until"))


async def _suspend(
    conn: Connection, request: web.Request, reason: str, until: datetime | None
) -> web.Response:
    return _render(await changes.suspend(conn, _user_id(request), request, reason, until))


@describe(
    {200: _account("The active account.")},
    problems=(changes.ACCOUNT_PURGE_DUE,),
    idempotent=True,
    if_match="honoured",
)
async def reinstate_user(request: web.Request) -> web.Response:
    """Reinstate an account that is suspended or scheduled for deletion."""
    return await write_once(request, _reinstate, request)


async def _reinstate(conn: Connection, request: web.Request) -> web.Response:
    return _render(await changes.reinstate(conn, _user_id(request), request))


@describe(
    {202: Success("Accepted. The owner will receive a link by email.")},
    idempotent=True,
    if_match="honoured",
)
async def reset_password(request: web.Request) -> web.Response:
    """Send the account's owner a link to set a new password.

    The current password keeps working until then.
    """
    return await write_once(request, _reset_password, request)


async def _reset_password(conn: Connection, request: web.Request) -> web.Response:
    await changes.reset_password(conn, request.app, _user_id(request), request)
    return web.Response(status=202)


@describe(
    {
        200: Success(
            "A page of sessions.", schemas.SESSION_PAGE, ("Link",), page_example(SESSION_EXAMPLE)
        )
    },
    query=PAGE,
)
async def list_sessions(request: web.Request) -> web.Response:
    """List an account's sessions, newest first, one page at a time."""
    query = read_query(request, PAGE)
    keyset = session_queries.SESSIONS_NEWEST_FIRST
    after = read_cursor(request, query, keyset)
    user_id = _user_id(request)
    if await read(request.app, accounts.find_account, user_id) is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    rows = await read(
        request.app, session_queries.list_sessions, user_id, after, query["limit"] + 1
    )
    return render_page(request, query, keyset, rows, SESSION)


@describe({204: Success("The sessions have ended.")}, if_match="honoured")
async def end_sessions(request: web.Request) -> web.Response:
    """End all sessions of an account."""
    await write(request.app, _end_sessions, request)
    return web.Response(status=204)


async def _end_sessions(conn: Connection, request: web.Request) -> None:
    user = await lock_account(conn, _user_id(request), request)
    await session_queries.end_sessions(conn, user["id"])
    await record(conn, request, "session.end_all", user["id"])


@describe({204: Success("The session has ended.")})
async def end_session(request: web.Request) -> web.Response:
    """End one session of an account."""
    await write(request.app, _end_session, request)
    return web.Response(status=204)


async def _end_session(conn: Connection, request: web.Request) -> None:
    user_id, session_id = _user_id(request), uuid.UUID(request.match_info["session_id"])
    if not await session_queries.end_session(conn, user_id, session_id):
        raise Problem(SESSION_NOT_FOUND)
    await record(conn, request, "session.end", user_id, before={"session_id": str(session_id)})


@describe({200: Success("The factors.", FACTORS, example=FACTORS_EXAMPLE)})
async def list_factors(request: web.Request) -> web.Response:
    """List an account's second factors and passkeys, without their secrets."""
    user_id = _user_id(request)
    if await read(request.app, accounts.find_account, user_id) is None:
        raise Problem(ACCOUNT_NOT_FOUND)
    return json_response(await read(request.app, describe_factors, user_id))


@describe(
    {204: Success("Removed. All sessions have ended.")},
    problems=(LAST_SECOND_FACTOR, LAST_WAY_IN),
    if_match="honoured",
)
async def remove_factors(request: web.Request) -> web.Response:
    """Remove all second factors, passkeys and recovery codes of an account.

    All its sessions end, and its owner is notified by email. The password stays as it is.
    Your own account keeps a way to sign in, and a second factor if it must have one.
    """
    await write(request.app, changes.remove_factors, request.app, _user_id(request), request)
    return web.Response(status=204)


@describe(
    {204: Success("Removed. All sessions have ended.")},
    problems=(LAST_SECOND_FACTOR, LAST_WAY_IN),
    if_match="honoured",
)
async def remove_factor(request: web.Request) -> web.Response:
    """Remove one second factor or passkey of an account.

    All its sessions end, and its owner is notified by email. With the last one, the recovery codes
    go too. Your own account keeps a way to sign in, and a second factor if it must have one.
    """
    factor_id = uuid.UUID(request.match_info["factor_id"])
    user_id = _user_id(request)
    await write(request.app, changes.remove_factors, request.app, user_id, request, factor_id)
    return web.Response(status=204)


def _user_id(request: web.Request) -> uuid.UUID:
    return uuid.UUID(request.match_info["user_id"])


def _render(user: asyncpg.Record, status: int = 200) -> web.Response:
    """Render the account, with the row version as a strong ETag."""
    return json_response(
        schemas.ADMIN_USER.dump(user), status=status, headers={"ETag": etag_of(user["version"])}
    )
