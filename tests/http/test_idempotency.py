"""Idempotency-Key: done once, answered the same."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, register

REGISTER = "/api/v1/auth/register"
PASSWORDS = "/api/v1/users/me/password"
BODY = {"email": "ada@example.com", "password": PASSWORD}
KEY = {"Idempotency-Key": "a-key-of-the-client"}


async def test_the_same_request_gets_the_same_answer(client: Client, conn: Any) -> None:
    first = await client.post(REGISTER, json=BODY, headers=KEY)
    again = await client.post(REGISTER, json=BODY, headers=KEY)
    assert (first.status, again.status) == (201, 201)
    assert await again.read() == await first.read()
    assert again.headers["Cache-Control"] == "no-store"
    tokens = await again.json()
    me = await client.get("/api/v1/users/me", headers=bearer(tokens["access_token"]))
    assert me.status == 200
    assert await conn.fetchval("select count(*) from users") == 1
    assert await conn.fetchval("select count(*) from sessions") == 1


async def test_of_twenty_at_once_one_is_done(client: Client, conn: Any) -> None:
    answers = await asyncio.gather(
        *(client.post(REGISTER, json=BODY, headers=KEY) for _ in range(20))
    )
    done = [answer for answer in answers if answer.status == 201]
    assert done
    assert len({await answer.text() for answer in done}) == 1
    for answer in answers:
        if answer.status != 201:
            await assert_problem(answer, 409, "idempotency_key_in_use")
    assert await conn.fetchval("select count(*) from users") == 1


async def test_another_request_under_the_same_key_is_refused(client: Client) -> None:
    await client.post(REGISTER, json=BODY, headers=KEY)
    other = {**BODY, "email": "grace@example.com"}
    response = await client.post(REGISTER, json=other, headers=KEY)
    await assert_problem(response, 422, "idempotency_key_reused")
    forgot = await client.post(
        "/api/v1/auth/password/forgot", json={"email": "ada@example.com"}, headers=KEY
    )
    await assert_problem(forgot, 422, "idempotency_key_reused")


@pytest.mark.asvs("8.2.2")
async def test_keys_of_one_caller_are_invisible_to_another(client: Client) -> None:
    accounts = [await register(client) for _ in range(2)]
    for number, account in enumerate(accounts):
        response = await client.post(
            "/api/v1/users/me/email",
            json={"email": f"new{number}@example.com", "password": PASSWORD},
            headers={**account.headers, **KEY},
        )
        assert response.status == 202


async def test_a_problem_is_not_kept(client: Client) -> None:
    await register(client, email=BODY["email"])
    taken = await client.post(REGISTER, json=BODY, headers=KEY)
    await assert_problem(taken, 409, "email_taken")
    other = {**BODY, "email": "grace@example.com"}
    assert (await client.post(REGISTER, json=other, headers=KEY)).status == 201


async def test_a_key_is_forgotten_after_a_day(client: Client, conn: Any) -> None:
    await client.post(REGISTER, json=BODY, headers=KEY)
    await conn.execute("update idempotency_keys set created_at = created_at - interval '25 hours'")
    response = await client.post(REGISTER, json=BODY, headers=KEY)
    await assert_problem(response, 409, "email_taken")


async def test_answers_are_stored_sealed(client: Client, conn: Any) -> None:
    response = await client.post(REGISTER, json=BODY, headers=KEY)
    tokens = await response.json()
    stored = await conn.fetchval("select answer from idempotency_keys")
    assert tokens["refresh_token"].encode() not in stored


async def test_an_answer_of_before_another_secret_key(start_app: StartApp, conn: Any) -> None:
    """It cannot be read, and what it tells of is not done again."""
    before = await start_app()
    assert (await before.post(REGISTER, json=BODY, headers=KEY)).status == 201
    owner = await register(before)
    # Its success undoes what it checks, so that it looks for an answer before the rest.
    change = {"current_password": PASSWORD, "password": "a new phrase, for the road"}
    changed = await before.post(PASSWORDS, json=change, headers={**owner.headers, **KEY})
    assert changed.status == 204
    await conn.execute("delete from signing_keys")  # or the other key would not start
    after = await start_app(secret_key="another secret key, as long as one has to be")
    response = await after.post(REGISTER, json=BODY, headers=KEY)
    await assert_problem(response, 422, "idempotent_answer_lost")
    assert await conn.fetchval("select count(*) from users") == 2

    sign_in = {"email": owner.profile["email"], "password": change["password"]}
    tokens = await (await after.post("/api/v1/auth/login", json=sign_in)).json()
    headers = {**bearer(tokens["access_token"]), **KEY}
    await assert_problem(
        await after.post(PASSWORDS, json=change, headers=headers), 422, "idempotent_answer_lost"
    )
    assert (await after.post("/api/v1/auth/login", json=sign_in)).status == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "é"])
async def test_what_is_no_key(client: Client, key: str) -> None:
    response = await client.post(REGISTER, json=BODY, headers={"Idempotency-Key": key})
    await assert_problem(response, 400, "invalid_idempotency_key")
