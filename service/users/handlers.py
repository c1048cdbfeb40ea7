"""Endpoints for the owner's own account."""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any

import asyncpg
from aiohttp import web
from marshmallow import Schema, ValidationError

from service.accounts import credential_queries as credentials
from service.accounts import preferences
from service.accounts import queries as accounts
from service.accounts.rules import LAST_ADMINISTRATOR, keep_an_administrator
from service.audit import queries as audit_queries
from service.audit.events import record
from service.auth.attempts import require_proof
from service.auth.guards import SIGNED_IN
from service.auth.passwords import (
    REPLACED_MEANWHILE,
    TOO_MANY_SIGN_INS,
    WRONG_PASSWORD,
    hash_password,
    require_acceptable,
    require_room,
)
from service.auth.tokens import INVALID_ACCESS_TOKEN, SESSION_ENDED
from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.db.listing import Keyset
from service.db.replica import read_replica
from service.db.transactions import read, write
from service.factors.listing import describe_factors
from service.factors.passkeys import keep_a_way_in
from service.factors.problems import LAST_WAY_IN
from service.http import examples
from service.http.conditional import check_preconditions, etag_of
from service.http.descriptions import Success, describe
from service.http.field_errors import field_error, field_errors
from service.http.fields import fold_email
from service.http.idempotency import write_once
from service.http.problems import RETRY_SOON, Problem, ProblemType, invalid_fields
from service.http.requests import (
    json_response,
    read_body,
    uniform_time,
)
from service.http.streaming import stream_json
from service.json_codec import encode, same
from service.mail.notices import send_mail
from service.recovery.links import start_email_change
from service.recovery.queries import delete_tokens
from service.sessions import queries as session_queries
from service.sessions.ending import end_other_sessions
from service.sessions.schemas import SESSION
from service.throttle import known_networks
from service.throttle import limits as throttle
from service.throttle.limits import TOO_MANY_REQUESTS
from service.users import schemas
from service.worlds import queries as world_queries
from service.worlds.export import spool_world
from service.worlds.spool import open_spool, send

# Per process: each export keeps a connection busy.
EXPORTS_MAX = 4
EXPORT_PAGE = 500
TOO_MANY_EXPORTS = ProblemType(
    503,
    "too_many_exports",
    "Too many exports are in progress. Try again shortly.",
    RETRY_SOON,
)
EXPORT_IN_PROGRESS = ProblemType(
    409, "export_in_progress", "An export of this account is in progress. Wait until it ends."
)
# The accounts that are being exported.
EXPORTS: web.AppKey[set[uuid.UUID]] = web.AppKey("exports")

_PASSWORD_PROBLEMS = (WRONG_PASSWORD, TOO_MANY_REQUESTS, TOO_MANY_SIGN_INS)


def _profile(description: str) -> Success:
    return Success(description, schemas.OWN_PROFILE, ("ETag",), schemas.PROFILE_EXAMPLE)


@describe({200: _profile("The account.")})
async def read_me(request: web.Request) -> web.Response:
    """Return the signed-in account."""
    return _render(request[USER])


@describe(
    {200: _profile("The updated account.")},
    body=schemas.MERGE_PROFILE,
    example={"settings": {"ui_theme": "dark", "llm_model": None}},
    if_match="honoured",
)
async def merge_me(request: web.Request) -> web.Response:
    """Update the signed-in account and merge its settings (RFC 7396).

    Omitted fields keep their values; null removes a key from the settings.
    """
    change = await read_body(request, schemas.MERGE_PROFILE)
    return _render(await write(request.app, _change_profile, request, change, merge=True))


@describe(
    {200: _profile("The updated account.")},
    body=schemas.REPLACE_PROFILE,
    example={"name": examples.NAME, "settings": {"language": "en"}},
    if_match="honoured",
)
async def replace_me(request: web.Request) -> web.Response:
    """Update the signed-in account and replace its settings.

    Omitted fields keep their values.
    """
    change = await read_body(request, schemas.REPLACE_PROFILE)
    return _render(await write(request.app, _change_profile, request, change, merge=False))


