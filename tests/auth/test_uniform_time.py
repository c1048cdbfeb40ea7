"""Responses whose content and timing do not reveal the state of an account."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError

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
    "with a second factor": "not the password of it",
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
    await conn.execute("update users set has_second_factor = true where email ~ 'factor'")
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


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory times iterations of every argon2 hash that is computed."""
    done: list[int] = []
    verify, compute = PasswordHasher.verify, PasswordHasher.hash

    def note_verify(argon2id: Any, password_hash: Any, password: Any) -> Any:
        with contextlib.suppress(InvalidHashError):
            cost = extract_parameters(password_hash)
            done.append(cost.memory_cost * cost.time_cost)
        return verify(argon2id, password_hash, password)

    def note_compute(argon2id: Any, password: Any, **salt: Any) -> Any:
        done.append(argon2id.memory_cost * argon2id.time_cost)
        return compute(argon2id, password, **salt)

    monkeypatch.setattr(PasswordHasher, "verify", note_verify)
    monkeypatch.setattr(PasswordHasher, "hash", note_compute)
    return done


async def work_of_refusals(client: Client, conn: Any, work: list[int]) -> dict[str, int]:
    """Return the work of each refused sign-in, in KiB times iterations."""
    await conn.execute("update users set email_verified_at = now() where email !~ 'unverified'")
    found = {}
    for kind in REFUSED:
        work.clear()
        await assert_problem(await refuse(client, kind), 401, "invalid_credentials")
        found[kind] = sum(work)
    return found


@pytest.mark.parametrize(("memory_kib", "iterations"), [(8, 3), (64, 1), (64, 2)])
async def test_refusals_take_the_same_work_after_the_hash_cost_was_raised(
    strict: Client,
    start_app: StartApp,
    conn: Any,
    work: list[int],
    memory_kib: int,
    iterations: int,
) -> None:
    client = await start_app(
        require_email_verification=True,
        password_hash_memory_kib=memory_kib,
        password_hash_iterations=iterations,
    )
    found = await work_of_refusals(client, conn, work)
    assert found == dict.fromkeys(REFUSED, memory_kib * iterations)


async def test_refusals_take_the_work_of_the_dearest_hash_after_the_cost_was_lowered(
    start_app: StartApp, conn: Any, work: list[int]
) -> None:
    dear = await start_app(password_hash_memory_kib=32, password_hash_iterations=2)
    await register(dear, email=email_of("wrong"))
    client = await start_app(password_hash_memory_kib=16)
    await refuse(client, "wrong")
    for kind in ("unknown", "wrong"):
        work.clear()
        await assert_problem(await refuse(client, kind), 401, "invalid_credentials")
        assert sum(work) == 64


async def test_unreadable_hash_is_refused_with_the_same_work(
    strict: Client, conn: Any, work: list[int]
) -> None:
    await conn.execute("update users set password_hash = 'imported from elsewhere'")
    assert set((await work_of_refusals(strict, conn, work)).values()) == {8}


async def test_right_password_takes_no_more_work_than_its_hashes(
    start_app: StartApp, work: list[int]
) -> None:
    account = await register(await start_app())
    client = await start_app(password_hash_iterations=3)
    work.clear()
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    assert (await client.post(f"{AUTH}/login", json=credentials)).status == 200
    assert work == [8, 24], "the old hash and the new one"


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
