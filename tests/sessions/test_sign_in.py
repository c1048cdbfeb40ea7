"""``POST /auth/login``."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.auth.passwords import HASHER, Hasher
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, pointers, register
from tests.support.waiting import eventually

LOGIN = "/api/v1/auth/login"


@contextlib.contextmanager
def busy(hasher: Hasher) -> Iterator[None]:
    """Keep every thread that hashes while the block lasts."""
    go_on = threading.Event()
    for _ in range(hasher.workers):
        hasher.executor.submit(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


@pytest.mark.asvs("7.2.4")
async def test_login(client: Client) -> None:
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


async def test_unknown_address_and_wrong_password_look_the_same(client: Client, conn: Any) -> None:
    account = await register(client)
    no_password = await register(client)
    await conn.execute(
        "update users set password_hash = null where id = $1", no_password.profile["id"]
    )
    answers = []
    for email, password in [
        (account.profile["email"], "not the password of it"),
        ("nobody@example.com", PASSWORD),
        (no_password.profile["email"], PASSWORD),
    ]:
        response = await client.post(LOGIN, json={"email": email, "password": password})
        answers.append(await assert_problem(response, 401, "invalid_credentials"))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.asvs("6.2.8")
async def test_a_password_is_the_same_in_another_normal_form(client: Client) -> None:
    account = await register(client, password="ﬁve Å cafés, composed")
    decomposed = "five A\u030a cafe\u0301s, composed"
    credentials = {"email": account.profile["email"], "password": decomposed}
    assert (await client.post(LOGIN, json=credentials)).status == 200


@pytest.mark.parametrize("password", ["x" * 257, "x" * 60_000, "", "nul\0", None])
async def test_what_cannot_be_a_password_is_refused_before_hashing(
    client: Client, password: Any
) -> None:
    response = await client.post(LOGIN, json={"email": "a@example.com", "password": password})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}


async def test_a_hash_that_cannot_be_read_is_a_refusal(client: Client, conn: Any) -> None:
    account = await register(client)
    await conn.execute("update users set password_hash = 'imported from elsewhere'")
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    await assert_problem(await client.post(LOGIN, json=credentials), 401, "invalid_credentials")


async def test_a_password_changed_while_signing_in_opens_no_session(
    start_app: StartApp, conn: Any
) -> None:
    """The hash is read, verified for a while, and then must still be the account's."""
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


async def test_sign_ins_beyond_the_queue_are_told_to_come_back(start_app: StartApp) -> None:
    client = await start_app(password_hash_queue=2)
    credentials = {"email": "nobody@example.com", "password": PASSWORD}
    assert client.app is not None
    with busy(client.app[HASHER]):
        asked = [asyncio.create_task(client.post(LOGIN, json=credentials)) for _ in range(12)]
        await eventually(lambda: sum(task.done() for task in asked) == 10)
        refused = [task.result() for task in asked if task.done()]
    for answer in refused:
        await assert_problem(answer, 503, "too_many_sign_ins")
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status for answer in answers) == [401] * 2 + [503] * 10
    again = await client.post(LOGIN, json=credentials)
    assert again.status == 401, "and room is there again"


async def test_a_password_is_hashed_anew_when_the_cost_has_changed(
    start_app: StartApp, conn: Any
) -> None:
    """All who sign in at once do so, though one of them replaces the hash that they verify."""
    account = await register(await start_app())
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    stored = "select password_hash from users"
    assert "$m=8,t=1,p=1$" in await conn.fetchval(stored)
    client = await start_app(password_hash_iterations=3)
    wrong = {**credentials, "password": "not the password of it"}
    assert (await client.post(LOGIN, json=wrong)).status == 401
    assert "$m=8,t=1,p=1$" in await conn.fetchval(stored), "only the right password can be hashed"
    answers = await asyncio.gather(*(client.post(LOGIN, json=credentials) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    rehashed = await conn.fetchval(stored)
    assert "$m=8,t=3,p=1$" in rehashed
    assert (await client.post(LOGIN, json=credentials)).status == 200
    assert await conn.fetchval(stored) == rehashed, "and once is enough"
    me = await client.get("/api/v1/users/me", headers=account.headers)
    assert await me.json() == account.profile, "it is no change of the account"
