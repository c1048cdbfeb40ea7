"""Only failures use up a quota: a successful attempt is refunded."""

import pytest
from aiohttp import ClientResponse

from service.settings import Rate
from tests.support.clients import StartApp
from tests.support.factories import assert_problem, register
from tests.support.steps import (
    ASKING,
    NEW_PASSWORD,
    WRONG,
    Asking,
    change_email,
    sign_in,
    sign_in_again,
)

ONCE = Rate(1, 3600)


def remaining(response: ClientResponse) -> int:
    return int(response.headers["RateLimit"].partition(";r=")[2].partition(";")[0])


@pytest.mark.parametrize("name", ASKING)
async def test_successful_attempt_uses_no_quota(start_app: StartApp, name: str) -> None:
    client = await start_app(throttle_sign_in_per_account=ONCE)
    account = await register(client)
    response = await ASKING[name](client, account, account.password)
    assert response.status < 300
    password = NEW_PASSWORD if name == "change of password" else account.password
    assert (await sign_in(client, account, password)).status == 200


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_response_to_a_success_shows_the_full_quota(start_app: StartApp, ask: Asking) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    account = await register(client)
    assert remaining(await ask(client, account, account.password)) == 3


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_success_does_not_refund_earlier_failures(start_app: StartApp, ask: Asking) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    account = await register(client)
    await ask(client, account, WRONG)
    assert remaining(await ask(client, account, account.password)) == 2


async def test_successful_sign_in_is_refunded(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=ONCE)
    account = await register(client)
    await sign_in_again(client, account)
    assert (await sign_in(client, account)).status == 200


async def test_mail_to_a_new_email_is_not_refunded(start_app: StartApp) -> None:
    client = await start_app(throttle_mail_per_account=ONCE)
    account = await register(client)
    assert (await change_email(client, account, account.password)).status == 202
    response = await change_email(client, account, account.password)
    await assert_problem(response, 429, "too_many_requests")


async def test_replayed_response_costs_no_attempt(start_app: StartApp) -> None:
    """The first success replaced the password that a replay would be checked against."""
    client = await start_app(throttle_sign_in_per_account=ONCE)
    account = await register(client)
    account = account._replace(headers={**account.headers, "Idempotency-Key": "once"})
    for _ in range(3):
        response = await ASKING["change of password"](client, account, account.password)
        assert response.status == 204
