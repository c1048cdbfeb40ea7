"""What the service counts and measures for Prometheus, where it is asked to (METRICS_PORT).

Nothing here runs, and prometheus_client is not imported, where the application has no registry.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.database import read
from service.errors import Problem
from service.keys import DATABASE_TIMERS, HASHER, KEY_RING, METRICS, POOL, POOL_WAITING
from service.mail import queries as mail_queries

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SAMPLE_EVERY_S = 1
OUTBOX_EVERY_S = 15

Counted: TypeAlias = Literal[
    "sign_ins", "registrations", "throttled_requests", "idempotent_replays", "mails"
]
# What a label may say, so that each series is there, at 0, before anything has happened.
LABELS: dict[Counted, tuple[str, tuple[str, ...]]] = {
    "sign_ins": ("outcome", ("success", "wrong", "refused", "throttled")),
    "throttled_requests": (
        "policy",
        (
            *("sign-in-per-account", "sign-in-per-ip", "registration-per-ip"),
            *("password-reset-per-account", "password-reset-per-ip"),
            *("verification-per-account", "verification-per-ip"),
        ),
    ),
    "mails": ("outcome", ("sent", "failed", "given_up")),
}
HELP: dict[Counted, str] = {
    "sign_ins": "Sign-ins with a password: wrong, refused to a suspended or unverified account, …",
    "registrations": "Accounts created by registration",
    "throttled_requests": "Requests that a rate limit refused",
    "idempotent_replays": "Requests that got the stored answer to their Idempotency-Key",
    "mails": "Attempts to send a mail; one that failed is tried again, one given up is not",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Seconds. A request is answered within 5 s, a statement ends within 3.5 s.
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUERY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(slots=True)
class Metrics:
    """The metrics, named as they are exported; ``in_flight`` is how many requests are under way."""

    counters: "dict[Counted, Counter]"
    http_requests: "Counter"
    http_request_duration: "Histogram"
    http_requests_in_flight: "Gauge"
    db_pool_connections: "Gauge"
    db_pool_connections_max: "Gauge"
    db_pool_connections_in_use: "Gauge"
    db_pool_waiting: "Gauge"
    db_acquire_wait: "Histogram"
    db_query_duration: "Histogram"
    password_hash_threads: "Gauge"
    password_hashes_queued: "Gauge"
    password_hash_wait: "Histogram"
    password_hash_duration: "Histogram"
    mail_outbox_mails: "Gauge"
    mail_outbox_oldest_age: "Gauge"
    event_loop_lag: "Histogram"
    token_cache: "Counter"
    in_flight: int = 0


def install(app: web.Application, registry: "CollectorRegistry") -> None:
    """Measure the application into ``registry``, from its outermost middleware on."""
    metrics = app[METRICS] = _create(registry)
    app.middlewares.insert(0, _measure_requests(metrics))
    app.cleanup_ctx.append(_metrics_context)


def count(app: web.Application, what: Counted, **labels: str) -> None:
    """Count one, where metrics are kept."""
    metrics = app.get(METRICS)
    if metrics is not None:
        counter = metrics.counters[what]
        (counter.labels(**labels) if labels else counter).inc()


def _create(registry: "CollectorRegistry") -> Metrics:
    """Prometheus's names: a prefix, base units. Of gauges, those of all live workers are added up;
    what each of them reads from the database alike is taken once.
    """
    from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

    # They would double the series, and several workers have none.
    disable_created_metrics()

    def counter(name: str, about: str, *labels: str) -> Counter:
        return Counter(f"shinkei_{name}", about, labels, registry=registry)

    def gauge(name: str, about: str, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
        return Gauge(f"shinkei_{name}", about, registry=registry, multiprocess_mode=mode)

    def histogram(
        name: str, about: str, *labels: str, buckets: tuple[float, ...] = QUERY_BUCKETS
    ) -> Histogram:
        return Histogram(f"shinkei_{name}", about, labels, registry=registry, buckets=buckets)

    counters = {}
    for what, about in HELP.items():
        label, known = LABELS.get(what, ("", ()))
        counters[what] = counter(what, about, *([label] if label else []))
        for value in known:
            counters[what].labels(value)
    return Metrics(
        counters=counters,
        http_requests=counter(
            "http_requests",
            "Requests answered, by the route's template",
            "method",
            "route",
            "status",
        ),
        http_request_duration=histogram(
            "http_request_duration_seconds",
            "From a request's header to its answer",
            *("method", "route"),
            buckets=REQUEST_BUCKETS,
        ),
        http_requests_in_flight=gauge("http_requests_in_flight", "Requests under way"),
        db_pool_connections=gauge("db_pool_connections", "Connections that are open"),
        db_pool_connections_max=gauge("db_pool_connections_max", "Connections that may be open"),
        db_pool_connections_in_use=gauge("db_pool_connections_in_use", "Connections in use"),
        db_pool_waiting=gauge("db_pool_waiting", "Requests and jobs that wait for a connection"),
        db_acquire_wait=histogram("db_acquire_wait_seconds", "Waiting for a connection"),
        db_query_duration=histogram(
            "db_query_duration_seconds",
            "How long a connection was held for a query or a transaction",
            "query",
        ),
        password_hash_threads=gauge("password_hash_threads", "Threads that hash passwords"),
        password_hashes_queued=gauge("password_hashes_queued", "Hashes that wait for a thread"),
        password_hash_wait=histogram(
            "password_hash_wait_seconds", "Waiting for a thread", buckets=REQUEST_BUCKETS
        ),
        password_hash_duration=histogram(
            "password_hash_duration_seconds", "Hashing a password", buckets=REQUEST_BUCKETS
        ),
        mail_outbox_mails=gauge("mail_outbox_mails", "Mails that are not sent yet", "livemax"),
        mail_outbox_oldest_age=gauge(
            "mail_outbox_oldest_age_seconds", "Since the oldest of them was written", "livemax"
        ),
        event_loop_lag=histogram(
            "event_loop_lag_seconds",
            "How late a timer of the event loop is",
            buckets=REQUEST_BUCKETS,
        ),
        token_cache=counter(
            "token_cache", "Access tokens looked up among those verified", "outcome"
        ),
    )


def _measure_requests(metrics: Metrics) -> Middleware:
    """The outermost middleware. It sees answers only, as ``answering`` makes one of every error.

    What has no route is "unmatched", be it for its path or its method, a browser's question before
    a request is "preflight", and an invented method "other": strangers must not be able to make up
    series.
    """
    answered: dict[tuple[object, str, int], Callable[[], None]] = {}
    durations: dict[tuple[object, str], Callable[[float], None]] = {}

    def without_route(method: str, status: int) -> str:
        return "preflight" if (method, status) == ("OPTIONS", 204) else "unmatched"

    @web.middleware
    async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        metrics.in_flight += 1
        try:
            response = await handler(request)
        finally:
            metrics.in_flight -= 1
        method = request.method if request.method in METHODS else "other"
        resource = request.match_info.route.resource or without_route(method, response.status)
        try:
            answered[resource, method, response.status]()
            durations[resource, method](time.perf_counter() - started)
        except KeyError:
            # With and without a slash at the end, it is one route.
            route = resource if isinstance(resource, str) else resource.canonical.rstrip("/")
            requests = metrics.http_requests.labels(method, route, str(response.status))
            duration = metrics.http_request_duration.labels(method, route)
            answered[resource, method, response.status] = requests.inc
            durations[resource, method] = duration.observe
            requests.inc()
            duration.observe(time.perf_counter() - started)
        return response

    return measured


async def _metrics_context(app: web.Application) -> AsyncIterator[None]:
    """Hear of connections and hashes, and look at what has to be looked at while the app lives."""
    metrics = app[METRICS]
    queries: dict[str, Callable[[float], None]] = {}

    def heard_of_connection(query: str, waited_s: float, held_s: float) -> None:
        metrics.db_acquire_wait.observe(waited_s)
        # One that was not had was held for no time at all.
        if held_s:
            observe = queries.get(query)
            if observe is None:
                observe = queries[query] = metrics.db_query_duration.labels(query).observe
            observe(held_s)

    def heard_of_hash(waited_s: float, took_s: float) -> None:
        metrics.password_hash_wait.observe(waited_s)
        metrics.password_hash_duration.observe(took_s)

    app[DATABASE_TIMERS].append(heard_of_connection)
    app[HASHER].timers.append(heard_of_hash)
    tasks = [
        asyncio.create_task(_repeat(app, SAMPLE_EVERY_S, _sample), name="metrics"),
        asyncio.create_task(_repeat(app, OUTBOX_EVERY_S, _sample_outbox), name="outbox metrics"),
    ]
    yield
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    # What was counted since the last sample.
    _count_tokens(app)


async def _repeat(
    app: web.Application,
    every_s: float,
    sample: Callable[[web.Application, float], Awaitable[None]],
) -> None:
    """Take a sample every so often, each told how late it is."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        await sample(app, loop.time() - due)
        due = loop.time() + every_s
        await asyncio.sleep(every_s)


