"""Response times reveal nothing about an email: every response takes the same minimum time."""

import dataclasses
import time
from typing import Any

import pytest
from aiohttp import ClientResponse
from prometheus_client import CollectorRegistry
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.http import requests
from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, register
from tests.support.steps import WRONG, change_email, forgot, resend, send

LEAST_S = 0.5
# The event loop's clock is coarser than time.monotonic().
TICKS_S = 0.01


async def ask(client: Client, flow: str, asker: Account, email: str) -> ClientResponse:
    match flow:
        case "register":
            body = {"email": email, "password": PASSWORD}
            return await send(client, "POST", "/auth/register", body)
        case "forgot":
            return await forgot(client, email)
        case "resend":
            return await resend(client, email)
        case _:
            return await change_email(client, asker, asker.password, to=email)


@pytest.mark.parametrize("state", ["unknown", "registered", "verified"])
@pytest.mark.parametrize("flow", ["register", "forgot", "resend", "change of email"])
async def test_no_response_comes_early(
    start_app: StartApp,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
    flow: str,
    state: str,
) -> None:
    asker = await register(await start_app())
    await conn.execute("update users set email_verified_at = now()")
    client = await start_app(require_email_verification=True)
    if state != "unknown":
        body = {"email": "ada@example.com", "password": PASSWORD}
        assert (await send(client, "POST", "/auth/register", body)).status == 202
    if state == "verified":
        await conn.execute("update users set email_verified_at = now()")
    monkeypatch.setattr(requests, "UNIFORM_RESPONSE_S", LEAST_S)
    started = time.monotonic()
    response = await ask(client, flow, asker, "ada@example.com")
    assert time.monotonic() - started >= LEAST_S - TICKS_S
    assert (response.status, await response.read()) == (202, b"")


@pytest.mark.parametrize("why", ["wrong", "unknown", "suspended", "unverified"])
async def test_refused_sign_in_computes_one_hash(
    settings: Settings, aiohttp_client: AiohttpClient, conn: Any, why: str
) -> None:
    """Zero or two hashes would take a different time."""
    registry = CollectorRegistry()
    changed = dataclasses.replace(settings, require_email_verification=True)
    client = await aiohttp_client(create_app(changed, registry))
    body = {"email": "ada@example.com", "password": PASSWORD}
    if why != "unknown":
        assert (await send(client, "POST", "/auth/register", body)).status == 202
    if why != "unverified":
        await conn.execute("update users set email_verified_at = now()")
    if why == "suspended":
        await conn.execute("update users set status = 'suspended'")
    if why == "wrong":
        body["password"] = WRONG

    def hashes() -> float:
        name = "shinkei_password_hash_duration_seconds_count"
        return registry.get_sample_value(name) or 0

    before = hashes()
    assert (await send(client, "POST", "/auth/login", body)).status == 401
    assert hashes() - before == 1