async def _change_profile(
    conn: Connection, request: web.Request, change: dict[str, Any], *, merge: bool
) -> asyncpg.Record:
    user = await accounts.lock_profile(conn, request[USER]["id"])
    if user is None:
        raise _account_gone()
    check_preconditions(request, user["version"])
    settings = user["settings"]
    if "settings" in change:
        try:
            settings = (
                preferences.merge_preferences(settings, change["settings"])
                if merge
                else change["settings"]
            )
        except ValidationError as error:
            raise field_errors(error, "#/settings") from None
    name = change.get("name", user["name"])
    if name == user["name"] and same(settings, user["settings"]):
        return user
    updated = await accounts.update_profile(conn, user["id"], name, settings)
    assert updated is not None  # noqa: S101
    return updated


@describe(
    {204: Success("The password has been changed. All other sessions have ended.")},
    body=schemas.CHANGE_PASSWORD,
    example={"current_password": examples.PASSWORD, "password": "weaves algebraic patterns"},
    problems=_PASSWORD_PROBLEMS,
    idempotent=True,
)
async def change_password(request: web.Request) -> web.Response:
    """Change the password, or set one if the account has none.

    All other sessions end. The current password is required if there is one. If the account has a
    second factor, or no password, the session must also have been proved recently.
    """
    body = await read_body(request, schemas.CHANGE_PASSWORD)
    user = request[USER]
    account = await _prove(request, body.get("current_password"), is_required=True)
    personal = (user["email"], user["name"])
    require_acceptable(request.app, body["password"], "#/password", personal)
    password_hash = await hash_password(request.app, body["password"])
    return await write_once(
        request, _change_password, request, account["password_hash"], password_hash
    )


async def _prove(
    request: web.Request, password: str | None, *, is_required: bool = False
) -> asyncpg.Record:
    """Return the caller's credentials after ``require_proof``.

    Raises Problem 422 if the password ``is_required`` but missing from an account that has one.
    """
    account = await read(request.app, credentials.find_own_credentials, request[USER]["id"])
    if account is None:
        raise _account_gone()
    password_hash = account["password_hash"]
    if is_required and password is None and password_hash is not None:
        raise invalid_fields(
            field_error("#/current_password", "required", "Required to change it.")
        )
    await require_proof(request, password_hash, password)
    return account


async def _change_password(
    conn: Connection, request: web.Request, old_hash: str | None, new_hash: str
) -> web.Response:
    user = request[USER]
    await _lock_credentials(conn, request, old_hash)
    await credentials.update_password(conn, user["id"], new_hash)
    await end_other_sessions(conn, request)
    await send_mail(conn, request.app, user, "password_changed")
    for purpose in ("password_reset", "email_change"):
        await delete_tokens(conn, user["id"], purpose)
    await record(conn, request, "password.change", user["id"])
    await throttle.refund(conn, request)
    return web.Response(status=204)


@describe(
    {204: Success("The password has been removed. All other sessions have ended.")},
    body=schemas.REMOVE_PASSWORD,
    example={"current_password": examples.PASSWORD},
    problems=(LAST_WAY_IN, *_PASSWORD_PROBLEMS),
)
async def remove_password(request: web.Request) -> web.Response:
    """Remove the password, so that only passkeys sign in.

    All other sessions end. The account must have a passkey. A password can be set again, by
    `POST /api/v1/users/me/password` or by a reset.
    """
    body = await read_body(request, schemas.REMOVE_PASSWORD)
    account = await _prove(request, body["current_password"])
    await write(request.app, _remove_password, request, account["password_hash"])
    return web.Response(status=204)


async def _remove_password(
    conn: Connection, request: web.Request, password_hash: str | None
) -> None:
    user = request[USER]
    await _lock_credentials(conn, request, password_hash)
    await credentials.update_password(conn, user["id"], None)
    await keep_a_way_in(conn, user["id"])
    await end_other_sessions(conn, request)
    for purpose in ("password_reset", "email_change"):
        await delete_tokens(conn, user["id"], purpose)
    await send_mail(conn, request.app, user, "password_removed")
    await record(conn, request, "password.remove", user["id"])
    await throttle.refund(conn, request)


