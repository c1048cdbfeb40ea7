"""Samples the pool, the hash threads, the event loop and the backlogs for the metrics."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from service.accounts import purge_queries
from service.auth.passwords import HASHER
from service.auth.signing_keys import KEY_RING
from service.db.connecting import CONNECTOR
from service.db.connection import DATABASE_TIMERS, POOL, POOL_WAITING
from service.db.replica import REPLICA
from service.db.transactions import read
from service.exceptions import DatabaseUnavailable
from service.jobs.tasks import end_tasks
from service.mail import queries as mail_queries
from service.telemetry.metrics import METRICS, create, measure_requests

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

SAMPLE_EVERY_S = 1
BACKLOGS_EVERY_S = 15


def install(app: web.Application, registry: "CollectorRegistry") -> None:
    """Record the application's metrics in ``registry``, using an outermost middleware."""
    metrics = app[METRICS] = create(registry)
    app.middlewares.insert(0, measure_requests(metrics))
    app.cleanup_ctx.append(_metrics_context)


async def _metrics_context(app: web.Application) -> AsyncIterator[None]:
    """Observe connections and hashes, and take samples while the application runs."""
    metrics = app[METRICS]
    queries: dict[str, Callable[[float], None]] = {}

    def observe_connection(query: str, waited_s: float, held_s: float) -> None:
        metrics.db_acquire_wait.observe(waited_s)
        # Zero means that no connection was acquired.
        if held_s:
            observe = queries.get(query)
            if observe is None:
                observe = queries[query] = metrics.db_query_duration.labels(query).observe
            observe(held_s)

    def observe_hash(waited_s: float, took_s: float) -> None:
        metrics.password_hash_wait.observe(waited_s)
        metrics.password_hash_duration.observe(took_s)

    app[DATABASE_TIMERS].append(observe_connection)
    app[HASHER].timers.append(observe_hash)
    tasks = [
        asyncio.create_task(_repeat(app, SAMPLE_EVERY_S, _sample), name="metrics"),
        asyncio.create_task(
            _repeat(app, BACKLOGS_EVERY_S, _sample_backlogs), name="backlog metrics"
        ),
    ]
    yield
    await end_tasks(app, *tasks)
    # Include the counts since the last sample.
    _count_tokens(app)
    _count_replica_reads(app)


async def _repeat(
    app: web.Application,
    every_s: float,
    sample: Callable[[web.Application, float], Awaitable[None]],
) -> None:
    """Take a sample every ``every_s`` seconds, passing how many seconds late it is."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        try:
            with contextlib.suppress(DatabaseUnavailable):
                await sample(app, loop.time() - due)
        except Exception:
            log.exception("metrics not sampled")
        due = loop.time() + every_s
        await asyncio.sleep(every_s)


async def _sample(app: web.Application, late_s: float) -> None:
    metrics, pool, hasher = app[METRICS], app[POOL], app[HASHER]
    open_now = pool.get_size()
    metrics.http_requests_in_flight.set(metrics.in_flight)
    metrics.db_pool_connections.set(open_now)
    metrics.db_pool_connections_max.set(pool.get_max_size())
    metrics.db_pool_connections_in_use.set(open_now - pool.get_idle_size())
    metrics.db_pool_connecting.set(app[CONNECTOR].in_progress)
    metrics.db_pool_waiting.set(app[POOL_WAITING].count)
    metrics.password_hash_threads.set(hasher.workers)
    metrics.password_hashes_queued.set(max(0, hasher.queued - hasher.workers))
    metrics.event_loop_lag.observe(max(0, late_s))
    _count_tokens(app)
    _count_replica_reads(app)


def _count_tokens(app: web.Application) -> None:
    """Move the token cache's counts, which are plain integers for speed, into the metrics."""
    metrics, ring = app[METRICS], app[KEY_RING]
    metrics.token_cache.labels("hit").inc(ring.hits)
    metrics.token_cache.labels("miss").inc(ring.misses)
    ring.hits = ring.misses = 0


def _count_replica_reads(app: web.Application) -> None:
    """Move the replica's counts into the metrics: ``db`` knows no metrics."""
    metrics, replica = app[METRICS], app[REPLICA]
    if replica is None:
        return
    metrics.db_replica_in_use.set(replica.in_use)
    reads = metrics.counters["db_replica_reads"]
    reads.labels("replica").inc(replica.reads_there)
    reads.labels("primary").inc(replica.reads_on_primary)
    replica.reads_there = replica.reads_on_primary = 0


async def _sample_backlogs(app: web.Application, late_s: float) -> None:
    mails, oldest_age_s = await read(app, mail_queries.measure_outbox)
    app[METRICS].mail_outbox_mails.set(mails)
    app[METRICS].mail_outbox_oldest_age.set(oldest_age_s)
    app[METRICS].purge_overdue.set(await read(app, purge_queries.measure_overdue_purges))
