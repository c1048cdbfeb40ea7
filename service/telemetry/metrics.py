"""What the service counts and measures for Prometheus, where it is asked to (METRICS_PORT).

Nothing here runs, and prometheus_client is not imported, where the application has no registry.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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


def count(app: web.Application, what: Counted, **labels: str) -> None:
    """Count one, where metrics are kept."""
    metrics = app.get(METRICS)
    if metrics is not None:
        counter = metrics.counters[what]
        (counter.labels(**labels) if labels else counter).inc()


def create(registry: "CollectorRegistry") -> Metrics:
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


def measure_requests(metrics: Metrics) -> Middleware:
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


# Only where metrics are kept.
METRICS: web.AppKey["Metrics"] = web.AppKey("metrics")
