"""Endpoints for the stories of a world."""

import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.context import USER
from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import plan_for_many_rows, read, write
from service.http.conditional import check_preconditions
from service.http.descriptions import Success, describe
from service.http.idempotency import write_once
from service.http.problems import Problem
from service.http.requests import json_response, read_body, read_query
from service.worlds import beat_queries, queries, samples, schemas, shapes, story_queries
from service.worlds.limits import BEATS_PER_EVENT, LIMIT_REACHED, check_limit, check_limits
from service.worlds.lists import LIST, dump_with, list_of, respond_with_list
from service.worlds.rows import (
    WORLD_NOT_FOUND,
    changes,
    get_story,
    get_world,
    id_of,
    render_row,
)
from service.worlds.spool import NO_ROOM

# How fast people read, to estimate the time that a story takes.
WORDS_PER_MINUTE = 250
# What one statement copies, well below the deadline of a statement.
CHARACTERS_AT_ONCE = 500_000
CLONE_TIMEOUT_S = 30

_STORY = Success("The story.", schemas.STORY, ("ETag",), samples.STORY_EXAMPLE)
_CREATED = Success("Created.", schemas.STORY, ("ETag", "Location"), samples.STORY_EXAMPLE)
_STORIES = Success("Stories.", list_of(schemas.STORY), ("Link",), [samples.STORY_EXAMPLE])


@describe({200: _STORIES}, query=schemas.LIST_STORIES, problems=(NO_ROOM,))
async def list_stories(request: web.Request) -> web.StreamResponse:
    """List the stories of a world, latest change first, without the archived ones."""
    query = read_query(request, schemas.LIST_STORIES)
    filters = {} if query.get("include_archived") else {"archived": False}
    return await _respond(request, query, filters)


@describe({200: _STORIES}, query=LIST, problems=(NO_ROOM,))
async def list_archived_stories(request: web.Request) -> web.StreamResponse:
    """List the archived stories of a world, latest change first."""
    return await _respond(request, read_query(request, LIST), {"archived": True})


