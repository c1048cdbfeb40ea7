"""Passwords that are guessed outside sign-in are as visible to the operator as those at sign-in."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse
from prometheus_client import CollectorRegistry

from service.app import create_app
from service.settings import Rate, Settings
from tests.support.clients import Client
from tests.support.described import checks_of
from tests.support.factories import Account, register
from tests.support.logbook import logged, refusals_in
from tests.support.steps import WRONG, change_password, link_about, verify

Guess = Callable[[], Awaitable[ClientResponse]]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def client(
    settings: Settings, registry: CollectorRegistry, aiohttp_client: Any, mail_at_once: None
) -> Client:
    """Client of an application with metrics, which allows one wrong password for each account."""
    changed = dataclasses.replace(settings, throttle_sign_in_per_account=Rate(1, 3600))
    app = create_app(changed, registry)
    served: Client = await aiohttp_client(app, middlewares=checks_of(changed))
    return served


@pytest.fixture
async def account(client: Client) -> Account:
    return await register(client)


@pytest.fixture(params=["own password", "link", "used link"])
async def guess(
    client: Client, settings: Settings, account: Account, request: pytest.FixtureRequest
) -> Guess:
    """Return a function that sends a wrong password in one of the places that ask for it."""
    if request.param == "own password":
        return lambda: change_password(client, account, WRONG)
    subject = "Confirm your email address"
    token = await link_about(settings.data_dir, account.profile["email"], subject)
    if request.param == "link":
        return lambda: verify(client, token, password=WRONG)
    assert (await verify(client, token, by=account)).status == 200
    return lambda: verify(client, token, new_password=WRONG)


async def test_wrong_password_is_logged_with_the_account(guess: Guess, account: Account) -> None:
    with logged() as events:
        await guess()
    assert refusals_in(events) == [account.profile["id"]]


@pytest.mark.parametrize(("guesses", "outcome"), [(1, "wrong"), (2, "throttled")])
async def test_wrong_passwords_are_counted_like_those_at_sign_in(
    guess: Guess, registry: CollectorRegistry, guesses: int, outcome: str
) -> None:
    for _ in range(guesses):
        await guess()
    assert registry.get_sample_value("shinkei_sign_ins_total", {"outcome": outcome}) == 1
