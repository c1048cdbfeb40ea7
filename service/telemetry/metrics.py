"""Prometheus metrics of the service, if METRICS_PORT is set.

If the application has no registry, prometheus_client is not imported and nothing is measured.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.telemetry.access_log import route_template

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Counted: TypeAlias = Literal[
    "sign_ins",
    "sign_in_methods",
    "registrations",
    "throttled_requests",
    "idempotent_replays",
    "mails",
    "connections_dropped",
    "db_replica_reads",
]
# Why a connection was closed before its client did so.
Dropped: TypeAlias = Literal["not_reading", "idle", "overload"]
# Known label values, so that each series exists at 0 before the first event.
LABELS: dict[Counted, tuple[str, tuple[str, ...]]] = {
    "sign_ins": (
        "outcome",
        ("success", "second_factor_required", "wrong", "refused", "throttled"),
    ),
    "sign_in_methods": ("method", ("pwd", "otp", "hwk", "swk", "rec")),
    "throttled_requests": (
        "policy",
        (
            *("sign-in-per-account", "sign-in-per-ip", "registration-per-ip"),
            *("password-reset-per-account", "password-reset-per-ip"),
            *("verification-per-account", "verification-per-ip"),
            *("second-factors-per-account", "second-factors-per-ip"),
        ),
    ),
    "mails": ("outcome", ("sent", "failed", "unknown", "given_up")),
    "connections_dropped": ("reason", get_args(Dropped)),
    "db_replica_reads": ("server", ("replica", "primary")),
}
HELP: dict[Counted, str] = {
    "sign_ins": (
        "Sign-ins, and wrong or throttled proofs elsewhere; refused means that the account is"
        " suspended or unverified"
    ),
    "sign_in_methods": (
        "Methods of successful sign-ins (RFC 8176): a password, a one-time code, a passkey that is"
        " bound to one device or synchronized, a recovery code"
    ),
    "registrations": "Accounts created by registration",
    "throttled_requests": "Requests rejected by a rate limit",
    "idempotent_replays": "Requests that got the stored response for their Idempotency-Key",
    "mails": "Attempts to send a mail; failed and unknown ones are retried, given_up ones are not",
    "db_replica_reads": "Reads for lists and exports if there is a replica, by where they ran",
    "connections_dropped": "Connections closed on clients that did not read, or for their number",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# In seconds, with upper ends that suit the default request and statement timeouts.
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUERY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(slots=True)
class Metrics:
    """The metrics, named as exported; ``in_flight`` is the number of requests in progress."""

    counters: "dict[Counted, Counter]"
    http_requests: "Counter"
    http_request_duration: "Histogram"
    http_requests_in_flight: "Gauge"
    db_pool_connections: "Gauge"
    db_pool_connections_max: "Gauge"
    db_pool_connections_in_use: "Gauge"
    db_pool_connecting: "Gauge"
    db_pool_waiting: "Gauge"
    db_replica_in_use: "Gauge"
    db_acquire_wait: "Histogram"
    db_query_duration: "Histogram"
    password_hash_threads: "Gauge"
    password_hashes_queued: "Gauge"
    password_hash_wait: "Histogram"
    password_hash_duration: "Histogram"
    mail_outbox_mails: "Gauge"
    mail_outbox_oldest_age: "Gauge"
    purge_overdue: "Gauge"
    event_loop_lag: "Histogram"
    token_cache: "Counter"
    in_flight: int = 0


def count(app: web.Application, what: Counted, **labels: str) -> None:
    """Increment a counter, if metrics are enabled."""
    metrics = app.get(METRICS)
    if metrics is not None:
        counter = metrics.counters[what]
        (counter.labels(**labels) if labels else counter).inc()


def create(registry: "CollectorRegistry") -> Metrics:
    """Create the metrics, named by Prometheus's conventions: a prefix and base units.

    Gauges are summed over all live workers. Those that every worker reads from the database use the
    maximum instead.
    """
    from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

    # These would double the number of series, and multiprocess mode does not support them.
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
            "Requests, by route template",
            "method",
            "route",
            "status",
        ),
        http_request_duration=histogram(
            "http_request_duration_seconds",
            "Time to handle a request",
            *("method", "route"),
            buckets=REQUEST_BUCKETS,
        ),
        http_requests_in_flight=gauge("http_requests_in_flight", "Requests in progress"),
        db_pool_connections=gauge("db_pool_connections", "Open connections"),
        db_pool_connections_max=gauge("db_pool_connections_max", "Maximum open connections"),
        db_pool_connections_in_use=gauge("db_pool_connections_in_use", "Connections in use"),
        db_pool_connecting=gauge("db_pool_connecting", "Connections being opened"),
        db_pool_waiting=gauge("db_pool_waiting", "Requests and jobs waiting for a connection"),
        db_replica_in_use=gauge("db_replica_in_use", "Processes that use the replica"),
        db_acquire_wait=histogram("db_acquire_wait_seconds", "Time spent waiting for a connection"),
        db_query_duration=histogram(
            "db_query_duration_seconds",
            "How long a connection was held for a query or a transaction",
            "query",
        ),
        password_hash_threads=gauge("password_hash_threads", "Threads for hashing passwords"),
        password_hashes_queued=gauge("password_hashes_queued", "Hashes waiting for a thread"),
        password_hash_wait=histogram(
            "password_hash_wait_seconds", "Time spent waiting for a thread", buckets=REQUEST_BUCKETS
        ),
        password_hash_duration=histogram(
            "password_hash_duration_seconds", "Time spent hashing", buckets=REQUEST_BUCKETS
        ),
        mail_outbox_mails=gauge("mail_outbox_mails", "Mails not sent yet", "livemax"),
        mail_outbox_oldest_age=gauge(
            "mail_outbox_oldest_age_seconds", "Age of the oldest mail not sent yet", "livemax"
        ),
        purge_overdue=gauge(
            "purge_overdue_seconds",
            "How long ago the oldest account still to be purged was due",
            "livemax",
        ),
        event_loop_lag=histogram(
            "event_loop_lag_seconds",
            "Delay of an event loop timer",
            buckets=REQUEST_BUCKETS,
        ),
        token_cache=counter(
            "token_cache", "Lookups in the cache of verified access tokens", "outcome"
        ),
    )


def measure_requests(metrics: Metrics) -> Middleware:
    """Create the outermost middleware; those inside it turn every error into a response.

    To keep clients from creating series, requests without a route are "unmatched", CORS preflights
    "preflight", and unknown methods "other".
    """
    increments: dict[tuple[object, str, int], Callable[[], None]] = {}
    observers: dict[tuple[object, str], Callable[[float], None]] = {}

    def without_route(method: str, status: int) -> str:
        return "preflight" if method == "OPTIONS" and status in (204, 403) else "unmatched"

    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        metrics.in_flight += 1
        try:
            response = await handler(request)
        finally:
            metrics.in_flight -= 1
        method = request.method if request.method in METHODS else "other"
        resource = request.match_info.route.resource or without_route(method, response.status)
        try:
            increments[resource, method, response.status]()
            observers[resource, method](time.perf_counter() - started)
        except KeyError:
            # The path with and without a trailing slash is one route.
            route = route_template(request) or without_route(method, response.status)
            requests = metrics.http_requests.labels(method, route, str(response.status))
            duration = metrics.http_request_duration.labels(method, route)
            increments[resource, method, response.status] = requests.inc
            observers[resource, method] = duration.observe
            requests.inc()
            duration.observe(time.perf_counter() - started)
        return response

    return measure


# Present only if metrics are enabled.
METRICS: web.AppKey["Metrics"] = web.AppKey("metrics")
