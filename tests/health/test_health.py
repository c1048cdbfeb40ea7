"""Health probes in normal operation and during failures."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.context import LIFECYCLE
from service.db import migrations
from service.embedded import server as embedded
from service.health import handlers as health
from service.health.handlers import HEALTH
from service.settings import Settings
from tests.support.clients import FAST, Client, StartApp, pool_of
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.probes import make_patient
from tests.support.processes import reserved_port
from tests.support.proxy import proxy_to
from tests.support.servers import running_server
from tests.support.waiting import DEADLINE_S, eventually

READY = ("/health", "/health/ready")


async def probe(client: Client, path: str) -> tuple[int, dict[str, Any]]:
    response = await client.get(path)
    assert response.content_type == "application/health+json"
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await response.json(content_type=None)
    return response.status, body


async def probe_until(client: Client, path: str, status: int) -> dict[str, Any]:
    async def body_if_so() -> dict[str, Any] | None:
        found, body = await probe(client, path)
        return body if found == status else None

    body: dict[str, Any] = await eventually(body_if_so)
    return body


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    make_patient(monkeypatch)


async def test_probes_pass_on_a_healthy_service(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def passes() -> bool:
        # Jobs that start with the service may briefly hold every connection.
        return bool((await probe(client, "/health"))[1]["status"] == "pass")

    await eventually(passes)
    monkeypatch.setattr(health, "CACHE_S", DEADLINE_S)
    for path in READY:
        status, body = await probe(client, path)
        assert (status, body["status"]) == (200, "pass")
        assert {part["status"] for checks in body["checks"].values() for part in checks} == {"pass"}
    for path in ("/health/live", "/health/startup"):
        assert await probe(client, path) == (200, {"status": "pass", "version": "0.1.0"})


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/health/startup"])
async def test_probes_accept_head(client: Client, path: str) -> None:
    head = await client.head(path)
    assert (head.status, await head.read()) == (200, b"")
    assert head.content_type == "application/health+json"


async def test_probes_reveal_no_secrets(client: Client, settings: Settings) -> None:
    text = str(await probe(client, "/health"))
    assert settings.database is not None
    for secret in (settings.database.address, settings.database.user, settings.database.name):
        assert secret not in text


async def test_probe_result_is_cached(
    client: Client, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.app is not None
    monkeypatch.setattr(health, "CACHE_S", DEADLINE_S)
    await conn.execute("delete from _yoyo_migration where migration_id like '0002%'")
    assert (await probe(client, "/health/ready"))[0] == 200
    client.app[HEALTH].checked_at -= DEADLINE_S
    assert (await probe(client, "/health/ready"))[0] == 503


async def test_concurrent_probes_share_one_check(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.app is not None
    monkeypatch.setattr(health, "CACHE_S", DEADLINE_S)
    client.app[HEALTH].checked_at = float("-inf")
    responses = await asyncio.gather(*(client.get("/health") for _ in range(50)))
    assert {response.status for response in responses} == {200}
    bodies = {await response.text() for response in responses}
    assert len(bodies) == 1, "the measured time would differ"


async def test_saturated_pool_is_a_warning(client: Client) -> None:
    pool = pool_of(client)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    status, body = await probe(client, "/health")
    assert (status, body["status"]) == (200, "warn")
    assert body["checks"]["pool:utilization"][0]["observedValue"] == 4
    for conn in held:
        await pool.release(conn)


async def test_service_with_pending_migrations_is_not_ready(client: Client, conn: Any) -> None:
    await conn.execute("delete from _yoyo_migration where migration_id like '0002%'")
    body = await probe_until(client, "/health/ready", 503)
    (check,) = body["checks"]["database:migrations"]
    assert (check["status"], check["observedValue"]) == ("fail", 1)
    assert (await probe(client, "/health/startup"))[0] == 200, "it has started once"


async def test_service_becomes_ready_once_its_database_is_migrated(
    start_app: StartApp, empty_database: Any
) -> None:
    client = await start_app(database=empty_database)
    assert (await probe(client, "/health/startup"))[0] == 503
    assert (await probe(client, "/health/live"))[0] == 200
    credentials = {"email": "a@example.com", "password": PASSWORD}
    response = await client.post("/api/v1/auth/login", json=credentials)
    await assert_problem(response, 500, "internal_error")
    await asyncio.to_thread(migrations.apply_pending, empty_database)
    await probe_until(client, "/health/startup", 200)
    await register(client)


async def test_stopping_service_is_not_ready(client: Client) -> None:
    assert client.app is not None
    client.app[LIFECYCLE].stopping = client.app[LIFECYCLE].draining = True
    status, body = await probe(client, "/health")
    assert (status, body["output"]) == (503, "stopping")
    response = await client.get("/health/live")
    assert response.status == 200
    assert response.headers["Connection"] == "close"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[embedded.Server]:
    """A private PostgreSQL that the test may stop and restart on the same port."""
    with reserved_port() as port, running_server(tmp_path, port=port) as server:
        yield server


@pytest.mark.asvs("16.5.2")
async def test_service_recovers_when_postgresql_restarts(
    start_app: StartApp, own_server: embedded.Server, tmp_path: Path
) -> None:
    client = await start_app(database=own_server.database)
    account = await register(client)
    port = own_server.database.hosts[0][1]

    await asyncio.to_thread(own_server.stop)
    for path in READY:
        body = await probe_until(client, path, 503)
        assert body["checks"]["database:responseTime"][0]["output"] == "cannot be reached"
    assert (await probe(client, "/health/live"))[0] == 200
    assert (await probe(client, "/health/startup"))[0] == 200
    me = await client.get("/api/v1/users/me", headers=account.headers)
    await assert_problem(me, 503, "database_unavailable")
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    login = await client.post("/api/v1/auth/login", json=credentials)
    await assert_problem(login, 503, "database_unavailable")

    again = await asyncio.to_thread(embedded.start, tmp_path, port=port, options=FAST)
    own_server.process = again.process
    for path in READY:
        await probe_until(client, path, 200)
    me = await client.get("/api/v1/users/me", headers=account.headers)
    assert (me.status, await me.json()) == (200, account.profile)


async def test_service_is_not_ready_while_the_database_hangs(
    start_app: StartApp, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in front of the database falls silent, then forwards again."""
    assert settings.database is not None
    async with proxy_to(settings.database) as (database, flowing):
        account = await register(await start_app())
        client = await start_app(database=database, db_command_timeout_s=1, db_acquire_timeout_s=1)
        flowing.clear()
        with monkeypatch.context() as impatient:
            impatient.setattr(health, "DEADLINE_S", 0.2)
            body = await probe_until(client, "/health", 503)
        assert "no response" in body["checks"]["database:responseTime"][0]["output"]
        me = await client.get("/api/v1/users/me", headers=account.headers)
        await assert_problem(me, 503, "database_unavailable")
        flowing.set()
        await probe_until(client, "/health", 200)

        async def is_served() -> bool:
            me = await client.get("/api/v1/users/me", headers=account.headers)
            return me.status == 200

        await eventually(is_served)
        await client.close()
