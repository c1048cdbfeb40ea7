"""When the periodic jobs run."""

import dataclasses
import zlib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from aiohttp import web

from service.app import create_app
from service.db.connection import DATABASE_TIMERS
from service.exceptions import DatabaseUnavailable
from service.jobs.periodic import Job, periodic_context, start_offsets_s
from service.settings import Settings
from tests.support.clients import WITH_JOBS, Client, StartApp
from tests.support.factories import register
from tests.support.logbook import logged
from tests.support.waiting import eventually

Serve = Callable[..., Awaitable[Client]]


def with_job(settings: Settings, work: Callable[..., Awaitable[None]]) -> web.Application:
    """Return an application with one more job, which runs every moment."""
    app = create_app(dataclasses.replace(settings, **WITH_JOBS))
    app.cleanup_ctx.append(periodic_context(Job("of the test", 0.02, work)))
    return app


async def test_job_that_failed_runs_again(settings: Settings, aiohttp_client: Serve) -> None:
    runs: list[int] = []

    async def fail_at_first(_: web.Application, conn: Any) -> None:
        runs.append(await conn.fetchval("select 1"))
        if len(runs) == 1:
            raise ValueError
        if len(runs) == 2:
            raise DatabaseUnavailable

    with logged() as events:
        await aiohttp_client(with_job(settings, fail_at_first))
        await eventually(lambda: len(runs) > 3)
    found = [event for event in events if event.get("job") == "of the test"]
    assert [(event["event"], event["level"]) for event in found] == [
        ("job failed", "error"),
        ("job postponed", "warning"),
    ]


async def test_job_is_left_to_the_replica_that_runs_it(
    settings: Settings, aiohttp_client: Serve, conn: Any
) -> None:
    runs, tries = [], []

    async def run(*_: Any) -> None:
        runs.append(1)

    async with conn.transaction():
        key = zlib.crc32(b"shinkei job of the test")
        await conn.execute("select pg_advisory_xact_lock($1)", key)
        app = with_job(settings, run)
        await aiohttp_client(app)
        app[DATABASE_TIMERS].append(lambda name, waited_s, held_s: tries.append(name))
        # The service's own jobs run once.
        await eventually(lambda: tries.count("jobs.run_alone") > 20)
        assert not runs
    await eventually(lambda: runs)


async def test_jobs_do_not_all_start_with_the_application(start_app: StartApp) -> None:
    with logged() as events:
        # Every statement is slow enough to be logged.
        client = await start_app(slow_query_ms=0.0001, jobs_start_within_s=1e4)
        await register(client)
    started = [event for event in events if event.get("query") == "jobs.run_alone"]
    assert [event["statement"] for event in started].count("BEGIN;") <= 1


def test_jobs_start_apart() -> None:
    offsets = start_offsets_s(9, 10)
    assert offsets[0] >= 0
    assert offsets[-1] < 10
    assert all(later - earlier > 0.5 for earlier, later in pairwise(offsets))


def test_jobs_of_processes_that_start_together_start_apart() -> None:
    assert start_offsets_s(1, 10) != start_offsets_s(1, 10)
