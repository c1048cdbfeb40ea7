"""The owner's own account."""

from typing import Any

import asyncpg
from aiohttp import web
from marshmallow import ValidationError

from service.database import Connection, write
from service.errors import not_signed_in
from service.keys import USER
from service.requests import check_if_match, field_errors, json_response, read_body
from service.users import queries, schemas


async def read_me(request: web.Request) -> web.Response:
    """The signed-in account."""
    return _render(request[USER])


async def merge_me(request: web.Request) -> web.Response:
    """Change what is given; settings are merged (RFC 7396), and null takes a key away."""
    change = await read_body(request, schemas.MERGE_PROFILE)
    return _render(await write(request.app, _change_profile, request, change, merge=True))


async def replace_me(request: web.Request) -> web.Response:
    """Change what is given; settings are replaced."""
    change = await read_body(request, schemas.REPLACE_PROFILE)
    return _render(await write(request.app, _change_profile, request, change, merge=False))


async def _change_profile(
    conn: Connection, request: web.Request, change: dict[str, Any], *, merge: bool
) -> asyncpg.Record:
    user = await queries.lock_profile(conn, request[USER]["id"])
    if user is None:
        raise not_signed_in("The account is gone.", "invalid_token")
    check_if_match(request, user["version"])
    settings = user["settings"]
    if "settings" in change:
        given = change["settings"]
        settings = schemas.merge_patch(settings, given) if merge else given
        try:
            schemas.check_settings(settings)
        except ValidationError as error:
            raise field_errors(error, "#/settings") from None
    name = change.get("name", user["name"])
    if name == user["name"] and settings == user["settings"]:
        return user
    updated = await queries.update_profile(conn, user["id"], name, settings)
    assert updated is not None  # noqa: S101
    return updated


def _render(user: asyncpg.Record) -> web.Response:
    """The profile with a strong ETag: the row's version."""
    return json_response(schemas.OWN_PROFILE.dump(user), headers={"ETag": f'"{user["version"]}"'})
