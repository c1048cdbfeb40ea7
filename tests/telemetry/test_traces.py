"""Traces as a test collector receives them, and their ids in the log."""

import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.settings import Database, SettingsError, load_settings
from service.telemetry import traces
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, register
from tests.support.logbook import logged
from tests.support.mailbox import next_mail
from tests.support.probes import make_patient
from tests.support.processes import call, run_python, serving, url_of
from tests.support.waiting import DEADLINE_S, eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Collector:
    """Receives OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert request.content_type == "application/x-protobuf"
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(read_attributes(of_resource.resource))
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return web.Response(content_type="application/x-protobuf")

    async def find(self, name: str, trace_id: str = TRACE) -> Span:
        """Wait for the span with this name and return it."""

        def look() -> Span | None:
            found = (span for span in self.spans if span.trace_id.hex() == trace_id)
            return next((span for span in found if span.name == name), None)

        span: Span = await eventually(look)
        return span


def read_attributes(span: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
    }


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    make_patient(monkeypatch)
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    server = TestServer(app)
    await server.start_server()
    found.url = str(server.make_url("")).rstrip("/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield found
    await server.close()


@pytest.fixture
async def traced(collector: Collector, start_app: StartApp) -> Client:
    return await start_app(traces=True, public_origin="https://app.example:8443")


async def test_ipv6_address_of_the_server_is_named_without_brackets(
    collector: Collector, start_app: StartApp
) -> None:
    client = await start_app(traces=True, public_origin="http://[2001:db8::1]:8443")
    await client.get("/openapi.json", headers=TRACEPARENT)
    found = read_attributes(await collector.find("GET /openapi.json"))
    assert (found["server.address"], found["server.port"]) == ("2001:db8::1", 8443)


async def test_trace_links_a_request_to_its_caller_statements_and_log(
    traced: Client, collector: Collector
) -> None:
    account = await register(traced)
    with logged() as events:
        response = await traced.patch(
            "/api/v1/users/me?token=canary",
            headers={**account.headers, **TRACEPARENT},
            json={"name": "Ada canary"},
        )
    assert response.status == 200
    request = await collector.find("PATCH /api/v1/users/me")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.parent_span_id.hex() == PARENT
    assert read_attributes(request) == {
        "http.request.method": "PATCH",
        "http.route": "/api/v1/users/me",
        "http.response.status_code": 200,
        "url.scheme": "https",
        "server.address": "app.example",
        "server.port": 8443,
        "shinkei.request_id": response.headers["X-Request-ID"],
    }
    assert response.headers["traceresponse"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    (line,) = [event for event in events if event["event"] == "request"]
    assert line["trace_id"] == TRACE
    assert line["span_id"] == request.span_id.hex()
    assert line["request_id"] == response.headers["X-Request-ID"]

    update = await collector.find("UPDATE users.change_profile")
    assert update.parent_span_id == request.span_id
    assert update.kind == Span.SPAN_KIND_CLIENT
    assert request.start_time_unix_nano <= update.start_time_unix_nano
    assert update.end_time_unix_nano <= request.end_time_unix_nano
    found = read_attributes(update)
    assert found["db.system.name"] == "postgresql"
    assert found["db.operation.name"] == "UPDATE"
    assert found["db.query.text"].startswith("update users set name = $2")
    ours = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    assert {span.name for span in ours} >= {
        "BEGIN users.change_profile",
        "SELECT users.change_profile",
        "COMMIT users.change_profile",
    }
    for secret in ("canary", account.profile["email"], account.profile["id"], PASSWORD):
        assert secret not in str(collector.spans)
    assert collector.resources[0]["service.name"] == "shinkei"


async def test_failed_span_carries_only_an_error_code(
    traced: Client, collector: Collector, conn: Any
) -> None:
    account = await register(traced)
    await conn.execute("alter table users rename column settings to hidden")
    response = await traced.get("/api/v1/users/me", headers={**account.headers, **TRACEPARENT})
    assert response.status == 500
    request = await collector.find("GET /api/v1/users/me")
    assert request.status.code == request.status.STATUS_CODE_ERROR
    assert read_attributes(request)["error.type"] == "internal_error"
    statement = next(span for span in collector.spans if span.parent_span_id == request.span_id)
    assert read_attributes(statement)["db.response.status_code"] == "42703"
    assert not any(span.events for span in collector.spans)
    # A client error is not an error of the service.
    response = await traced.get("/nothing/here", headers=TRACEPARENT)
    missing = await collector.find("GET")
    assert missing.status.code == missing.status.STATUS_CODE_UNSET
    assert "http.route" not in read_attributes(missing)
    assert "nothing" not in str(missing)


async def test_mail_span_belongs_to_the_request_that_triggered_it(
    traced: Client, collector: Collector
) -> None:
    account = await register(traced)
    with logged() as events:
        response = await traced.post(
            "/api/v1/auth/password/forgot",
            headers=TRACEPARENT,
            json={"email": account.profile["email"]},
        )
        sending = await collector.find("mail password_reset")
    request = await collector.find("POST /api/v1/auth/password/forgot")
    assert sending.parent_span_id == request.span_id
    (line,) = [event for event in events if event.get("template") == "password_reset"]
    assert line["event"] == "mail written"
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert line["trace_id"] == TRACE


async def test_probes_and_periodic_tasks_start_no_trace(
    traced: Client, collector: Collector, tmp_path: Path
) -> None:
    assert (await traced.get("/health/live", headers=TRACEPARENT)).status == 200
    assert (await traced.get("/health/ready/", headers=TRACEPARENT)).status == 200
    with logged() as events:
        account = await register(traced)
    # In between, the sender polled the outbox and deleted the mail.
    await next_mail(tmp_path / "data", account.profile["email"])
    trace_id = next(event for event in events if event["event"] == "request")["trace_id"]
    await collector.find("mail verify_email", trace_id)
    roots = {span.name for span in collector.spans if not span.parent_span_id}
    assert roots == {"POST /api/v1/auth/register"}
    assert not any(span.trace_id.hex() == TRACE for span in collector.spans)


async def test_caller_can_opt_out_of_tracing(traced: Client, collector: Collector) -> None:
    with logged() as events:
        unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        response = await traced.get("/api/v1/users/me", headers=unsampled)
        await traced.get("/api/v1/users/me", headers={"traceparent": "00-nonsense-\u2028-01"})
    assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert response.headers["traceresponse"].endswith("-00")
    without, new = [event for event in events if event["event"] == "request"]
    assert "trace_id" not in without
    await collector.find("GET /api/v1/users/me", new["trace_id"])
    assert not any(span.trace_id.hex() == TRACE for span in collector.spans)


async def test_sdk_can_be_disabled_by_its_own_variable(
    collector: Collector, start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    client = await start_app(traces=True)
    response = await client.get("/api/v1/users/me")
    assert response.status == 401
    assert "traceresponse" not in response.headers
    await client.close()
    assert not collector.spans


async def test_last_spans_are_sent_at_shutdown(
    collector: Collector, start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "FLUSH_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "accounts-eu")
    client = await start_app(traces=True)
    await client.get("/api/v1/users/me", headers=TRACEPARENT)
    assert not collector.spans
    await client.close()
    assert [span.name for span in collector.spans] == ["GET /api/v1/users/me"]
    assert collector.resources[0]["service.name"] == "accounts-eu"


@pytest.fixture(params=[False, True], ids=["no collector", "silent collector"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Yield the environment variables of an unreachable collector."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param:
            listener.listen()
        yield {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "0.3",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }


async def test_lost_spans_are_reported(
    unreachable: dict[str, str], start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is logged at once and the rest at shutdown."""
    for name, value in unreachable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(traces, "FLUSH_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(traces, "COMPLAIN_EVERY_S", 10 * DEADLINE_S)
    client = await start_app(traces=True)
    with logged() as events:

        def lost() -> list[int]:
            return [event["spans"] for event in events if event["event"] == "traces not sent"]

        assert (await client.get("/api/v1/users/me")).status == 401
        await eventually(lost)
        for _ in range(20):
            assert (await client.get("/api/v1/users/me")).status == 401
        await client.close()
    assert lost() == [1, 20]


@pytest.mark.asvs("16.5.2")
@pytest.mark.slow
def test_unreachable_collector_does_not_affect_requests(
    unreachable: dict[str, str], database: Database, tmp_path: Path
) -> None:
    with serving(tmp_path, TRACES="true", **url_of(database), **unreachable) as served:
        assert served.process.stderr is not None
        line = ""
        while "traces not sent" not in line:
            assert call(f"{served.url}/api/v1/users/me")[0] == 401
            line = served.process.stderr.readline()
        assert call(f"{served.url}/api/v1/users/me")[0] == 401
        assert served.ends_with(signal.SIGTERM) == 0


@pytest.mark.asvs("16.2.3")
def test_opentelemetry_is_not_imported_by_default(tmp_path: Path) -> None:
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings;"
        "import service.process.server, service.__main__, service.mail.sender; create_app(Settings());"
        "sys.exit([name for name in sys.modules if name.startswith('opentelemetry')] or 0)"
    )
    result = run_python(code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_other_protocols_are_rejected_at_startup() -> None:
    assert load_settings({"TRACES": "true"}).traces
    assert not load_settings({}).traces
    with pytest.raises(SettingsError, match="^OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf"):
        load_settings({"TRACES": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_missing_extra_is_reported_in_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; sys.argv[1:] = ['serve'];"
        "from service.__main__ import main; main()"
    )
    result = run_python(code, cwd=tmp_path, TRACES="true")
    assert result.returncode == 2
    assert result.stderr == (
        "shinkei: TRACES: expected the extra otel to be installed; in a checkout:"
        " pip install '.[otel]'\n"
    )
