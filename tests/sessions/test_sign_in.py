"""``POST /auth/login``."""

import asyncio
import contextlib
import json
from ipaddress import ip_network
from typing import Any

import pytest

from service.auth.passwords import HASHER, Hasher
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, pointers, register
from tests.support.hashing import busy
from tests.support.logbook import logged
from tests.support.raw_requests import media
from tests.support.waiting import eventually
from tests.support.wire import connected

LOGIN = "/api/v1/auth/login"


@pytest.mark.asvs("7.2.4")
async def test_login_returns_new_tokens(client: Client) -> None:
    account = await register(client)
    credentials = {"email": account.profile["email"].upper(), "password": PASSWORD}
    response = await client.post(LOGIN, json=credentials)
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    tokens = await response.json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert tokens["refresh_token"] != account.tokens["refresh_token"]
    me = await client.get("/api/v1/users/me", headers=bearer(tokens["access_token"]))
    assert await me.json() == account.profile


async def test_unknown_email_and_wrong_password_look_the_same(client: Client, conn: Any) -> None:
    account = await register(client)
    no_password = await register(client)
    await conn.execute(
        "update users set password_hash = null where id = $1", no_password.profile["id"]
    )
    problems = []
    for email, password in [
        (account.profile["email"], "not the password of it"),
        ("nobody@example.com", PASSWORD),
        (no_password.profile["email"], PASSWORD),
    ]:
        response = await client.post(LOGIN, json={"email": email, "password": password})
        problems.append(await assert_problem(response, 401, "invalid_credentials"))
    assert problems[0] == problems[1] == problems[2]


@pytest.mark.asvs("6.2.8")
async def test_password_matches_in_another_unicode_normal_form(client: Client) -> None:
    account = await register(client, password="ﬁve Å cafés, composed")
    decomposed = "five A\u030a cafe\u0301s, composed"
    credentials = {"email": account.profile["email"], "password": decomposed}
    assert (await client.post(LOGIN, json=credentials)).status == 200


@pytest.mark.parametrize("password", ["x" * 257, "x" * 60_000, "", "nul\0", None])
async def test_impossible_password_is_rejected_before_hashing(
    client: Client, password: Any
) -> None:
    response = await client.post(LOGIN, json={"email": "a@example.com", "password": password})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}


async def test_unreadable_password_hash_refuses_sign_in(client: Client, conn: Any) -> None:
    account = await register(client)
    await conn.execute("update users set password_hash = 'imported from elsewhere'")
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    await assert_problem(await client.post(LOGIN, json=credentials), 401, "invalid_credentials")


async def test_password_changed_during_sign_in_opens_no_session(
    start_app: StartApp, conn: Any
) -> None:
    """The hash must still be the account's after it was verified."""
    client = await start_app()
    account = await register(client)
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    assert client.app is not None
    hasher = client.app[HASHER]
    with busy(hasher):
        signing_in = asyncio.create_task(client.post(LOGIN, json=credentials))
        await eventually(lambda: hasher.queued == 1)
        await conn.execute("update users set password_hash = 'changed'")
    await assert_problem(await signing_in, 401, "invalid_credentials")
    assert await conn.fetchval("select count(*) from sessions") == 1


async def test_sign_ins_beyond_the_hash_queue_get_503(start_app: StartApp) -> None:
    client = await start_app(password_hash_queue=2)
    credentials = {"email": "nobody@example.com", "password": PASSWORD}
    assert client.app is not None
    with busy(client.app[HASHER]):
        asked = [asyncio.create_task(client.post(LOGIN, json=credentials)) for _ in range(12)]
        await eventually(lambda: sum(task.done() for task in asked) == 10)
        refused = [task.result() for task in asked if task.done()]
    for response in refused:
        await assert_problem(response, 503, "too_many_sign_ins")
    responses = await asyncio.gather(*asked)
    assert sorted(response.status for response in responses) == [401] * 2 + [503] * 10
    again = await client.post(LOGIN, json=credentials)
    assert again.status == 401, "the queue has room again"


async def test_password_is_rehashed_after_a_cost_change(start_app: StartApp, conn: Any) -> None:
    """Concurrent sign-ins all succeed, although one replaces the hash the others verify."""
    account = await register(await start_app())
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    stored = "select password_hash from users"
    assert "$m=8,t=1,p=1$" in await conn.fetchval(stored)
    client = await start_app(password_hash_iterations=3)
    wrong = {**credentials, "password": "not the password of it"}
    assert (await client.post(LOGIN, json=wrong)).status == 401
    assert "$m=8,t=1,p=1$" in await conn.fetchval(stored), "only the right password can be hashed"
    responses = await asyncio.gather(*(client.post(LOGIN, json=credentials) for _ in range(8)))
    assert {response.status for response in responses} == {200}
    rehashed = await conn.fetchval(stored)
    assert "$m=8,t=3,p=1$" in rehashed
    assert (await client.post(LOGIN, json=credentials)).status == 200
    assert await conn.fetchval(stored) == rehashed, "rehashed only once"
    me = await client.get("/api/v1/users/me", headers=account.headers)
    assert await me.json() == account.profile, "rehashing does not change the account"


