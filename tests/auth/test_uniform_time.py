"""Responses whose content and timing do not reveal the state of an account."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.auth.passwords import HASHER
from service.http import requests
from service.settings import Rate
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, register

AUTH = "/api/v1/auth"
# Longer than any of these requests takes, so that the pause decides the time.
PAUSE_S = 0.5
# uvloop's clock counts whole milliseconds.
RESOLUTION_S = 0.002
PER_REQUEST = {"Date", "X-Request-ID", "RateLimit"}


@pytest.fixture
def long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "UNIFORM_RESPONSE_S", PAUSE_S)


async def timed(request: Awaitable[ClientResponse]) -> tuple[ClientResponse, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await request, loop.time() - began


def headers_of(response: ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in PER_REQUEST}


REFUSED = {
    "unknown": PASSWORD,
    "wrong": "not the password of it",
    "suspended": PASSWORD,
    "deleted by an administrator": PASSWORD,
    "unverified": PASSWORD,
    "without a password": PASSWORD,
}


@pytest.fixture
async def strict(start_app: StartApp, conn: Any) -> Client:
    """A client of an application that has an account of each refused kind but the unknown."""
    client = await start_app(
        require_email_verification=True,
        # The tightest limit, so that the rate limit headers describe this one.
        throttle_sign_in_per_account=Rate(100, 3600),
    )
    for kind in REFUSED.keys() - {"unknown"}:
        body = {"email": email_of(kind), "password": PASSWORD}
        assert (await client.post(f"{AUTH}/register", json=body)).status == 202
    await conn.execute("update users set email_verified_at = now() where email !~ 'unverified'")
    await conn.execute("update users set status = 'suspended' where email ~ 'suspended'")
    await conn.execute(
        "update users set status = 'deleting', deleted_by_admin = true,"
        " purge_at = now() + interval '1 day' where email ~ 'deleted'"
    )
    await conn.execute("update users set password_hash = null where email ~ 'without'")
    return client


def email_of(kind: str) -> str:
    return f"{kind.replace(' ', '-')}@example.com"


async def refuse(client: Client, kind: str) -> ClientResponse:
    body = {"email": email_of(kind), "password": REFUSED[kind]}
    return await client.post(f"{AUTH}/login", json=body)


async def test_refused_sign_ins_all_get_the_same_response(strict: Client) -> None:
    responses = [await refuse(strict, kind) for kind in REFUSED]
    problems = [
        await assert_problem(response, 401, "invalid_credentials") for response in responses
    ]
    headers = [headers_of(response) for response in responses]
    assert problems == [problems[0]] * len(REFUSED)
    assert headers == [headers[0]] * len(REFUSED)


@pytest.mark.parametrize("kind", REFUSED)
async def test_refused_sign_ins_all_verify_one_hash_of_the_same_cost(
    strict: Client, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert strict.app is not None
    hasher = strict.app[HASHER]
    hashed: list[float] = []
    verified: list[str] = []
    verify = type(hasher.argon2id).verify

    def note(argon2id: Any, password_hash: str, password: str) -> Any:
        verified.append(password_hash)
        return verify(argon2id, password_hash, password)

    hasher.timers.append(lambda waited_s, took_s: hashed.append(took_s))
    monkeypatch.setattr(type(hasher.argon2id), "verify", note)
    await assert_problem(await refuse(strict, kind), 401, "invalid_credentials")
    assert len(hashed) == 1
    (password_hash,) = verified
    assert not hasher.argon2id.check_needs_rehash(password_hash)


Ask = Callable[[Client, str], Awaitable[ClientResponse]]


def ask_for(path: str) -> Ask:
    return lambda client, email: client.post(f"{AUTH}/{path}", json={"email": email})


@pytest.mark.usefixtures("long_pause")
@pytest.mark.parametrize("path", ["password/forgot", "email/verify/resend"])
@pytest.mark.parametrize("known", [True, False])
async def test_link_requests_take_the_same_time_for_any_email(
    client: Client, path: str, known: bool
) -> None:
    account = await register(client)
    email = account.profile["email"] if known else "nobody@example.com"
    response, took_s = await timed(ask_for(path)(client, email))
    assert response.status == 202
    assert took_s >= PAUSE_S - RESOLUTION_S


@pytest.mark.usefixtures("long_pause")
@pytest.mark.parametrize("taken", [True, False])
async def test_registration_with_verification_takes_the_same_time_for_any_email(
    strict: Client, taken: bool
) -> None:
    body = {"email": email_of("wrong") if taken else "new@example.com", "password": PASSWORD}
    response, took_s = await timed(strict.post(f"{AUTH}/register", json=body))
    assert (response.status, await response.read()) == (202, b"")
    assert took_s >= PAUSE_S - RESOLUTION_S


@pytest.mark.usefixtures("long_pause")
@pytest.mark.parametrize("taken", [True, False])
async def test_email_change_takes_the_same_time_for_any_email(client: Client, taken: bool) -> None:
    account, other = await register(client), await register(client)
    email = other.profile["email"] if taken else "new@example.com"
    body = {"email": email, "password": account.password}
    request = client.post("/api/v1/users/me/email", json=body, headers=account.headers)
    response, took_s = await timed(request)
    assert (response.status, await response.read()) == (202, b"")
    assert took_s >= PAUSE_S - RESOLUTION_S
