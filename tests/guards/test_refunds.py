"""Only failures use up a quota: a successful attempt is refunded."""

import pytest
from aiohttp import ClientResponse

from service.settings import Rate
from tests.support.clients import StartApp
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.steps import (
    ASKING,
    NEW_PASSWORD,
    WRONG,
    Asking,
    change_email,
    send,
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


async def test_response_shows_the_nearest_of_all_limits_that_were_counted(
    start_app: StartApp,
) -> None:
    """A change of email counts toward the limit of mail and that of sign-in."""
    client = await start_app(throttle_mail_per_account=ONCE)
    account = await register(client)
    response = await change_email(client, account, account.password)
    assert response.headers["RateLimit-Policy"] == '"verification-per-account";q=1;w=3600'
    assert remaining(response) == 0


REPEATED: dict[str, tuple[str, dict[str, str]]] = {
    "registration": ("/auth/register", {"email": "ada@example.com", "password": PASSWORD}),
    "forgot": ("/auth/password/forgot", {"email": "ada@example.com"}),
    "resend": ("/auth/email/verify/resend", {"email": "ada@example.com"}),
    "change of email": ("/users/me/email", {"email": "ada@example.com", "password": PASSWORD}),
    # The first success replaces the password that a repeat would be checked against.
    "change of password": (
        "/users/me/password",
        {"current_password": PASSWORD, "password": NEW_PASSWORD},
    ),
}


@pytest.mark.parametrize("name", REPEATED)
async def test_repeated_request_costs_no_attempt(start_app: StartApp, name: str) -> None:
    account = await register(await start_app())
    client = await start_app(
        throttle_registration_per_ip=ONCE,
        throttle_mail_per_account=ONCE,
        throttle_sign_in_per_account=ONCE,
    )
    path, body = REPEATED[name]
    by = account if path.startswith("/users") else None
    key = {"Idempotency-Key": "once"}
    first = await send(client, "POST", path, body, by=by, headers=key)
    assert first.status < 300
    for _ in range(3):
        again = await send(client, "POST", path, body, by=by, headers=key)
        assert (again.status, await again.read()) == (first.status, await first.read())
