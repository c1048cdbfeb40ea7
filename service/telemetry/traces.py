"""Traces if TRACES is set: a span for each request, each of its statements, and each mail.

This module is imported only then. OpenTelemetry's own variables (OTEL_*) configure the exporter and
sampling.

Names and attributes follow the semantic conventions. Spans often go to a third party, so they leave
out the path (in favour of its template), the client's IP and the user agent. The request id leads
to the log, which has the rest.
"""

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service import __version__
from service.context import LOG_CONTEXT, REQUEST_CONTEXT, SETTINGS, TRACER
from service.db.connection import CONNECTION_CLASS, PURPOSE, STATEMENT_MAX_CHARS
from service.settings import Database, Settings
from service.telemetry.access_log import PROBES, is_failure, route_template

log = logging.getLogger(__name__)

# How long shutdown waits for the last spans to be sent.
FLUSH_TIMEOUT_S = 2
# Minimum time between warnings about an unreachable collector.
COMPLAIN_EVERY_S = 60

_W3C = TraceContextTextMapPropagator()


def install(app: web.Application) -> None:
    """Trace the application's requests, statements and mails.

    The middleware is the outermost one, so that it sees every response and the log has its ids.
    """
    settings = app[SETTINGS]
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    tracer = provider.get_tracer("shinkei", __version__)
    app[TRACER] = tracer
    app[CONNECTION_CLASS] = _traced_connection(tracer, settings.database)
    app.middlewares.insert(0, _trace_requests(tracer, settings))
    # Entered first and left last, so that the spans of all other contexts are sent.
    app.cleanup_ctx.insert(0, functools.partial(_export_context, provider))


def _resource() -> Resource:
    """Describe this service: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or ``shinkei``."""
    given = OTELResourceDetector().detect().attributes
    name = given.get("service.name", "shinkei")
    return Resource.create({"service.name": name, "service.version": __version__})


class _Exporter(OTLPSpanExporter):
    """Logs at intervals that spans could not be sent; the library would log every attempt."""

    _lost = 0
    _silent_until = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            if time.monotonic() >= self._silent_until:
                self.report_lost()
                self._silent_until = time.monotonic() + COMPLAIN_EVERY_S
        return result

    def report_lost(self) -> None:
        """Log how many spans were lost since the last report, if any."""
        if self._lost:
            log.warning("traces not sent", extra={"spans": self._lost})
            self._lost = 0


async def _export_context(provider: TracerProvider, app: web.Application) -> AsyncIterator[None]:
    """Start the thread that sends spans, and flush the remaining ones at shutdown."""
    for library in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    exporter = _Exporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    yield
    loop = asyncio.get_running_loop()
    sent = asyncio.Event()

    def flush() -> None:
        provider.shutdown()
        # The loop may already be closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(sent.set)

    threading.Thread(target=flush, daemon=True, name="traces").start()
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await sent.wait()
    except TimeoutError:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    exporter.report_lost()


def _trace_requests(tracer: Tracer, settings: Settings) -> Middleware:
    """Create the middleware: one span per request, except probes, within the client's trace."""
    origin = urlsplit(settings.public_origin)
    constant: dict[str, AttributeValue] = {
        "url.scheme": origin.scheme,
        "server.address": origin.hostname or "",
    }
    if origin.port:
        constant["server.port"] = origin.port

    @web.middleware
    async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_template(request)
        if route in PROBES:
            return await handler(request)
        method = request.method if request.method in hdrs.METH_ALL else "_OTHER"
        attributes = {**constant, "http.request.method": method}
        name = method.replace("_OTHER", "HTTP")
        if route is not None:
            attributes["http.route"] = route
            name = f"{name} {route}"
        parent = _W3C.extract(request.headers)
        with _span(tracer, name, SpanKind.SERVER, attributes, parent) as span:
            context = span.get_span_context()
            trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
            if span.is_recording():
                ids = {"trace_id": trace_id, "span_id": span_id}
                LOG_CONTEXT.set({**LOG_CONTEXT.get(), **ids})
            try:
                response = await handler(request)
            finally:
                request_context = REQUEST_CONTEXT.get()
                span.set_attribute("shinkei.request_id", request_context.request_id)
            span.set_attribute("http.response.status_code", response.status)
            if is_failure(response.status):
                span.set_attribute(
                    "error.type", request_context.problem_code or str(response.status)
                )
                span.set_status(trace.StatusCode.ERROR)
        if context.is_valid:
            # Lets the client find the trace (W3C draft of Trace Response Headers).
            flags = f"{context.trace_flags:02x}"
            response.headers["traceresponse"] = f"00-{trace_id}-{span_id}-{flags}"
        return response

    return trace_request


def _traced_connection(tracer: Tracer, database: Database | None) -> type[Any]:
    """Return an asyncpg connection class with a span for each statement within a trace.

    Statements outside a trace, such as polling the outbox, start none.
    """
    constant: dict[str, AttributeValue] = {"db.system.name": "postgresql"}
    if database is not None:
        constant["db.namespace"] = database.name
        if len(database.hosts) == 1:
            constant["server.address"], constant["server.port"] = database.hosts[0]

    def traced(name: str) -> Callable[..., Any]:
        method = getattr(asyncpg.Connection, name)

        @functools.wraps(method)
        async def call(conn: Any, query: str, *args: Any, **kwargs: Any) -> Any:
            if not trace.get_current_span().is_recording():
                return await method(conn, query, *args, **kwargs)
            text = " ".join(query.split())
            operation = text.partition(" ")[0].rstrip(";").upper()
            summary = f"{operation} {PURPOSE.get()}"
            attributes = {
                **constant,
                "db.operation.name": operation,
                "db.query.summary": summary,
                "db.query.text": text[:STATEMENT_MAX_CHARS],
            }
            with _span(tracer, summary, SpanKind.CLIENT, attributes):
                return await method(conn, query, *args, **kwargs)

        return call

    names = ("execute", "executemany", "fetch", "fetchrow", "fetchval")
    return type("TracedConnection", (asyncpg.Connection,), {name: traced(name) for name in names})


@contextmanager
def mail_span(app: web.Application, template: str, request: Mapping[str, str]) -> Iterator[None]:
    """Open a span for an attempt to send a mail, in the trace of the request that caused it.

    ``request`` is the LOG_CONTEXT of that request.
    """
    cause = SpanContext(
        int(request["trace_id"], 16),
        int(request["span_id"], 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    attributes: dict[str, AttributeValue] = {
        "shinkei.mail_template": template,
        "shinkei.request_id": request["request_id"],
    }
    server = app[SETTINGS].mail_server
    if server is not None:
        attributes |= {"server.address": server.host, "server.port": server.port}
    parent = trace.set_span_in_context(NonRecordingSpan(cause), Context())
    with _span(app[TRACER], f"mail {template}", SpanKind.PRODUCER, attributes, parent):
        yield


@contextmanager
def _span(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, AttributeValue],
    parent: Context | None = None,
) -> Iterator[Span]:
    """Open a span and make it current. It records the type of an exception, never its text."""
    with tracer.start_as_current_span(
        name,
        parent,
        kind,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            if isinstance(error, asyncpg.PostgresError):
                span.set_attribute("db.response.status_code", str(error.sqlstate))
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
