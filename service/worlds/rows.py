"""What the endpoints of worlds share: rows of the signed-in account, and their responses."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from aiohttp import web
from marshmallow import Schema

from service.context import USER
from service.db.connection import Connection
from service.http.conditional import etag_of
from service.http.field_errors import field_error
from service.http.problems import NOT_FOUND, Problem, invalid_fields
from service.http.requests import json_response
from service.json_codec import same
from service.worlds import event_queries, queries, story_queries

WORLD_NOT_FOUND = NOT_FOUND._replace(detail="You have no such world.")
EVENT_NOT_FOUND = NOT_FOUND._replace(detail="You have no such event.")
STORY_NOT_FOUND = NOT_FOUND._replace(detail="You have no such story.")
BEAT_NOT_FOUND = NOT_FOUND._replace(detail="The story has no such beat.")


def id_of(request: web.Request, name: str) -> uuid.UUID:
    """Return an id in the path."""
    return uuid.UUID(request.match_info[name])


async def get_world(conn: Connection, request: web.Request) -> asyncpg.Record:
    """Return the world of the path. Raises Problem 404 if the account has none."""
    world = await queries.find_world(conn, request[USER]["id"], id_of(request, "world_id"))
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    return world


async def lock_world(conn: Connection, request: web.Request) -> asyncpg.Record:
    """Return the world of the path, locked. Raises Problem 404."""
    world = await queries.lock_world(conn, request[USER]["id"], id_of(request, "world_id"))
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    return world


Find = Callable[[Connection, uuid.UUID, uuid.UUID], Awaitable[asyncpg.Record | None]]


async def get_event(
    conn: Connection, request: web.Request, find: Find = event_queries.find_event
) -> asyncpg.Record:
    """Return the event of the path. Raises Problem 404, also if the path names another world."""
    event = await find(conn, request[USER]["id"], id_of(request, "event_id"))
    if event is None or (
        "world_id" in request.match_info and event["world_id"] != id_of(request, "world_id")
    ):
        raise Problem(EVENT_NOT_FOUND)
    return event


async def get_story(
    conn: Connection, request: web.Request, find: Find = story_queries.find_story
) -> asyncpg.Record:
    """Return the story of the path. Raises Problem 404."""
    story = await find(conn, request[USER]["id"], id_of(request, "story_id"))
    if story is None:
        raise Problem(STORY_NOT_FOUND)
    return story


def changes(row: asyncpg.Record, change: dict[str, Any]) -> bool:
    """Return whether the change has a value that differs from the row's."""
    return any(not same(row[name], value) for name, value in change.items())


def no_such(pointer: str, what: str) -> Problem:
    """Build the 422 for an id in the body that names nothing in the world."""
    return invalid_fields(field_error(pointer, "not_found", f"The world has no such {what}."))


def render_row(schema: Schema, row: asyncpg.Record, *, location: str | None = None) -> web.Response:
    """Render a row with its version as a strong ETag; with a location, it was created."""
    headers = {"ETag": etag_of(row["version"])}
    if location is not None:
        headers["Location"] = location
    return json_response(schema.dump(row), status=201 if location else 200, headers=headers)
