"""Endpoints for the events of a world, and for what causes them."""

import uuid
from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.context import USER
from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import read, write
from service.http.conditional import check_preconditions
from service.http.descriptions import Success, describe
from service.http.idempotency import write_once
from service.http.problems import Problem
from service.http.requests import read_body, read_query
from service.worlds import event_queries, queries, samples, schemas
from service.worlds.ids import uuids
from service.worlds.limits import CAUSES_CYCLE, EVENTS_PER_WORLD, LIMIT_REACHED, check_limit
from service.worlds.lists import LIST, WHOLE_LIST, dump_with, list_of, respond_with_list
from service.worlds.rows import (
    EVENT_NOT_FOUND,
    WORLD_NOT_FOUND,
    changes,
    get_event,
    get_world,
    id_of,
    no_such,
    render_row,
)
from service.worlds.spool import NO_ROOM

_EVENT = Success("The event.", schemas.EVENT, ("ETag",), samples.EVENT_EXAMPLE)


@describe(
    {200: Success("Events.", list_of(schemas.EVENT), ("Link",), [samples.EVENT_EXAMPLE])},
    query=WHOLE_LIST,
    problems=(NO_ROOM,),
)
async def list_events(request: web.Request) -> web.StreamResponse:
    """List the events of a world in the order of their time.

    Clients of the system that this one replaces may send a `limit`. They get an object with the
    `events` and their `total`.
    """
    query = read_query(request, LIST)
    world = await read(request.app, get_world, request)
    around = b"[", b"]"
    if "limit" in query:
        total = await read_replica(request.app, event_queries.count_events, world["id"])
        around = b'{"total":%d,"events":[' % total, b"]}"

    async def list_events(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[asyncpg.Record]:
        return await event_queries.list_events(conn, world["id"], after, limit)

    return await respond_with_list(
        request, query, event_queries.IN_TIME, list_events, dump_with(schemas.EVENT), around=around
    )


@describe(
    {201: Success("Created.", schemas.EVENT, ("ETag", "Location"), samples.EVENT_EXAMPLE)},
    body=schemas.CREATE_EVENT,
    example={"t": 2145, "label_time": "Year 2145", "type": "major", "summary": "The sun sets."},
    problems=(LIMIT_REACHED,),
    idempotent=True,
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def create_event(request: web.Request) -> web.Response:
    """Create an event on the timeline of a world."""
    values = {**schemas.NEW_EVENT, **await read_body(request, schemas.CREATE_EVENT)}
    return await write_once(request, _create, request, values)


async def _create(conn: Connection, request: web.Request, values: dict[str, Any]) -> web.Response:
    user_id, event_id = request[USER]["id"], uuid_utils.uuid7()
    world = await queries.count_in(conn, user_id, id_of(request, "world_id"), events=1)
    if world is None:
        raise Problem(WORLD_NOT_FOUND)
    check_limit(world["events"], EVENTS_PER_WORLD, "events in a world")
    await event_queries.insert_event(conn, event_id, world["id"], values)
    await _set_causes(conn, world["id"], event_id, values["caused_by_ids"])
    event = await event_queries.find_event(conn, user_id, event_id)
    assert event is not None  # noqa: S101
    return render_row(schemas.EVENT, event, location=f"/api/v1/events/{event_id}")


async def _set_causes(
    conn: Connection, world_id: uuid.UUID, event_id: uuid.UUID, cause_ids: list[uuid.UUID]
) -> None:
    """Replace the causes of an event. The caller has locked the world."""
    missing = await event_queries.find_missing_events(conn, world_id, cause_ids)
    if missing:
        place = next(n for n, cause_id in enumerate(cause_ids) if cause_id in missing)
        raise no_such(f"#/caused_by_ids/{place}", "event")
    if await event_queries.leads_to(conn, event_id, cause_ids):
        raise Problem(CAUSES_CYCLE)
    await event_queries.set_causes(conn, world_id, event_id, cause_ids)


@describe({200: _EVENT})
async def read_event(request: web.Request) -> web.Response:
    """Return an event."""
    return render_row(schemas.EVENT, await read(request.app, get_event, request))


_describe_change = describe(
    {200: _EVENT._replace(description="The updated event.")},
    body=schemas.CHANGE_EVENT,
    example={"summary": "The sun rises.", "tags": ["dawn"]},
    problems=(CAUSES_CYCLE,),
    if_match="honoured",
    body_max_bytes=schemas.BODY_MAX_BYTES,
)


@_describe_change
async def change_event(request: web.Request) -> web.Response:
    """Change an event. Omitted fields keep their values."""
    change = await read_body(request, schemas.CHANGE_EVENT)
    return render_row(schemas.EVENT, await write(request.app, _change, request, change))


async def _change(conn: Connection, request: web.Request, change: dict[str, Any]) -> asyncpg.Record:
    event = await get_event(conn, request, event_queries.lock_event)
    check_preconditions(request, event["version"])
    if set(change.get("caused_by_ids", ())) == set(uuids(event["caused_by_ids"])):
        change = {name: value for name, value in change.items() if name != "caused_by_ids"}
    if not changes(event, change):
        return event
    await event_queries.update_event(conn, event["id"], event["world_id"], {**event, **change})
    if "caused_by_ids" in change:
        await _set_causes(conn, event["world_id"], event["id"], change["caused_by_ids"])
    return await get_event(conn, request)


@describe({204: Success("Deleted.")}, if_match="honoured")
async def delete_event(request: web.Request) -> web.Response:
    """Delete an event. Beats lose their link to it; events that it caused lose a cause."""
    await write(request.app, _delete, request)
    return web.Response(status=204)


async def _delete(conn: Connection, request: web.Request) -> None:
    event = await get_event(conn, request, event_queries.lock_event)
    check_preconditions(request, event["version"])
    await event_queries.delete_event(conn, event["id"])
    await queries.count_in(conn, request[USER]["id"], event["world_id"], events=-1)


@describe({204: Success("The event has this cause.")}, problems=(LIMIT_REACHED, CAUSES_CYCLE))
async def add_cause(request: web.Request) -> web.Response:
    """Add a cause to an event: another event of the same world."""
    await write(request.app, _change_causes, request, adding=True)
    return web.Response(status=204)


@describe({204: Success("The event does not have this cause.")})
async def remove_cause(request: web.Request) -> web.Response:
    """Remove a cause from an event."""
    await write(request.app, _change_causes, request, adding=False)
    return web.Response(status=204)


async def _change_causes(conn: Connection, request: web.Request, *, adding: bool) -> None:
    event = await get_event(conn, request, event_queries.lock_event)
    cause_id = id_of(request, "cause_id")
    if await event_queries.find_missing_events(conn, event["world_id"], [cause_id]):
        raise Problem(EVENT_NOT_FOUND)
    others = [each for each in uuids(event["caused_by_ids"]) if each != cause_id]
    wanted = [*others, cause_id] if adding else others
    if len(wanted) == len(event["caused_by_ids"]):
        return
    check_limit(len(wanted), schemas.CAUSES_MAX, "causes of an event")
    await _set_causes(conn, event["world_id"], event["id"], wanted)
    await event_queries.touch_event(conn, event["id"])


# The same, below the world of the event.


@describe({200: _EVENT})
async def read_event_of_world(request: web.Request) -> web.Response:
    """Return an event of a world."""
    return await read_event(request)


@_describe_change
async def change_event_of_world(request: web.Request) -> web.Response:
    """Change an event of a world. Omitted fields keep their values."""
    return await change_event(request)


@describe({204: Success("Deleted.")}, if_match="honoured")
async def delete_event_of_world(request: web.Request) -> web.Response:
    """Delete an event of a world."""
    return await delete_event(request)
