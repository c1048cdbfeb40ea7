"""Endpoints that export, import and duplicate whole worlds."""

import asyncio
import graphlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import IO, Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from marshmallow import Schema, ValidationError

from service.audit.events import record
from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.http.descriptions import Success, describe
from service.http.field_errors import field_error, field_errors
from service.http.idempotency import BODY_DIGEST, find_stored_response, write_once
from service.http.problems import (
    RETRY_SOON,
    Problem,
    ProblemType,
    invalid_fields,
)
from service.http.requests import read_body, require_json
from service.http.streaming import stream_json
from service.worlds import beat_queries, document, event_queries, queries, schemas, story_queries
from service.worlds.event_handlers import CAUSES_CYCLE
from service.worlds.export import spool_world
from service.worlds.handlers import WORLD_CREATED, naming, new_world, render_created
from service.worlds.limits import (
    BEATS_PER_EVENT,
    BEATS_PER_STORY,
    EVENTS_PER_WORLD,
    LIMIT_REACHED,
    check_limit,
    check_limits,
)
from service.worlds.rows import WORLD_NOT_FOUND, id_of, no_such
from service.worlds.spool import UPLOAD_TIMEOUT_S, open_spool, receive, send

# Per process: each keeps a database connection busy.
TRANSFERS_MAX = 2
# How long reading or writing the rows of a world may take, which has up to 100,000 beats.
TRANSFER_TIMEOUT_S = 3 * 60
ROWS_AT_ONCE = 100
COPY_SUFFIX = " (Copy)"

TOO_MANY_TRANSFERS = ProblemType(
    503,
    "too_many_transfers",
    "Too many worlds are being exported or imported. Try again shortly.",
    RETRY_SOON,
)
TRANSFERS: web.AppKey[asyncio.Semaphore] = web.AppKey("transfers")


@describe(
    {200: Success("The document.", schemas.DOCUMENT, ("Content-Disposition",))},
    problems=(TOO_MANY_TRANSFERS,),
    timeout_s=TRANSFER_TIMEOUT_S,
)
async def export_world(request: web.Request) -> web.StreamResponse:
    """Export a world with all that is in it, as one JSON document.

    It is the world as it was at one moment. If the connection ends before the document does, export
    again.
    """
    with open_spool() as spool:
        async with _transfer(request.app):
            world = await _spool(request, spool)
        disposition = f'attachment; filename="world-{world["id"]}.json"'
        return await stream_json(request, send(spool), {"Content-Disposition": disposition})


@describe(
    {201: WORLD_CREATED},
    body=schemas.IMPORT,
    example={"version": "1.0", "world": {"name": "Orrery"}, "world_events": [], "stories": []},
    problems=(LIMIT_REACHED, CAUSES_CYCLE, document.UNKNOWN_VERSION, TOO_MANY_TRANSFERS),
    idempotent=True,
    timeout_s=UPLOAD_TIMEOUT_S + TRANSFER_TIMEOUT_S,
    streams_body=True,
)
async def import_world(request: web.Request) -> web.StreamResponse:
    """Create a world from an exported document, or nothing if any part of that is invalid.

    Everything gets a new id. Ids and times in the document only serve as references.
    """
    require_json(request)
    max_bytes = request.app[SETTINGS].world_import_max_bytes
    with open_spool() as spool:
        request[BODY_DIGEST] = await receive(request, spool, max_bytes)
        if stored := await find_stored_response(request):
            return stored
        await asyncio.to_thread(document.check_outline, spool)
        async with _transfer(request.app):
            return await write_once(request, _import, request, spool, {})


@describe(
    {201: WORLD_CREATED},
    body=schemas.DUPLICATE_WORLD,
    body_required=False,
    example={"name": "Orrery, second draft"},
    problems=(LIMIT_REACHED, TOO_MANY_TRANSFERS),
    idempotent=True,
    timeout_s=TRANSFER_TIMEOUT_S,
)
async def duplicate_world(request: web.Request) -> web.StreamResponse:
    """Copy a world with all that is in it, as an export and an import would."""
    body = await read_body(request, schemas.DUPLICATE_WORLD) if await request.read() else {}
    with open_spool() as spool:
        async with _transfer(request.app):
            world = await _spool(request, spool)
            name = world["name"][: schemas.NAME_MAX_LENGTH - len(COPY_SUFFIX)] + COPY_SUFFIX
            return await write_once(request, _import, request, spool, {"name": name, **body})


async def _spool(request: web.Request, spool: IO[bytes]) -> asyncpg.Record:
    """Write the document of the path's world into the spool. Raises Problem 404."""
    user_id, world_id = request[USER]["id"], id_of(request, "world_id")
    world = await spool_world(request.app, spool, user_id, world_id)
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    return world


@asynccontextmanager
async def _transfer(app: web.Application) -> AsyncIterator[None]:
    """Raise Problem 503 if there are ``TRANSFERS_MAX`` at once."""
    if app[TRANSFERS].locked():
        raise Problem(TOO_MANY_TRANSFERS)
    async with app[TRANSFERS]:
        yield


