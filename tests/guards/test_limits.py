"""Attempts are counted per account and per client before any other work."""

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.settings import Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.steps import (
    ASKING,
    NEW_PASSWORD,
    WRONG,
    Asking,
    change_email,
    forgot,
    mail_reset,
    resend,
    send,
    sign_in,
)

FEW = Rate(3, 3600)
Ask = Callable[[Client, str], Awaitable[ClientResponse]]


async def ask_for_change(client: Client, email: str) -> ClientResponse:
    """Use a new account each time, so that only the new email is the same."""
    return await change_email(client, await register(client), PASSWORD, to=email)


MAILING: dict[str, Ask] = {
    "forgot": forgot,
    "resend": resend,
    "change of email": ask_for_change,
}
POLICIES = {"forgot": "password-reset", "resend": "verification", "change of email": "verification"}


def policy_of(response: ClientResponse) -> str:
    return response.headers["RateLimit-Policy"].partition(";")[0].strip('"')


@pytest.mark.parametrize("name", MAILING)
async def test_mail_to_one_email_is_limited(start_app: StartApp, name: str) -> None:
    client = await start_app(throttle_mail_per_account=FEW)
    statuses = [(await MAILING[name](client, "ada@example.com")).status for _ in range(3)]
    assert statuses == [202] * 3
    response = await MAILING[name](client, "ADA@example.com")
    await assert_problem(response, 429, "too_many_requests")
    assert policy_of(response) == f"{POLICIES[name]}-per-account"


@pytest.mark.parametrize("name", MAILING)
async def test_mail_to_another_email_is_not_limited(start_app: StartApp, name: str) -> None:
    client = await start_app(throttle_mail_per_account=Rate(1, 3600))
    assert (await MAILING[name](client, "ada@example.com")).status == 202
    assert (await MAILING[name](client, "eve@example.com")).status == 202


@pytest.mark.parametrize("name", MAILING)
async def test_mail_requested_by_one_client_is_limited(start_app: StartApp, name: str) -> None:
    client = await start_app(throttle_mail_per_ip=FEW)
    statuses = [
        (await MAILING[name](client, f"user-{number}@example.com")).status for number in range(3)
    ]
    assert statuses == [202] * 3
    response = await MAILING[name](client, "one-more@example.com")
    await assert_problem(response, 429, "too_many_requests")
    assert policy_of(response) == f"{POLICIES[name]}-per-ip"


async def test_throttled_mail_is_not_sent(start_app: StartApp, conn: Any) -> None:
    client = await start_app(throttle_mail_per_account=Rate(1, 3600))
    account = await register(client)
    assert (await forgot(client, account.profile["email"])).status == 202
    tokens = "select token_hash from action_tokens where purpose = 'password_reset'"
    mailed = await conn.fetchval(tokens)
    assert (await forgot(client, account.profile["email"])).status == 429
    assert await conn.fetchval(tokens) == mailed


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_password_guesses_with_a_stolen_token_are_limited(
    start_app: StartApp, ask: Asking
) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    account = await register(client)
    for _ in range(3):
        await assert_problem(await ask(client, account, WRONG), 403, "wrong_password")
    response = await ask(client, account, account.password)
    await assert_problem(response, 429, "too_many_requests")
    assert policy_of(response) == "sign-in-per-account"


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_guesses_with_a_token_count_toward_the_sign_in_limit(
    start_app: StartApp, ask: Asking
) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    account = await register(client)
    for _ in range(3):
        await ask(client, account, WRONG)
    await assert_problem(await sign_in(client, account), 429, "too_many_requests")


async def test_sign_in_guesses_are_limited(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    account = await register(client)
    for _ in range(3):
        await assert_problem(await sign_in(client, account, WRONG), 401, "invalid_credentials")
    await assert_problem(await sign_in(client, account), 429, "too_many_requests")


async def test_registrations_by_one_client_are_limited(start_app: StartApp) -> None:
    client = await start_app(throttle_registration_per_ip=FEW)
    for _ in range(3):
        await register(client)
    body = {"email": "one-more@example.com", "password": PASSWORD}
    response = await send(client, "POST", "/auth/register", body)
    await assert_problem(response, 429, "too_many_requests")


async def test_registration_is_limited_before_its_password_is_examined(
    start_app: StartApp,
) -> None:
    client = await start_app(throttle_registration_per_ip=Rate(1, 3600))
    body = {"email": "ada@example.com", "password": "123456789012345"}
    response = await send(client, "POST", "/auth/register", body)
    await assert_problem(response, 422, "invalid_fields")
    response = await send(client, "POST", "/auth/register", body)
    await assert_problem(response, 429, "too_many_requests")


async def test_password_reset_makes_the_clients_network_known(
    start_app: StartApp, settings: Settings
) -> None:
    """An attack on the account has used up the quota of unknown networks."""
    client = await start_app(
        throttle_sign_in_per_account=FEW, trusted_proxies=(ip_network("127.0.0.0/8"),)
    )
    account = await register(client)
    body = {"email": account.profile["email"], "password": WRONG}
    for number in range(3):
        attacker = {"X-Forwarded-For": f"203.0.113.{number}"}
        await send(client, "POST", "/auth/login", body, headers=attacker)
    here = {"X-Forwarded-For": "192.0.2.1"}
    token = await mail_reset(client, settings.data_dir, account)
    new = {"token": token, "password": NEW_PASSWORD}
    assert (await send(client, "POST", "/auth/password/reset", new, headers=here)).status == 204
    body = {**body, "password": NEW_PASSWORD}
    assert (await send(client, "POST", "/auth/login", body, headers=here)).status == 200