async def _respond(
    request: web.Request, query: dict[str, Any], filters: dict[str, Any]
) -> web.StreamResponse:
    world = await read(request.app, get_world, request)
    filters = {"world": world["id"], **filters}
    if "tag" in query:
        filters["tag"] = query["tag"]

    async def list_stories(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[asyncpg.Record]:
        return await story_queries.list_stories(conn, filters, after, limit)

    return await respond_with_list(
        request, query, story_queries.LATEST_FIRST, list_stories, dump_with(schemas.STORY)
    )


@describe({200: Success("The tags.", shapes.STORY_TAGS, (), {"tags": ["mystery", "sea"]})})
async def list_tags(request: web.Request) -> web.Response:
    """List the tags of a world's stories, without those of archived ones, in order."""
    world = await read(request.app, get_world, request)
    return json_response(
        {"tags": await read_replica(request.app, story_queries.list_tags, world["id"])}
    )


@describe(
    {201: _CREATED},
    body=schemas.CREATE_STORY,
    example={"title": "The Lamplighter", "pov_type": "first", "tags": ["sea"]},
    problems=(LIMIT_REACHED,),
    idempotent=True,
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def create_story(request: web.Request) -> web.Response:
    """Create a story in a world."""
    values = {**schemas.NEW_STORY, **await read_body(request, schemas.CREATE_STORY)}
    return await write_once(request, _create, request, values)


async def _create(conn: Connection, request: web.Request, values: dict[str, Any]) -> web.Response:
    user_id, world_id = request[USER]["id"], id_of(request, "world_id")
    world = await queries.count_in(conn, user_id, world_id, stories=1)
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    await check_limits(conn, request, "stories")
    return _render_created(
        await story_queries.insert_story(conn, uuid_utils.uuid7(), world_id, values)
    )


@describe({200: _STORY})
async def read_story(request: web.Request) -> web.Response:
    """Return a story."""
    return render_row(schemas.STORY, await read(request.app, get_story, request))


@describe(
    {200: _STORY._replace(description="The updated story.")},
    body=schemas.CHANGE_STORY,
    example={"status": "completed"},
    if_match="honoured",
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def change_story(request: web.Request) -> web.Response:
    """Change a story. Omitted fields keep their values; the status `archived` archives it."""
    change = await read_body(request, schemas.CHANGE_STORY)
    return render_row(schemas.STORY, await write(request.app, _change, request, change))


async def _change(conn: Connection, request: web.Request, change: dict[str, Any]) -> asyncpg.Record:
    story = await get_story(conn, request, story_queries.lock_story)
    check_preconditions(request, story["version"])
    if not changes(story, change):
        return story
    return await story_queries.update_story(
        conn, story["id"], story["world_id"], {**story, **change}
    )


@describe({204: Success("Archived, or deleted.")}, query=schemas.DELETE_STORY, if_match="honoured")
async def delete_story(request: web.Request) -> web.Response:
    """Archive a story. With `force=true`, delete it with its beats."""
    query = read_query(request, schemas.DELETE_STORY)
    await write(request.app, _delete, request, force=query.get("force", False))
    return web.Response(status=204)


async def _delete(conn: Connection, request: web.Request, *, force: bool) -> None:
    story = await get_story(conn, request, story_queries.lock_story)
    check_preconditions(request, story["version"])
    if force:
        beats = await beat_queries.count_beats(conn, story["id"])
        await story_queries.delete_story(conn, story["id"])
        await queries.count_in(
            conn, request[USER]["id"], story["world_id"], stories=-1, beats=-beats
        )
    elif story["status"] != "archived":
        await story_queries.update_story(
            conn, story["id"], story["world_id"], {**story, "status": "archived"}
        )


@describe({200: _STORY._replace(description="The story, now a draft.")})
async def restore_story(request: web.Request) -> web.Response:
    """Restore an archived story as a draft. A story that is not archived stays as it is."""
    return render_row(schemas.STORY, await write(request.app, _restore, request))


async def _restore(conn: Connection, request: web.Request) -> asyncpg.Record:
    story = await get_story(conn, request, story_queries.lock_story)
    if story["status"] != "archived":
        return story
    return await story_queries.update_story(
        conn, story["id"], story["world_id"], {**story, "status": "draft"}
    )


@describe({201: _CREATED}, problems=(LIMIT_REACHED,), idempotent=True, timeout_s=CLONE_TIMEOUT_S)
async def clone_story(request: web.Request) -> web.Response:
    """Copy a story with its beats. The copy of an archived story is a draft."""
    return await write_once(request, _clone, request)


async def _clone(conn: Connection, request: web.Request) -> web.Response:
    story = await get_story(conn, request, story_queries.lock_story)
    sizes = await beat_queries.list_sizes(conn, story["id"])
    title = schemas.name_of_copy(story["title"])
    status = "draft" if story["status"] == "archived" else story["status"]
    clone = await story_queries.insert_story(
        conn, uuid_utils.uuid7(), story["world_id"], {**story, "title": title, "status": status}
    )
    copies: dict[uuid.UUID, uuid.UUID] = {}
    characters = 0
    await plan_for_many_rows(conn)
    for beat in sizes:
        copies[beat["id"]] = uuid_utils.uuid7()
        characters += beat["characters"]
        if characters >= CHARACTERS_AT_ONCE or beat is sizes[-1]:
            await beat_queries.clone_beats(conn, clone["id"], copies)
            copies, characters = {}, 0
    world = await queries.count_in(
        conn, request[USER]["id"], story["world_id"], stories=1, beats=len(sizes)
    )
    assert world is not None  # noqa: S101
    await check_limits(conn, request, "stories", "beats")
    links = await beat_queries.count_most_links(conn, clone["id"])
    check_limit(links, BEATS_PER_EVENT, "beats on an event")
    return _render_created(clone)


@describe(
    {200: Success("The statistics.", schemas.STORY_STATISTICS, (), samples.STATISTICS_EXAMPLE)}
)
async def read_statistics(request: web.Request) -> web.Response:
    """Count a story's beats, words and links."""
    story_id, measures = await read(request.app, _measure, request)
    minutes = max(1, measures["word_count"] // WORDS_PER_MINUTE) if measures["beat_count"] else 0
    row = {**measures, "story_id": story_id, "estimated_reading_minutes": minutes}
    return json_response(schemas.STORY_STATISTICS.dump(row))


async def _measure(conn: Connection, request: web.Request) -> tuple[Any, asyncpg.Record]:
    story = await get_story(conn, request)
    return story["id"], await story_queries.measure_story(conn, story["id"])


def _render_created(story: asyncpg.Record) -> web.Response:
    return render_row(schemas.STORY, story, location=f"/api/v1/stories/{story['id']}")
