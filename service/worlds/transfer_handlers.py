"""Endpoints that export, import and duplicate whole worlds."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit.events import record
from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.db.transactions import plan_for_many_rows
from service.http.descriptions import Success, describe
from service.http.idempotency import BODY_DIGEST, find_stored_response, write_once
from service.http.problems import RETRY_SOON, Problem, ProblemType
from service.http.requests import read_body, require_json
from service.http.streaming import stream_json
from service.worlds import (
    beat_queries,
    document,
    event_queries,
    queries,
    schemas,
    shapes,
    story_queries,
)
from service.worlds.export import spool_world
from service.worlds.handlers import WORLD_CREATED, naming, render_created
from service.worlds.limits import CAUSES_CYCLE, LIMIT_REACHED, check_limits
from service.worlds.plan import Plan, batches, make_plan
from service.worlds.rows import WORLD_NOT_FOUND, id_of
from service.worlds.spool import NO_ROOM, UPLOAD_TIMEOUT_S, open_spool, receive, send

# Transfers of a process: uploads and downloads with temporary files.
TRANSFERS_MAX = 16
# Of these, how many may use a database connection at once.
WORKING_MAX = 2
# How long reading or writing the rows of a world may take.
TRANSFER_TIMEOUT_S = 120

TRANSFER_IN_PROGRESS = ProblemType(
    409,
    "transfer_in_progress",
    "A world of this account is being exported, imported or duplicated. Wait until that ends.",
)
TOO_MANY_TRANSFERS = ProblemType(
    503,
    "too_many_transfers",
    "Too many worlds are being exported or imported. Try again shortly.",
    RETRY_SOON,
)


class Transfers:
    """The transfers of the process: whose they are, and whose turn it is to use the database."""

    def __init__(self) -> None:
        self.accounts: set[uuid.UUID] = set()
        self.turn = asyncio.Semaphore(WORKING_MAX)


TRANSFERS: web.AppKey[Transfers] = web.AppKey("transfers")
_PROBLEMS = (LIMIT_REACHED, TRANSFER_IN_PROGRESS, TOO_MANY_TRANSFERS, NO_ROOM)


@describe(
    {200: Success("The document.", shapes.DOCUMENT, ("Content-Disposition",))},
    problems=_PROBLEMS[1:],
    timeout_s=TRANSFER_TIMEOUT_S,
)
async def export_world(request: web.Request) -> web.StreamResponse:
    """Export a world with all that is in it, as one JSON document.

    It is the world as it was at one moment. If the connection ends before the document does, export
    again.
    """
    async with _transfer(request) as turn:
        with open_spool() as spool:
            async with turn:
                world = await _spool(request, spool)
            disposition = f'attachment; filename="world-{world["id"]}.json"'
            return await stream_json(request, send(spool), {"Content-Disposition": disposition})


@describe(
    {201: WORLD_CREATED},
    body=schemas.IMPORT,
    example={"version": "1.0", "world": {"name": "Orrery"}, "world_events": [], "stories": []},
    problems=(*_PROBLEMS, CAUSES_CYCLE, document.UNKNOWN_VERSION),
    idempotent=True,
    timeout_s=UPLOAD_TIMEOUT_S + TRANSFER_TIMEOUT_S,
    streams_body=True,
)
async def import_world(request: web.Request) -> web.StreamResponse:
    """Create a world from an exported document, or nothing if any part of that is invalid.

    Everything gets a new id. Ids and times in the document only serve as references.
    """
    require_json(request)
    async with _transfer(request) as turn:
        with open_spool() as spool:
            request[BODY_DIGEST] = await receive(request, spool)
            if stored := await find_stored_response(request):
                return stored
            async with turn:
                plan = await asyncio.to_thread(make_plan, spool, request.app[SETTINGS])
                return await write_once(request, _import, request, spool, plan, {})


@describe(
    {201: WORLD_CREATED},
    body=schemas.DUPLICATE_WORLD,
    body_required=False,
    example={"name": "Orrery, second draft"},
    problems=_PROBLEMS,
    idempotent=True,
    timeout_s=TRANSFER_TIMEOUT_S,
)
async def duplicate_world(request: web.Request) -> web.StreamResponse:
    """Copy a world with all that is in it, as an export and an import would."""
    body = await read_body(request, schemas.DUPLICATE_WORLD) if await request.read() else {}
    async with _transfer(request) as turn:
        with open_spool() as spool:
            async with turn:
                world = await _spool(request, spool)
                name = schemas.name_of_copy(world["name"])
                plan = await asyncio.to_thread(make_plan, spool, request.app[SETTINGS])
                return await write_once(
                    request, _import, request, spool, plan, {"name": name, **body}
                )


async def _spool(request: web.Request, spool: IO[bytes]) -> asyncpg.Record:
    """Write the document of the path's world into the spool. Raises Problem 404."""
    user_id, world_id = request[USER]["id"], id_of(request, "world_id")
    world = await spool_world(request.app, spool, user_id, world_id)
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    return world


@asynccontextmanager
async def _transfer(request: web.Request) -> AsyncIterator[asyncio.Semaphore]:
    """Admit one transfer of each account. Yields what those that use the database take turns at.

    Raises Problem 409 if the account has another in progress, 503 if there are too many.
    """
    user_id, transfers = request[USER]["id"], request.app[TRANSFERS]
    if user_id in transfers.accounts:
        raise Problem(TRANSFER_IN_PROGRESS)
    if len(transfers.accounts) >= TRANSFERS_MAX:
        raise Problem(TOO_MANY_TRANSFERS)
    transfers.accounts.add(user_id)
    try:
        yield transfers.turn
    finally:
        transfers.accounts.remove(user_id)


async def _import(
    conn: Connection, request: web.Request, spool: IO[bytes], plan: Plan, changed: dict[str, Any]
) -> web.Response:
    """Insert the world of a document that is checked, with ``changed`` values."""
    user_id, world_id = request[USER]["id"], uuid_utils.uuid7()
    await plan_for_many_rows(conn)
    await queries.insert_world(conn, world_id, user_id, {**plan.world, **changed})
    async for events in batches(plan.events(spool)):
        await event_queries.insert_events(conn, world_id, events)
    await event_queries.insert_causes(conn, world_id, plan.causes)
    async for stories in batches(plan.stories(spool)):
        for story_id, story in stories:
            await story_queries.insert_story(conn, story_id, world_id, story)
    async for beats in batches(plan.beats(spool)):
        await beat_queries.insert_beats(conn, world_id, beats)
    world = await queries.count_in(
        conn,
        user_id,
        world_id,
        stories=len(plan.story_ids),
        events=len(plan.event_ids),
        beats=plan.beat_count,
    )
    assert world is not None  # noqa: S101
    await check_limits(conn, request, "worlds", "stories", "beats")
    await record(conn, request, "world.import", user_id, after=naming(world))
    inserted = await queries.find_world(conn, user_id, world_id)
    assert inserted is not None  # noqa: S101
    return render_created(inserted)
