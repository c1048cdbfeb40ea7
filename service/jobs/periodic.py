"""Periodic jobs, which replicas share without doing the same work twice."""

import asyncio
import logging
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import write
from service.exceptions import DatabaseUnavailable
from service.jobs.tasks import end_tasks

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """A periodic job. ``work`` runs in a transaction that holds an advisory lock for ``name``."""

    name: str
    every_s: float
    work: Callable[[web.Application, Connection], Awaitable[None]]


class SlicedJob(NamedTuple):
    """A periodic job with too much work for one transaction. ``run`` opens several short ones.

    Replicas may run it at the same time, so each transaction locks the rows that it works on.
    """

    name: str
    every_s: float
    run: Callable[[web.Application], Awaitable[None]]


def periodic_context(*jobs: Job | SlicedJob) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return a cleanup context that runs the jobs while the application runs.

    They start apart, so that they do not take the whole pool from requests.
    """

    async def context(app: web.Application) -> AsyncIterator[None]:
        offsets = start_offsets_s(len(jobs), app[SETTINGS].jobs_start_within_s)
        tasks = [
            asyncio.create_task(_repeat(app, job, offset_s), name=job.name)
            for job, offset_s in zip(jobs, offsets, strict=True)
        ]
        yield
        await end_tasks(app, *tasks)

    return context


def start_offsets_s(count: int, within_s: float) -> list[float]:
    """Return when each job first runs: far from the other jobs, and differently in each process."""
    slot_s = within_s / count
    return [slot_s * (place + random.random() / 2) for place in range(count)]  # noqa: S311


async def _repeat(app: web.Application, job: Job | SlicedJob, offset_s: float) -> None:
    await asyncio.sleep(offset_s)
    while True:
        try:
            if isinstance(job, SlicedJob):
                await job.run(app)
            else:
                await write(app, _run_alone, app, job)
        except DatabaseUnavailable as error:
            log.warning(
                "job postponed", extra={"job": job.name, "cause": type(error.__cause__).__name__}
            )
        except Exception:
            log.exception("job failed", extra={"job": job.name})
        await asyncio.sleep(job.every_s)


async def _run_alone(conn: Connection, app: web.Application, job: Job) -> None:
    """Run the job unless another replica is running it."""
    key = zlib.crc32(f"shinkei job {job.name}".encode())
    if await conn.fetchval("select pg_try_advisory_xact_lock($1)", key):
        await job.work(app, conn)
