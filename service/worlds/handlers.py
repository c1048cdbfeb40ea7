"""Endpoints for an account's worlds."""

from typing import Any

import asyncpg
import uuid_utils.compat as uuid_utils
from aiohttp import web

from service.audit.events import record
from service.context import USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http.conditional import check_preconditions
from service.http.descriptions import Success, describe
from service.http.idempotency import write_once
from service.http.requests import read_body, read_query
from service.worlds import queries, samples, schemas
from service.worlds.limits import LIMIT_REACHED, check_limits
from service.worlds.lists import LIST, dump_with, list_of, respond_with_list
from service.worlds.rows import changes, get_world, lock_world, render_row
from service.worlds.spool import NO_ROOM

_WORLD = Success("The world.", schemas.WORLD, ("ETag",), samples.WORLD_EXAMPLE)
WORLD_CREATED = Success("Created.", schemas.WORLD, ("ETag", "Location"), samples.WORLD_EXAMPLE)


@describe(
    {200: Success("Worlds.", list_of(schemas.WORLD), ("Link",), [samples.WORLD_EXAMPLE])},
    query=LIST,
    problems=(NO_ROOM,),
)
async def list_worlds(request: web.Request) -> web.StreamResponse:
    """List the account's worlds, newest first."""
    query = read_query(request, LIST)

    async def list_worlds(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[asyncpg.Record]:
        return await queries.list_worlds(conn, request[USER]["id"], after, limit)

    return await respond_with_list(
        request, query, queries.NEWEST_FIRST, list_worlds, dump_with(schemas.WORLD)
    )


@describe(
    {201: WORLD_CREATED},
    body=schemas.CREATE_WORLD,
    example={"name": "Orrery", "laws": {"physics": "Light is slow."}},
    problems=(LIMIT_REACHED,),
    idempotent=True,
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def create_world(request: web.Request) -> web.Response:
    """Create a world."""
    values = schemas.new_world(await read_body(request, schemas.CREATE_WORLD))
    return await write_once(request, _create, request, values)


async def _create(conn: Connection, request: web.Request, values: dict[str, Any]) -> web.Response:
    world = await queries.insert_world(conn, uuid_utils.uuid7(), request[USER]["id"], values)
    await check_limits(conn, request, "worlds")
    await record(conn, request, "world.create", request[USER]["id"], after=naming(world))
    return render_created(world)


def render_created(world: asyncpg.Record) -> web.Response:
    return render_row(schemas.WORLD, world, location=f"/api/v1/worlds/{world['id']}")


def naming(world: asyncpg.Record) -> dict[str, Any]:
    """Return what audit events say of a world."""
    return {"world_id": str(world["id"])}


@describe({200: _WORLD})
async def read_world(request: web.Request) -> web.Response:
    """Return a world."""
    return render_row(schemas.WORLD, await read(request.app, get_world, request))


@describe(
    {200: _WORLD._replace(description="The updated world.")},
    body=schemas.CHANGE_WORLD,
    example={"chronology_mode": "fragmented"},
    if_match="honoured",
    body_max_bytes=schemas.BODY_MAX_BYTES,
)
async def change_world(request: web.Request) -> web.Response:
    """Change a world. Omitted fields keep their values."""
    change = await read_body(request, schemas.CHANGE_WORLD)
    if "laws" in change:
        change["laws"] = {**schemas.NEW_WORLD["laws"], **change["laws"]}
    return render_row(schemas.WORLD, await write(request.app, _change, request, change))


async def _change(conn: Connection, request: web.Request, change: dict[str, Any]) -> asyncpg.Record:
    world = await lock_world(conn, request)
    check_preconditions(request, world["version"])
    if not changes(world, change):
        return world
    return await queries.update_world(conn, world["id"], {**world, **change})


@describe({204: Success("Deleted.")}, if_match="honoured")
async def delete_world(request: web.Request) -> web.Response:
    """Delete a world with all that is in it."""
    await write(request.app, _delete, request)
    return web.Response(status=204)


async def _delete(conn: Connection, request: web.Request) -> None:
    world = await lock_world(conn, request)
    check_preconditions(request, world["version"])
    await queries.mark_deleted(conn, world["id"])
    await record(conn, request, "world.delete", request[USER]["id"], before=naming(world))
