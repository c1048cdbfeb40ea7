"""Endpoints for the beats of a story, in their order."""

import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.context import USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http.conditional import check_preconditions
from service.http.descriptions import Success, describe
from service.http.idempotency import write_once
from service.http.problems import Problem, ProblemType
from service.http.requests import read_body, read_query
from service.worlds import beat_queries, event_queries, queries, samples, schemas, story_queries
from service.worlds.limits import (
    BEATS_PER_EVENT,
    BEATS_PER_STORY,
    LIMIT_REACHED,
    check_limit,
    check_limits,
)
from service.worlds.lists import LIST, dump_with, list_of, respond_with_list
from service.worlds.rows import BEAT_NOT_FOUND, changes, get_story, id_of, no_such, render_row
from service.worlds.spool import NO_ROOM

WRONG_BEATS = ProblemType(
    400, "wrong_beats", "Name every beat of the story exactly once, and no other."
)
_BEAT = Success("The beat.", schemas.BEAT, ("ETag",), samples.BEAT_EXAMPLE)
_BEATS = Success("Beats.", list_of(schemas.BEAT), ("Link",), [samples.BEAT_EXAMPLE])


@describe({200: _BEATS}, query=LIST, problems=(NO_ROOM,))
async def list_beats(request: web.Request) -> web.StreamResponse:
    """List the beats of a story in their order."""
    query = read_query(request, LIST)
    story = await read(request.app, get_story, request)
    return await _respond(request, story["id"], query)