class Crowd:
    """Sign-ins from several clients, and the order in which they were answered."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answered: list[tuple[str, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def _sign_in(self, source: str) -> None:
        response = await self.client.post(
            LOGIN,
            json={"email": "nobody@example.com", "password": PASSWORD},
            headers={"X-Forwarded-For": source},
        )
        self.answered.append((source, response.status))

    def sign_in(self, source: str, times: int = 1) -> None:
        self.tasks.extend(asyncio.create_task(self._sign_in(source)) for _ in range(times))


NOISY, QUIET = "192.0.2.1", "198.51.100.1"


async def start_crowd(start_app: StartApp, **settings: Any) -> tuple[Crowd, Hasher]:
    proxies = (ip_network("127.0.0.0/8"),)
    client = await start_app(trusted_proxies=proxies, password_hash_workers=1, **settings)
    assert client.app is not None
    return Crowd(client), client.app[HASHER]


async def test_clients_take_turns_in_the_hash_queue(start_app: StartApp) -> None:
    crowd, hasher = await start_crowd(start_app)
    with busy(hasher):
        crowd.sign_in(NOISY, 20)
        await eventually(lambda: hasher.queued == 20)
        crowd.sign_in(QUIET, 2)
        await eventually(lambda: hasher.queued == 22)
    await asyncio.gather(*crowd.tasks)
    last = max(place for place, (source, _) in enumerate(crowd.answered) if source == QUIET)
    assert last < 12, "not after the other client's 20"


async def test_client_that_fills_the_hash_queue_keeps_no_other_out(start_app: StartApp) -> None:
    crowd, hasher = await start_crowd(start_app, password_hash_queue=6)
    with busy(hasher):
        crowd.sign_in(NOISY, 6)
        await eventually(lambda: hasher.queued == 6)
        crowd.sign_in(QUIET)
        await eventually(lambda: crowd.answered == [(NOISY, 503)])
    await asyncio.gather(*crowd.tasks)
    assert sorted(crowd.answered) == [(NOISY, 401)] * 5 + [(NOISY, 503), (QUIET, 401)]


@pytest.mark.parametrize("others", [1, 2])
async def test_client_that_would_have_an_equal_share_displaces_no_other(
    start_app: StartApp, others: int
) -> None:
    crowd, hasher = await start_crowd(start_app, password_hash_queue=3 + others)
    with busy(hasher):
        crowd.sign_in(NOISY)
        await eventually(lambda: hasher.queued == 1)
        crowd.sign_in(NOISY, 2)
        crowd.sign_in(QUIET, others)
        await eventually(lambda: hasher.queued == 3 + others)
        crowd.sign_in(QUIET)
        await eventually(lambda: len(crowd.answered) == 1)
    await asyncio.gather(*crowd.tasks)
    assert crowd.answered[0] == (QUIET, 503)


async def disconnect_in_the_queue(client: Client, hasher: Hasher, times: int) -> None:
    """Sign in so many times at once, and disconnect while all of them wait for a hash."""
    body = json.dumps({"email": "nobody@example.com", "password": PASSWORD}).encode()
    with logged() as events:
        async with contextlib.AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(connected(client)) for _ in range(times)]
            for wire in wires:
                wire.writer.write(media("application/json", body))
            await eventually(lambda: hasher.queued == times)
            for wire in wires:
                wire.reset()
            await eventually(lambda: sum("status" in event for event in events) == times)
    assert {event["status"] for event in events if "status" in event} == {None}


async def test_cancelled_request_holds_its_thread_until_the_hash_ends(
    start_app: StartApp,
) -> None:
    """The client is gone, but the thread cannot be stopped."""
    crowd, hasher = await start_crowd(start_app, password_hash_queue=1)
    with busy(hasher):
        await disconnect_in_the_queue(crowd.client, hasher, 1)
        crowd.sign_in(QUIET)
        await eventually(lambda: crowd.answered == [(QUIET, 503)])
    await eventually(lambda: hasher.queued == 0)


async def test_cancelled_request_leaves_the_hash_queue(start_app: StartApp) -> None:
    crowd, hasher = await start_crowd(start_app)
    with busy(hasher):
        await disconnect_in_the_queue(crowd.client, hasher, 3)
        assert hasher.queued == 1, "only the one that has a thread is left"