async def _lock_credentials(
    conn: Connection, request: web.Request, password_hash: str | None
) -> asyncpg.Record:
    """Lock the account. Raises a Problem if the password has changed or the session has ended."""
    user = request[USER]
    account = await credentials.lock_credentials(conn, user["id"], password_hash)
    if account is None:
        raise Problem(WRONG_PASSWORD, REPLACED_MEANWHILE)
    if not await session_queries.find_signed_in(conn, [user["session_id"]]):
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
    return account


@describe(
    {202: Success("Accepted. Open the link sent to the new email to complete the change.")},
    body=schemas.CHANGE_EMAIL,
    example={"email": "countess@example.com", "password": examples.PASSWORD},
    problems=_PASSWORD_PROBLEMS,
    idempotent=True,
)
async def change_email(request: web.Request) -> web.Response:
    """Send a confirmation link to a new email.

    The account's email changes once the link is opened. The response is the same if the email
    belongs to another account.
    """
    body = await read_body(request, schemas.CHANGE_EMAIL)
    require_room(request.app)
    # A success is not refunded: even a successful request can send mail to someone else.
    await throttle.check(request, throttle.VERIFICATION, fold_email(body["email"]))
    account = await _prove(request, body.get("password"))
    async with uniform_time():
        return await write_once(
            request, _change_email, request, body["email"], account["password_hash"]
        )


async def _change_email(
    conn: Connection, request: web.Request, email: str, password_hash: str | None
) -> web.Response:
    user = request[USER]
    await _lock_credentials(conn, request, password_hash)
    holder = await accounts.find_by_email(conn, fold_email(email))
    if holder is None or holder["id"] == user["id"]:
        await start_email_change(conn, request.app, user, email)
    else:
        await send_mail(conn, request.app, holder, "account_exists")
    await record(conn, request, "email.change_request", user["id"], after={"email": email})
    await throttle.refund(conn, request)
    return web.Response(status=202)


_describe_deletion = describe(
    {
        202: Success(
            "Scheduled for deletion. All sessions have ended.",
            schemas.DELETION,
            example={"purge_at": examples.PURGE_AT},
        )
    },
    body=schemas.DELETE_ACCOUNT,
    body_required=False,
    example={"password": examples.PASSWORD},
    problems=(*_PASSWORD_PROBLEMS, LAST_ADMINISTRATOR),
    if_match="honoured",
)


@_describe_deletion
async def delete_me(request: web.Request) -> web.Response:
    """Delete the signed-in account after a grace period.

    All sessions end. Signing in during the grace period cancels the deletion. If a proxy or client
    drops the body of a DELETE, use `POST /api/v1/users/me/deletion`.
    """
    body = await read_body(request, schemas.DELETE_ACCOUNT) if await request.read() else {}
    account = await _prove(request, body.get("password"))
    purge_at = await write(request.app, _delete_me, request, account["password_hash"])
    return json_response(schemas.DELETION.dump({"purge_at": purge_at}), status=202)


@_describe_deletion
async def request_deletion(request: web.Request) -> web.Response:
    """Delete the signed-in account after a grace period, as `DELETE /api/v1/users/me` does."""
    return await delete_me(request)


async def _delete_me(conn: Connection, request: web.Request, password_hash: str | None) -> datetime:
    user = request[USER]
    await keep_an_administrator(conn, user["id"])
    account = await _lock_credentials(conn, request, password_hash)
    check_preconditions(request, account["version"])
    days = request.app[SETTINGS].deletion_grace_days
    deleting = await accounts.schedule_deletion(conn, user["id"], days, by_admin=False)
    purge_at: datetime = deleting["purge_at"]
    await session_queries.end_sessions(conn, user["id"])
    date = purge_at.date().isoformat()
    await send_mail(conn, request.app, user, "account_deletion", date=date)
    await record(conn, request, "user.delete", user["id"])
    await throttle.refund(conn, request)
    return purge_at


