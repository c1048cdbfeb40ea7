"""Liveness, readiness and startup probes (draft-inadarei-api-health-check)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg
import orjson
from aiohttp import web

from service import __version__
from service.context import LIFECYCLE, SETTINGS
from service.db import migrations
from service.db.connecting import CONNECT_TIMEOUT_S, connect
from service.db.connection import LOST, POOL, WRITES
from service.health.descriptions import ALIVE, CONTENT_TYPE, HEALTH_SHAPE, describe_probe
from service.http.descriptions import Success, describe
from service.http.responses import JsonResponse

DEADLINE_S = 0.5
COMMAND_TIMEOUT_S = 2
CACHE_S = 1.0


@dataclass(slots=True)
class Health:
    """Shared state of the probes."""

    started: bool = False
    checked_at: float = float("-inf")
    body: dict[str, object] = field(default_factory=dict)
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    connecting: "asyncio.Task[asyncpg.Connection[asyncpg.Record]] | None" = None


async def health_context(app: web.Application) -> AsyncIterator[None]:
    """Check once at start, so that the first probe finds the probes' own connection open."""
    await _check(app)
    yield
    task = app[HEALTH].connecting
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, *LOST, asyncpg.PostgresError):
            (await task).terminate()


@describe(
    {200: Success("Alive.", HEALTH_SHAPE, example=ALIVE, content_type=CONTENT_TYPE)},
    database=False,
)
async def live(request: web.Request) -> web.Response:
    """Check whether the process is alive.

    Does no I/O: an unreachable database is no reason to restart the process.
    """
    return _render(200, {"status": "pass", "version": __version__})


@describe_probe("Ready.")
async def ready(request: web.Request) -> web.Response:
    """Check whether the process can serve requests.

    It can if the database is reachable and accepts writes, all migrations are applied and no
    shutdown is in progress.
    """
    body = await _check(request.app)
    return _render(503 if body["status"] == "fail" else 200, body)


@describe_probe("The process has become ready.")
async def startup(request: web.Request) -> web.Response:
    """Check whether the process has become ready since it started.

    Once it has, the response is always 200.
    """
    if not request.app[HEALTH].started:
        return await ready(request)
    return _render(200, {"status": "pass", "version": __version__})


def _render(status: int, body: dict[str, object]) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JsonResponse(
        orjson.dumps(body), status=status, content_type=CONTENT_TYPE, headers=headers
    )


async def _check(app: web.Application) -> dict[str, object]:
    """Return the state of all parts, cached for ``CACHE_S``; concurrent probes share one check."""
    health = app[HEALTH]
    async with health.checking:
        if time.monotonic() - health.checked_at > CACHE_S:
            health.body = await _run_checks(app)
            health.checked_at = time.monotonic()
        body = health.body
        if body["status"] != "fail":
            health.started = True
    if app[LIFECYCLE].stopping:
        return {**body, "status": "fail", "output": "stopping"}
    return body


async def _run_checks(app: web.Application) -> dict[str, object]:
    started = time.perf_counter()
    output = ""
    read_only: bool | None = None
    pending: list[str] | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            read_only, pending = await _ask_database(app)
    except TimeoutError:
        output = f"no response within {DEADLINE_S * 1000:g} ms"
    except asyncpg.TargetServerAttributeNotMatched:
        output = "no server matches target_session_attrs"
    except (*LOST, asyncpg.PostgresError):
        output = "cannot be reached"
    database: dict[str, object] = {
        "componentType": "datastore",
        "status": "fail" if pending is None else "pass",
        "observedValue": round((time.perf_counter() - started) * 1000, 2),
        "observedUnit": "ms",
    }
    if output:
        database["output"] = output
    writes: dict[str, object] = {
        "componentType": "datastore",
        "status": "pass" if read_only is False else "fail",
    }
    if read_only:
        writes["output"] = "the database is read-only"
    migrations: dict[str, object] = {
        "componentType": "datastore",
        "status": "fail" if pending is None or pending else "pass",
    }
    if pending:
        migrations["observedValue"] = len(pending)
        migrations["observedUnit"] = "pending"
        migrations["output"] = "run shinkei migrate"
    pool = app[POOL]
    in_use = pool.get_size() - pool.get_idle_size()
    utilization: dict[str, object] = {
        "componentType": "component",
        # A saturated pool still serves, and removing the replica would overload the others.
        "status": "warn" if in_use >= pool.get_max_size() or app[WRITES].locked() else "pass",
        "observedValue": in_use,
        "observedUnit": f"of {pool.get_max_size()} connections",
    }
    checks = {
        "database:responseTime": database,
        "database:writes": writes,
        "database:migrations": migrations,
        "pool:utilization": utilization,
    }
    statuses = {check["status"] for check in checks.values()}
    return {
        "status": next((status for status in ("fail", "warn") if status in statuses), "pass"),
        "version": __version__,
        "checks": {name: [check] for name, check in checks.items()},
    }


async def _ask_database(app: web.Application) -> tuple[bool, list[str]]:
    """Return whether the database is read-only, and the pending migrations.

    Asks on a dedicated connection, so that a saturated pool cannot fail the probes. A connection
    lost since the last check is replaced at once. One that is read-only may lead to a server that
    is no longer the primary, so the next check uses another.
    """
    for attempt in (1, 2):
        conn = await asyncio.shield(_connecting(app))
        try:
            read_only, pending = await migrations.find_state(conn)
            if read_only:
                conn.terminate()
                _connecting(app)
            return read_only, pending
        except (*LOST, asyncpg.PostgresError):
            conn.terminate()
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


def _connecting(app: web.Application) -> "asyncio.Task[asyncpg.Connection[asyncpg.Record]]":
    """Return the task that opens the probes' connection, a new one if that is lost.

    The task outlives the check that started it. So on a network where connecting takes longer than
    the deadline of a check, a later check finds the connection open.
    """
    health = app[HEALTH]
    task = health.connecting
    if task is None or (task.done() and (task.exception() or task.result().is_closed())):
        database = app[SETTINGS].database
        assert database is not None  # noqa: S101
        task = health.connecting = asyncio.create_task(
            connect(database, timeout_s=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S)
        )
    return task


HEALTH: web.AppKey["Health"] = web.AppKey("health")