async def _sample(app: web.Application, late_s: float) -> None:
    metrics, pool, hasher = app[METRICS], app[POOL], app[HASHER]
    open_now = pool.get_size()
    metrics.http_requests_in_flight.set(metrics.in_flight)
    metrics.db_pool_connections.set(open_now)
    metrics.db_pool_connections_max.set(pool.get_max_size())
    metrics.db_pool_connections_in_use.set(open_now - pool.get_idle_size())
    metrics.db_pool_waiting.set(app[POOL_WAITING].count)
    metrics.password_hash_threads.set(hasher.workers)
    metrics.password_hashes_queued.set(max(0, hasher.queued - hasher.workers))
    metrics.event_loop_lag.observe(max(0, late_s))
    _count_tokens(app)


def _count_tokens(app: web.Application) -> None:
    """Take over what each request counts, in plain numbers as it has to be quick."""
    metrics, ring = app[METRICS], app[KEY_RING]
    metrics.token_cache.labels("hit").inc(ring.hits)
    metrics.token_cache.labels("miss").inc(ring.misses)
    ring.hits = ring.misses = 0


async def _sample_outbox(app: web.Application, late_s: float) -> None:
    with contextlib.suppress(Problem):
        mails, oldest_age_s = await read(app, mail_queries.measure_outbox)
        app[METRICS].mail_outbox_mails.set(mails)
        app[METRICS].mail_outbox_oldest_age.set(oldest_age_s)
