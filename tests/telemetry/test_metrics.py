"""Metrics: what updates them, bounded series, and their use in the dashboard."""

import asyncio
import dataclasses
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.auth.passwords import HASHER
from service.health import sampling
from service.process.exporter import DIRECTORY_VARIABLE, exporting
from service.settings import Rate, Settings
from service.telemetry.access_log import CLIENTS_MISTAKES
from service.telemetry.metrics import Counted
from tests.support import described
from tests.support.clients import Client, pool_of
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.factors import add_totp, ask_for_challenge, log_in, sign_in_with
from tests.support.logbook import logged
from tests.support.processes import environment, reserved_port, run_command
from tests.support.proxy import proxying
from tests.support.scrape import metrics_at
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
LOGIN = "/api/v1/auth/login"
ORIGIN = "https://app.example.com"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def client(
    settings: Settings, registry: CollectorRegistry, aiohttp_client: AiohttpClient
) -> Client:
    """Client of an application with metrics enabled."""
    changed = dataclasses.replace(
        settings, throttle_sign_in_per_account=Rate(3, 3600), cors_origins=frozenset({ORIGIN})
    )
    app = create_app(changed, registry)
    return await aiohttp_client(app, middlewares=described.checks_of(changed))


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[str, ...]]]:
    """Return the request series that Prometheus would store."""
    return {
        (sample.name, tuple(sample.labels.values()))
        for family in registry.collect()
        for sample in family.samples
        if family.name.startswith("shinkei_http")
    }


async def test_requests_are_counted_by_route_method_and_status(
    client: Client, registry: CollectorRegistry
) -> None:
    account = await register(client)
    for path in ("/api/v1/users/me", "/api/v1/users/me/", "/api/v1/users/me"):
        assert (await client.get(path, headers=account.headers)).status == 200
    assert (await client.get("/api/v1/users/me")).status == 401
    labels = {"method": "GET", "route": "/api/v1/users/me"}

    def requests(status: str) -> float | None:
        return registry.get_sample_value(
            "shinkei_http_requests_total", {**labels, "status": status}
        )

    assert (requests("200"), requests("401")) == (3, 1)
    count = "shinkei_http_request_duration_seconds_count"
    assert registry.get_sample_value(count, labels) == 4
    duration = "shinkei_db_query_duration_seconds_count"
    assert registry.get_sample_value(duration, {"query": "users.register"}) == 1
    query = {"query": "sessions.find_signed_in"}
    assert registry.get_sample_value("shinkei_db_query_duration_seconds_count", query) == 3
    await eventually(lambda: value(registry, "shinkei_http_requests_in_flight") == 0)


async def test_clients_cannot_create_series(client: Client, registry: CollectorRegistry) -> None:
    await client.get("/nothing")
    await client.request("PROPFIND", "/nothing")
    before = series(registry)
    for number in range(20):
        await client.get(f"/nothing/{number}")
        await client.get(f"/api/v1/users/{number}")
    for method in ("PROPFIND", "REPORT", "LINK", "SUBSCRIBE"):
        await client.request(method, "/nothing")
    assert series(registry) == before
    requests = "shinkei_http_requests_total"
    unmatched = {"route": "unmatched"}
    assert value(registry, requests, method="GET", status="404", **unmatched) == 41
    assert value(registry, requests, method="other", status="501", **unmatched) == 5


async def test_unmet_expectation_of_an_unknown_path_has_no_route(
    client: Client, registry: CollectorRegistry
) -> None:
    with logged() as events:
        for method, path in (("GET", "/nothing"), ("DELETE", LOGIN)):
            response = await client.request(method, path, headers={"Expect": "x"})
            assert response.status == 417
    assert [event["route"] for event in events] == [None, None]
    counted = {"method": "DELETE", "route": "unmatched", "status": "417"}
    assert value(registry, "shinkei_http_requests_total", **counted) == 1


async def test_root_is_counted_and_logged_as_a_route(
    client: Client, registry: CollectorRegistry
) -> None:
    with logged() as events:
        await client.get("/")
    assert [event["route"] for event in events] == ["/"]
    counted = {"method": "GET", "route": "/", "status": "200"}
    assert value(registry, "shinkei_http_requests_total", **counted) == 1


async def test_preflights_are_counted_separately_from_unmatched_requests(
    client: Client, registry: CollectorRegistry
) -> None:
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    statuses = [
        (await client.options(path, headers=headers)).status
        for path, headers in (
            (LOGIN, {}),
            (LOGIN, asks),
            ("/api/v1/users/me", asks),
            (LOGIN, {**asks, "Origin": "https://evil.example"}),
        )
    ]
    assert statuses == [405, 204, 204, 403]
    counted = {
        (route, status): value(
            registry,
            "shinkei_http_requests_total",
            method="OPTIONS",
            route=route,
            status=status,
        )
        for route in ("preflight", "unmatched")
        for status in ("204", "403", "405")
    }
    assert {key: number for key, number in counted.items() if number is not None} == {
        ("preflight", "204"): 2,
        ("preflight", "403"): 1,
        ("unmatched", "405"): 1,
    }
    count = "shinkei_http_request_duration_seconds_count"
    assert value(registry, count, method="OPTIONS", route="preflight") == 3


