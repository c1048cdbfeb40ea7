"""Idempotency-Key: a repeated request runs once and gets the same response."""

import asyncio
import gzip
import json
import re
import uuid
from ipaddress import ip_network
from typing import Any

import pytest

from service.auth.passwords import HASHER
from service.http.descriptions import description_of
from service.http.route import Route
from service.routes import ROUTES
from service.settings import Rate
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, register, register_as
from tests.support.factors import add_totp

REGISTER = "/api/v1/auth/register"
PASSWORDS = "/api/v1/users/me/password"
BODY = {"email": "ada@example.com", "password": PASSWORD}
KEY = {"Idempotency-Key": "a-key-of-the-client"}


async def test_repeated_request_gets_the_same_response(client: Client, conn: Any) -> None:
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


async def test_only_one_of_twenty_concurrent_requests_runs(client: Client, conn: Any) -> None:
    responses = await asyncio.gather(
        *(client.post(REGISTER, json=BODY, headers=KEY) for _ in range(20))
    )
    done = [response for response in responses if response.status == 201]
    assert done
    assert len({await response.text() for response in done}) == 1
    for response in responses:
        if response.status != 201:
            await assert_problem(response, 409, "idempotency_key_in_use")
    assert await conn.fetchval("select count(*) from users") == 1


async def test_different_request_with_the_same_key_is_rejected(client: Client) -> None:
    await client.post(REGISTER, json=BODY, headers=KEY)
    other = {**BODY, "email": "grace@example.com"}
    response = await client.post(REGISTER, json=other, headers=KEY)
    await assert_problem(response, 422, "idempotency_key_reused")
    forgot = await client.post(
        "/api/v1/auth/password/forgot", json={"email": "ada@example.com"}, headers=KEY
    )
    await assert_problem(forgot, 422, "idempotency_key_reused")


async def test_repeated_request_may_be_compressed_differently(client: Client) -> None:
    responses = [
        await client.post(
            REGISTER,
            data=gzip.compress(json.dumps(BODY).encode(), level),
            headers={**KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"},
        )
        for level in (1, 9)
    ]
    assert [response.status for response in responses] == [201, 201]


@pytest.mark.asvs("8.2.2")
async def test_callers_can_use_the_same_key_independently(client: Client) -> None:
    accounts = [await register(client) for _ in range(2)]
    for number, account in enumerate(accounts):
        response = await client.post(
            "/api/v1/users/me/email",
            json={"email": f"new{number}@example.com", "password": PASSWORD},
            headers={**account.headers, **KEY},
        )
        assert response.status == 202


async def test_networks_can_use_the_same_key_independently(start_app: StartApp) -> None:
    client = await start_app(trusted_proxies=(ip_network("127.0.0.0/8"),))
    for number in range(2):
        response = await client.post(
            "/api/v1/auth/password/forgot",
            json={"email": f"ada{number}@example.com"},
            headers={**KEY, "X-Forwarded-For": f"192.0.2.{number}"},
        )
        assert response.status == 202


async def test_problem_response_is_not_stored(client: Client) -> None:
    await register(client, email=BODY["email"])
    taken = await client.post(REGISTER, json=BODY, headers=KEY)
    await assert_problem(taken, 409, "email_taken")
    other = {**BODY, "email": "grace@example.com"}
    assert (await client.post(REGISTER, json=other, headers=KEY)).status == 201


async def test_key_expires_after_a_day(client: Client, conn: Any) -> None:
    await client.post(REGISTER, json=BODY, headers=KEY)
    age = "update idempotency_keys set created_at = created_at - interval"
    await conn.execute(f"{age} '23 hours 30 minutes'")
    assert (await client.post(REGISTER, json=BODY, headers=KEY)).status == 201
    await conn.execute(f"{age} '31 minutes'")
    response = await client.post(REGISTER, json=BODY, headers=KEY)
    await assert_problem(response, 409, "email_taken")


async def test_responses_are_stored_sealed(client: Client, conn: Any) -> None:
    response = await client.post(REGISTER, json=BODY, headers=KEY)
    tokens = await response.json()
    stored = await conn.fetchval("select answer from idempotency_keys")
    assert tokens["refresh_token"].encode() not in stored


async def test_response_sealed_with_an_old_secret_key_is_lost(
    start_app: StartApp, conn: Any
) -> None:
    """The response cannot be read, and the request does not run again."""
    before = await start_app()
    assert (await before.post(REGISTER, json=BODY, headers=KEY)).status == 201
    owner = await register(before)
    # Its success replaces the password it checks, so it looks up a stored response first.
    change = {"current_password": PASSWORD, "password": "a new phrase, for the road"}
    changed = await before.post(PASSWORDS, json=change, headers={**owner.headers, **KEY})
    assert changed.status == 204
    await before.close()
    await conn.execute("delete from signing_keys")  # which the other secret key could not decrypt
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
async def test_malformed_key_is_rejected(client: Client, key: str) -> None:
    response = await client.post(REGISTER, json=BODY, headers={"Idempotency-Key": key})
    await assert_problem(response, 400, "invalid_idempotency_key")


def repeatable_routes() -> list[Any]:
    return [
        pytest.param(route, id=f"{route.method} {route.path}")
        for route in ROUTES
        if description_of(route.handler).idempotent
    ]


@pytest.mark.parametrize("route", repeatable_routes())
async def test_malformed_key_is_rejected_before_anything_else(client: Client, route: Route) -> None:
    """The tokens and passwords of the examples are wrong, but the key is checked first."""
    admin = await register_as(client, "admin")
    # Some routes ask for one.
    await add_totp(client, admin.headers)
    path = re.sub("{.*?}", str(uuid.uuid4()), route.path)
    body = description_of(route.handler).example
    headers = {**admin.headers, "Idempotency-Key": "a b"}
    response = await client.request(route.method, path, json=body, headers=headers)
    await assert_problem(response, 400, "invalid_idempotency_key")
    assert "RateLimit" not in response.headers


async def test_stored_response_needs_no_room_in_the_hash_queue(client: Client) -> None:
    first = await client.post(REGISTER, json=BODY, headers=KEY)
    assert client.app is not None
    client.app[HASHER].queue_limit = 0
    again = await client.post(REGISTER, json=BODY, headers=KEY)
    assert (again.status, await again.read()) == (201, await first.read())


async def test_different_request_with_the_same_key_is_counted(start_app: StartApp) -> None:
    """Otherwise a key would let its network guess the first request's password."""
    client = await start_app(throttle_registration_per_ip=Rate(2, 3600))
    await client.post(REGISTER, json=BODY, headers=KEY)
    other = {**BODY, "password": "another phrase, and a wrong one"}
    response = await client.post(REGISTER, json=other, headers=KEY)
    await assert_problem(response, 422, "idempotency_key_reused")
    response = await client.post(REGISTER, json=other, headers=KEY)
    await assert_problem(response, 429, "too_many_requests")