async def _respond(
    request: web.Request, story_id: uuid.UUID, query: dict[str, Any]
) -> web.StreamResponse:
    async def list_beats(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[asyncpg.Record]:
        return await beat_queries.list_beats(conn, story_id, after, limit)

    return await respond_with_list(
        request,
        query,
        beat_queries.IN_ORDER,
        list_beats,
        dump_with(schemas.BEAT),
        path=f"/api/v1/stories/{story_id}/beats",
    )


@describe(
    {201: Success("Created.", schemas.BEAT, ("ETag", "Location"), samples.BEAT_EXAMPLE)},
    body=schemas.CREATE_BEAT,
    example={"content": "The lamp went out.", "type": "scene"},
    problems=(LIMIT_REACHED,),
    idempotent=True,
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def create_beat(request: web.Request) -> web.Response:
    """Add a beat to a story: at the end, or at `order_index`. Those that stand there move on."""
    values = {**schemas.NEW_BEAT, **await read_body(request, schemas.CREATE_BEAT)}
    return await write_once(request, _create, request, values)


async def _create(conn: Connection, request: web.Request, values: dict[str, Any]) -> web.Response:
    story = await get_story(conn, request, story_queries.lock_story)
    world = await queries.count_in(conn, request[USER]["id"], story["world_id"], beats=1)
    assert world is not None  # noqa: S101
    await check_limits(conn, request, "beats")
    number = await beat_queries.count_beats(conn, story["id"]) + 1
    check_limit(number, BEATS_PER_STORY, "beats in a story")
    await _check_event(conn, story["world_id"], values["world_event_id"])
    place = await _find_place(conn, story["id"], values["order_index"])
    values = {**values, "order_index": place}
    beat = await beat_queries.insert_beat(
        conn, uuid_utils.uuid7(), story["world_id"], story["id"], values
    )
    location = f"/api/v1/stories/{story['id']}/beats/{beat['id']}"
    return render_row(schemas.BEAT, beat, location=location)


async def _find_place(conn: Connection, story_id: uuid.UUID, wanted: int | None) -> int:
    """Return a free place: the one that is wanted, or else after the last beat.

    If another beat is there, that one and those after it move on. If the last possible place is
    taken, all beats are numbered again before that.
    """
    last = await beat_queries.find_last_place(conn, story_id)
    if last == schemas.ORDER_MAX:
        places = await beat_queries.find_places(conn, story_id)
        await beat_queries.reorder(conn, story_id, list(places))
        last = len(places)
        if wanted is not None:
            wanted = 1 + sum(place < wanted for place in places.values())
    if wanted is None:
        return last + 1
    await beat_queries.make_room(conn, story_id, wanted)
    return wanted


async def _check_event(conn: Connection, world_id: uuid.UUID, event_id: uuid.UUID | None) -> None:
    """Raise Problem 422 if the world has no such event, or the event has too many beats."""
    if event_id is None:
        return
    if await event_queries.find_missing_events(conn, world_id, [event_id]):
        raise no_such("#/world_event_id", "event")
    number = await event_queries.count_links(conn, event_id) + 1
    check_limit(number, BEATS_PER_EVENT, "beats on an event")


@describe({200: _BEAT})
async def read_beat(request: web.Request) -> web.Response:
    """Return a beat."""
    return render_row(schemas.BEAT, await read(request.app, _get_beat, request))


async def _get_beat(conn: Connection, request: web.Request) -> asyncpg.Record:
    beat = await beat_queries.find_beat(
        conn, request[USER]["id"], id_of(request, "story_id"), id_of(request, "beat_id")
    )
    if beat is None:
        raise Problem(BEAT_NOT_FOUND)
    return beat


@describe(
    {200: _BEAT._replace(description="The updated beat.")},
    body=schemas.CHANGE_BEAT,
    example={"content": "The lamp went out, and came back."},
    problems=(LIMIT_REACHED,),
    if_match="honoured",
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def change_beat(request: web.Request) -> web.Response:
    """Change a beat. Omitted fields keep their values.

    If another beat is at the new `order_index`, that one and those after it move on.
    """
    change = await read_body(request, schemas.CHANGE_BEAT)
    return render_row(schemas.BEAT, await write(request.app, _change, request, change))


@describe(
    {200: _BEAT._replace(description="The updated beat.")},
    body=schemas.CHANGE_REASONING,
    example={"generation_reasoning": None},
    if_match="honoured",
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def change_reasoning(request: web.Request) -> web.Response:
    """Change why a beat was generated as it is; null or nothing clears it."""
    change = await read_body(request, schemas.CHANGE_REASONING)
    change.setdefault("generation_reasoning", None)
    return render_row(schemas.BEAT, await write(request.app, _change, request, change))


async def _change(conn: Connection, request: web.Request, change: dict[str, Any]) -> asyncpg.Record:
    await get_story(conn, request, story_queries.lock_story)
    beat = await _get_beat(conn, request)
    check_preconditions(request, beat["version"])
    if not changes(beat, change):
        return beat
    wanted = {**beat, **change}
    if wanted["world_event_id"] != beat["world_event_id"]:
        await _check_event(conn, beat["world_id"], wanted["world_event_id"])
    if wanted["order_index"] != beat["order_index"]:
        place = await _find_place(conn, beat["story_id"], wanted["order_index"])
        wanted = {**wanted, "order_index": place}
    return await beat_queries.update_beat(
        conn, beat["id"], beat["world_id"], beat["story_id"], wanted
    )


@describe({204: Success("Deleted.")}, if_match="honoured")
async def delete_beat(request: web.Request) -> web.Response:
    """Delete a beat. The others keep their places."""
    await write(request.app, _delete, request)
    return web.Response(status=204)


async def _delete(conn: Connection, request: web.Request) -> None:
    await get_story(conn, request, story_queries.lock_story)
    beat = await _get_beat(conn, request)
    check_preconditions(request, beat["version"])
    await beat_queries.delete_beat(conn, beat["id"])
    await queries.count_in(conn, request[USER]["id"], beat["world_id"], beats=-1)


@describe(
    {200: _BEATS},
    body=schemas.REORDER_BEATS,
    example={"beat_ids": [samples.BEAT_EXAMPLE["id"]]},
    problems=(WRONG_BEATS, NO_ROOM),
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def reorder_beats(request: web.Request) -> web.StreamResponse:
    """Number the beats of a story from 1, in the order of `beat_ids`.

    Every beat must be named once, or nothing changes. Returns the beats in their new order.
    """
    body = await read_body(request, schemas.REORDER_BEATS, values_max=BEATS_PER_STORY + 2)
    story_id = await write(request.app, _reorder, request, body["beat_ids"])
    return await _respond(request, story_id, {})


async def _reorder(conn: Connection, request: web.Request, beat_ids: list[uuid.UUID]) -> uuid.UUID:
    story = await get_story(conn, request, story_queries.lock_story)
    places = await beat_queries.find_places(conn, story["id"])
    if places.keys() != set(beat_ids) or len(places) != len(beat_ids):
        raise Problem(WRONG_BEATS)
    await beat_queries.reorder(conn, story["id"], beat_ids)
    story_id: uuid.UUID = story["id"]
    return story_id