@pytest.fixture
def frequent_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.health.sampling.BACKLOGS_EVERY_S", 0.05)


@pytest.mark.usefixtures("frequent_samples")
async def test_time_since_the_oldest_purge_was_due_is_measured(
    client: Client, registry: CollectorRegistry, conn: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await register(client)
    age = "shinkei_purge_overdue_seconds"
    assert value(registry, age) == 0
    await conn.execute(
        "update users set status = 'deleting', purge_at = now() - interval '2 hours'"
    )
    await eventually(lambda: 7200 <= (value(registry, age) or 0) < 8000)


async def test_sign_ins_are_counted_by_method(client: Client, registry: CollectorRegistry) -> None:
    account = await register(client)
    assert (await log_in(client, account)).status == 200
    app = await add_totp(client, account.headers)
    await ask_for_challenge(client, account)
    await sign_in_with(client, account, code=app.code(1))
    assert app.recovery_codes is not None
    await sign_in_with(client, account, recovery_code=app.recovery_codes[0])
    counted = {
        method: value(registry, "shinkei_sign_in_methods_total", method=method)
        for method in ("pwd", "otp", "rec", "hwk", "swk")
    }
    assert counted == {"pwd": 3, "otp": 1, "rec": 1, "hwk": 0, "swk": 0}
    name = "shinkei_sign_ins_total"
    assert value(registry, name, outcome="second_factor_required") == 3
    assert value(registry, name, outcome="success") == 3


async def test_sign_ins_are_counted_by_outcome(
    client: Client, registry: CollectorRegistry, conn: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    account = await register(client)
    body = {"email": account.profile["email"], "password": PASSWORD}
    key = {"Idempotency-Key": "a-key-of-this-test"}
    other = {"email": "other@example.com", "password": PASSWORD}
    for _ in range(2):
        created = await client.post("/api/v1/auth/register", json=other, headers=key)
        assert created.status == 201
    taken = await client.post("/api/v1/auth/register", json=other)
    await assert_problem(taken, 409, "email_taken")
    assert (await client.post(LOGIN, json=body)).status == 200
    await conn.execute("update users set status = 'suspended' where email = $1", body["email"])
    await assert_problem(await client.post(LOGIN, json=body), 401, "invalid_credentials")
    await conn.execute("update users set status = 'active'")
    body["password"] = "another passphrase altogether"
    await assert_problem(await client.post(LOGIN, json=body), 401, "invalid_credentials")
    emails = ("nobody@example.com", body["email"], body["email"])
    statuses = [(await client.post(LOGIN, json={**body, "email": one})).status for one in emails]
    assert statuses == [401, 401, 429]

    def sign_ins(outcome: str) -> float | None:
        return value(registry, "shinkei_sign_ins_total", outcome=outcome)

    assert sign_ins("success") == 1
    assert sign_ins("refused") == 1
    assert sign_ins("wrong") == 3
    assert sign_ins("throttled") == 1
    throttled = "shinkei_throttled_requests_total"
    assert value(registry, throttled, policy="sign-in-per-account") == 1
    assert value(registry, "shinkei_registrations_total") == 2
    assert value(registry, "shinkei_idempotent_replays_total") == 1
    assert value(registry, "shinkei_password_hash_duration_seconds_count") == (
        # Registrations, without the replay, plus sign-ins that were not throttled.
        3 + 5
    )


async def test_waits_for_connections_are_measured_in_seconds(
    client: Client, registry: CollectorRegistry
) -> None:
    account = await register(client)
    waited = "shinkei_db_acquire_wait_seconds_sum"
    before_s, started = value(registry, waited) or 0, time.monotonic()
    for _ in range(50):
        assert (await client.get("/api/v1/users/me", headers=account.headers)).status == 200
    # One after another, with background tasks beside them at most.
    assert (value(registry, waited) or 0) - before_s < 2 * (time.monotonic() - started)
    assert (value(registry, "shinkei_db_acquire_wait_seconds_count") or 0) >= 50


async def test_gauges_show_busy_resources(client: Client, registry: CollectorRegistry) -> None:
    assert client.app is not None
    pool, hasher = pool_of(client), client.app[HASHER]
    account = await register(client)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    waiting = asyncio.create_task(client.get("/api/v1/users/me", headers=account.headers))
    assert value(registry, "shinkei_db_pool_connections_max") == 4
    await eventually(lambda: value(registry, "shinkei_db_pool_connections_in_use") == 4)
    await eventually(lambda: (value(registry, "shinkei_db_pool_waiting") or 0) >= 1)
    await eventually(lambda: (value(registry, "shinkei_http_requests_in_flight") or 0) >= 1)
    for conn in held:
        await pool.release(conn)
    assert (await waiting).status == 200

    go_on = threading.Event()
    for _ in range(hasher.workers):
        hasher.executor.submit(go_on.wait)
    signing_up = [asyncio.create_task(register(client)) for _ in range(hasher.workers + 2)]
    try:
        await eventually(lambda: value(registry, "shinkei_password_hashes_queued") == 2)
    finally:
        go_on.set()
    await asyncio.gather(*signing_up)
    await eventually(lambda: value(registry, "shinkei_password_hashes_queued") == 0)
    # Mail for the new accounts may still be waiting for a connection.
    await eventually(lambda: value(registry, "shinkei_db_pool_waiting") == 0)


async def test_gauge_shows_connections_being_opened(
    settings: Settings, registry: CollectorRegistry, aiohttp_client: AiohttpClient
) -> None:
    assert settings.database is not None
    async with proxying(settings.database) as proxy:
        app = create_app(dataclasses.replace(settings, database=proxy.database), registry)
        client = await aiohttp_client(app)
        proxy.flowing.clear()
        proxy.reset_all()
        # The pool replaces lost connections by itself.
        await eventually(lambda: value(registry, "shinkei_db_pool_connecting"))
        proxy.flowing.set()
        await eventually(lambda: value(registry, "shinkei_db_pool_connecting") == 0)
        await client.close()


async def test_last_counts_are_kept_at_shutdown(
    client: Client, registry: CollectorRegistry
) -> None:
    account = await register(client)
    for _ in range(3):
        assert (await client.get("/api/v1/users/me", headers=account.headers)).status == 200
    await client.close()
    assert value(registry, "shinkei_token_cache_total", outcome="miss") == 1
    assert value(registry, "shinkei_token_cache_total", outcome="hit") == 2


async def test_metrics_are_not_on_the_public_port(client: Client) -> None:
    await assert_problem(await client.get("/metrics"), 404, "not_found")


def test_metrics_library_is_not_imported_by_default() -> None:
    code = (
        "import sys, service.__main__, service.app, service.settings;"
        "from service.process.exporter import exporting;"
        "exporting(service.settings.Settings()).__enter__();"
        "print([name for name in sys.modules if name == 'prometheus_client'])"
    )
    result = run_command(sys.executable, "-c", code)
    assert result.stdout == "[]\n"


def test_multiprocess_directory_of_another_program_is_ignored(tmp_path: Path) -> None:
    code = (
        "from service.process.exporter import exporting; from service.settings import Settings\n"
        "import sys\n"
        "with exporting(Settings(metrics_port=int(sys.argv[1]))) as exporter:\n"
        "    from prometheus_client import Counter\n"
        "    Counter('some', 'Some', registry=exporter.registry).inc()\n"
        "    print(exporter.registry.get_sample_value('some_total'))"
    )
    for variable in (DIRECTORY_VARIABLE, DIRECTORY_VARIABLE.lower()):
        env = environment(**{variable: str(tmp_path / "nothing")})
        with reserved_port() as port:
            ran = run_command(sys.executable, "-c", code, str(port), env=env)
        assert (ran.stdout, ran.stderr) == ("1.0\n", "")


async def test_dashboard_and_alerts_use_only_exported_metrics(
    settings: Settings, aiohttp_client: AiohttpClient
) -> None:
    with (
        reserved_port() as port,
        exporting(dataclasses.replace(settings, metrics_port=port)) as exporter,
    ):
        assert exporter is not None
        app = create_app(settings, exporter.registry)
        client = await aiohttp_client(app, middlewares=described.checks_of(settings))
        await register(client)
        samples = await asyncio.to_thread(metrics_at, port)
    exported = {name for name, _ in samples}
    assert "shinkei_process_open_fds" in exported
    for file in ("grafana/dashboards/shinkei.json", "prometheus/alerts.yaml"):
        named = set(re.findall(r"\bshinkei_\w+", (ROOT / "deploy" / file).read_text()))
        assert named
        assert named <= exported


@pytest.mark.parametrize("file", ["grafana/dashboards/shinkei.json", "prometheus/alerts.yaml"])
def test_alerts_and_dashboard_count_the_same_failures_as_the_log(file: str) -> None:
    text = (ROOT / "deploy" / file).read_text().replace("\\", "")
    excepted = "|".join(map(str, CLIENTS_MISTAKES))
    assert set(re.findall(r'status=~"5\.\.",\s*status(\S+?)[,}]', text)) == {f'!~"{excepted}"'}


async def test_metrics_of_the_outbox_return_after_its_table_was_missing(
    registry: CollectorRegistry,
    conn: Any,
    settings: Settings,
    aiohttp_client: AiohttpClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "BACKLOGS_EVERY_S", 0.05)
    await conn.execute("alter table mail_outbox rename to mail_elsewhere")
    with logged() as events:
        await aiohttp_client(create_app(settings, registry))
        await eventually(lambda: any(event["event"] == "metrics not sampled" for event in events))
    await conn.execute("alter table mail_elsewhere rename to mail_outbox")
    await conn.execute(
        "insert into mail_outbox (id, message, next_attempt_at, expires_at)"
        " values (gen_random_uuid(), '', 'infinity', 'infinity')"
    )
    await eventually(lambda: value(registry, "shinkei_mail_outbox_mails") == 1)


def test_every_counter_is_documented() -> None:
    document = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)_total`", document))
    assert set(get_args(Counted)) <= documented