async def _import(
    conn: Connection, request: web.Request, spool: IO[bytes], changed: dict[str, Any]
) -> web.Response:
    """Insert a world from its document, with ``changed`` values."""
    user_id, world_id = request[USER]["id"], uuid_utils.uuid7()
    values = await asyncio.to_thread(document.read_value, spool, "world")
    values = new_world(_load(schemas.IMPORT_WORLD, "#/world", values))
    await queries.insert_world(conn, world_id, user_id, {**values, **changed})
    events = await _import_events(conn, spool, world_id)
    settings = request.app[SETTINGS]
    stories = await _import_stories(conn, spool, world_id, settings.stories_per_account)
    beats = await _import_beats(conn, spool, world_id, events, stories, settings.beats_per_account)
    world = await queries.count_in(
        conn, user_id, world_id, stories=len(stories), events=len(events), beats=beats
    )
    assert world is not None  # noqa: S101
    await check_limits(conn, request, world)
    await record(conn, request, "world.import", user_id, after=naming(world))
    return render_created(world)


async def _import_events(
    conn: Connection, spool: IO[bytes], world_id: uuid.UUID
) -> dict[uuid.UUID, uuid.UUID]:
    """Insert the events, and return their new ids by those in the document."""
    ids: dict[uuid.UUID, uuid.UUID] = {}
    causes: list[tuple[str, uuid.UUID, list[uuid.UUID]]] = []
    async for batch in _batches(document.read_events(spool)):
        rows = []
        for at, value in batch:
            event = {**schemas.NEW_EVENT, **_load(schemas.IMPORT_EVENT, at, value)}
            if event["id"] in ids:
                raise invalid_fields(field_error(f"{at}/id", "duplicate", "Given more than once."))
            ids[event["id"]] = uuid_utils.uuid7()
            rows.append((ids[event["id"]], event))
            causes.append((at, ids[event["id"]], event["caused_by_ids"]))
        check_limit(len(ids), EVENTS_PER_WORLD, "events in a world")
        await event_queries.insert_events(conn, world_id, rows)
    edges = [
        (event_id, _find(ids, cause_id, f"{at}/caused_by_ids/{number}"))
        for at, event_id, cause_ids in causes
        for number, cause_id in enumerate(cause_ids)
    ]
    await asyncio.to_thread(_require_no_cycle, edges)
    await event_queries.insert_causes(conn, world_id, edges)
    return ids


def _require_no_cycle(edges: list[tuple[uuid.UUID, uuid.UUID]]) -> None:
    sorter: graphlib.TopologicalSorter[uuid.UUID] = graphlib.TopologicalSorter()
    for event_id, cause_id in edges:
        sorter.add(event_id, cause_id)
    try:
        sorter.prepare()
    except graphlib.CycleError:
        raise Problem(CAUSES_CYCLE) from None


async def _import_stories(
    conn: Connection, spool: IO[bytes], world_id: uuid.UUID, limit: int
) -> list[uuid.UUID]:
    """Insert the stories without their beats, and return their ids in the document's order."""
    ids: list[uuid.UUID] = []
    async for batch in _batches(document.read_stories(spool)):
        for at, value in batch:
            check_limit(len(ids) + 1, limit, "stories")
            story = {**schemas.NEW_STORY, **_load(schemas.IMPORT_STORY, at, value)}
            ids.append(uuid_utils.uuid7())
            await story_queries.insert_story(conn, ids[-1], world_id, story)
    return ids


async def _import_beats(
    conn: Connection,
    spool: IO[bytes],
    world_id: uuid.UUID,
    events: dict[uuid.UUID, uuid.UUID],
    stories: list[uuid.UUID],
    limit: int,
) -> int:
    """Insert the beats, and return how many there are."""
    count = 0
    places: dict[uuid.UUID, set[int]] = {story_id: set() for story_id in stories}
    last = dict.fromkeys(stories, 0)
    links: Counter[uuid.UUID] = Counter()
    async for batch in _batches(document.read_beats(spool)):
        rows = []
        for at, value in batch:
            count += 1
            check_limit(count, limit, "beats")
            beat = {**schemas.NEW_BEAT, **_load(schemas.IMPORT_BEAT, at, value)}
            story_id = stories[int(at.split("/")[2])]
            taken = places[story_id]
            if beat["order_index"] is None:
                beat["order_index"] = last[story_id] + 1
            if beat["order_index"] in taken:
                taken_twice = "Another beat of the story has this place."
                raise invalid_fields(field_error(f"{at}/order_index", "duplicate", taken_twice))
            taken.add(beat["order_index"])
            last[story_id] = max(last[story_id], beat["order_index"])
            check_limit(len(taken), BEATS_PER_STORY, "beats in a story")
            if beat["world_event_id"] is not None:
                event_id = _find(events, beat["world_event_id"], f"{at}/world_event_id")
                beat["world_event_id"] = event_id
                links[event_id] += 1
                check_limit(links[event_id], BEATS_PER_EVENT, "beats on an event")
            rows.append((uuid_utils.uuid7(), story_id, beat))
        await beat_queries.insert_beats(conn, world_id, rows)
    return count


def _find(ids: dict[uuid.UUID, uuid.UUID], wanted: uuid.UUID, at: str) -> uuid.UUID:
    """Return the new id of an event of the document. Raises Problem 422 if it has none."""
    if wanted not in ids:
        raise no_such(at, "event")
    return ids[wanted]


def _load(schema: Schema, at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid_fields(field_error(at, "invalid_type", "Expected an object."))
    try:
        loaded: dict[str, Any] = schema.load(value)
    except ValidationError as error:
        raise field_errors(error, at) from None
    return loaded


async def _batches(
    rows: Iterator[tuple[str, Any]],
) -> AsyncIterator[list[tuple[str, Any]]]:
    """Yield the rows, a few at a time. They are parsed on a thread."""
    while batch := await asyncio.to_thread(list, islice(rows, ROWS_AT_ONCE)):
        yield batch
