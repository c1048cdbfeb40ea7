"""Assembly of the application: middlewares, cleanup contexts and routes."""

from typing import TYPE_CHECKING

from aiohttp import web

from service import purge
from service.accounts.rules import end_due_suspensions
from service.audit.partitions import maintain_partitions
from service.auth.guards import SIGNED_IN
from service.auth.passwords import hasher_context
from service.auth.signing_keys import key_ring_context
from service.context import LIFECYCLE, SETTINGS, Lifecycle
from service.db.coalescing import Coalesced
from service.db.pool import database_context
from service.health import sampling
from service.health.handlers import HEALTH, Health, health_context
from service.http.codings import BODY_MAX_BYTES
from service.http.connections import CONNECTIONS, Connections, connections_context
from service.http.cors import preflights
from service.http.headers import RESPONSE_HEADERS, ResponseHeaders
from service.http.middleware import request_middleware
from service.jobs.periodic import Job, periodic_context
from service.mail.sender import mail_context
from service.openapi.handlers import RENDERING, Rendering
from service.routes import add_routes
from service.sessions.queries import find_signed_in
from service.settings import Settings
from service.throttle import limits as throttle
from service.throttle.refunds import refund_failures, refunds_context
from service.users.handlers import EXPORTS
from service.worlds.transfer_handlers import TRANSFERS, Transfers

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

JOBS = (
    Job("audit partitions", 3600, maintain_partitions),
    Job("due suspensions", 60, end_due_suspensions),
    *throttle.JOBS,
    *purge.JOBS,
)


def create_app(settings: Settings, registry: "CollectorRegistry | None" = None) -> web.Application:
    """Create the application, which connects to ``settings.database`` at startup.

    If a ``registry`` is given, metrics are recorded in it.

    Middlewares run in order, each wrapping those after it. Cleanup contexts are entered in order
    and exited in reverse, so that everything that needs the pool ends before the pool closes.
    """
    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app[SETTINGS] = settings
    app[LIFECYCLE] = Lifecycle()
    app[CONNECTIONS] = Connections(app)
    app[HEALTH] = Health()
    app[RENDERING] = Rendering()
    app[SIGNED_IN] = Coalesced(app, find_signed_in)
    app[EXPORTS] = set()
    app[TRANSFERS] = Transfers()
    app.middlewares.extend([refund_failures, request_middleware(app), preflights(settings)])
    app.cleanup_ctx.extend(
        [
            database_context,
            refunds_context,
            key_ring_context,
            hasher_context,
            mail_context,
            health_context,
            connections_context,
            periodic_context(*JOBS),
        ]
    )
    app[RESPONSE_HEADERS] = ResponseHeaders(settings)
    app.on_response_prepare.append(app[RESPONSE_HEADERS].add)
    add_routes(app)
    if settings.traces:
        from service.telemetry import traces

        traces.install(app)
    if registry is not None:
        sampling.install(app, registry)
    return app