@describe(
    {
        200: Success(
            "All of the account's data.",
            schemas.EXPORT,
            ("Content-Disposition",),
            schemas.EXPORT_EXAMPLE,
        )
    },
    problems=(TOO_MANY_EXPORTS, EXPORT_IN_PROGRESS),
)
async def export_me(request: web.Request) -> web.StreamResponse:
    """Export all of the account's data as one JSON document.

    The document is streamed. If the connection ends before the document does, export again. Each
    account can run one export at a time.
    """
    exports, user = request.app[EXPORTS], request[USER]
    if user["id"] in exports:
        raise Problem(EXPORT_IN_PROGRESS)
    if len(exports) >= EXPORTS_MAX:
        raise Problem(TOO_MANY_EXPORTS)
    exports.add(user["id"])
    try:
        disposition = 'attachment; filename="shinkei-account.json"'
        chunks = _export(request.app, user)
        return await stream_json(request, chunks, {"Content-Disposition": disposition})
    finally:
        exports.remove(user["id"])


async def _export(app: web.Application, user: asyncpg.Record) -> AsyncGenerator[bytes, None]:
    """Yield the document, reading one page at a time, so that no connection is held meanwhile."""
    networks = await read_replica(app, known_networks.export_networks, user["id"])
    yield b'{"account":' + encode(schemas.OWN_PROFILE.dump(user))
    yield b',"known_networks":' + encode(schemas.KNOWN_NETWORK.dump(networks, many=True))
    factors = await read_replica(app, describe_factors, user["id"])
    yield b',"factors":' + encode(factors["items"])
    yield b',"sessions":'
    sessions = session_queries.list_sessions, session_queries.SESSIONS_NEWEST_FIRST
    async for part in _export_list(app, user, *sessions, SESSION):
        yield part
    yield b',"audit_events":'
    events = audit_queries.export_events, audit_queries.OLDEST_FIRST
    async for part in _export_list(app, user, *events, schemas.OWN_AUDIT_EVENT):
        yield part
    yield b',"worlds":'
    async for part in _export_worlds(app, user):
        yield part
    yield b"}"


async def _export_worlds(app: web.Application, user: asyncpg.Record) -> AsyncGenerator[bytes, None]:
    """Yield a JSON array of the documents of the account's worlds.

    Raises Problem 401 if the session ends before it is complete.
    """
    separator, after = b"[", None
    while worlds := await read_replica(app, world_queries.list_worlds, user["id"], after, 1):
        await _require_session(app, user)
        after = [worlds[0]["id"]]
        with open_spool() as spool:
            if await spool_world(app, spool, user["id"], worlds[0]["id"]):
                yield separator
                separator = b","
                async for part in send(spool):
                    yield part
    yield b"[]" if separator == b"[" else b"]"


async def _export_list(
    app: web.Application,
    user: asyncpg.Record,
    query: Callable[
        [Connection, uuid.UUID, list[object] | None, int], Awaitable[list[asyncpg.Record]]
    ],
    keyset: Keyset,
    schema: Schema,
) -> AsyncGenerator[bytes, None]:
    """Yield a JSON array. Raises Problem 401 if the session ends before it is complete."""
    before, after = b"[", None
    while True:
        await _require_session(app, user)
        rows = await read_replica(app, query, user["id"], after, EXPORT_PAGE)
        if rows:
            yield before + encode(schema.dump(rows, many=True))[1:-1]
            before, after = b",", [rows[-1][name] for name in keyset.columns]
        if len(rows) < EXPORT_PAGE:
            break
    yield b"]" if after else b"[]"


async def _require_session(app: web.Application, user: asyncpg.Record) -> None:
    """Raise Problem 401 if the session has ended."""
    if await app[SIGNED_IN].find(user["session_id"]) is None:
        raise Problem(INVALID_ACCESS_TOKEN)


def _account_gone() -> Problem:
    return Problem(INVALID_ACCESS_TOKEN, "The account no longer exists.")


def _render(user: asyncpg.Record) -> web.Response:
    """Render the profile, with the row version as a strong ETag."""
    return json_response(schemas.OWN_PROFILE.dump(user), headers={"ETag": etag_of(user["version"])})
