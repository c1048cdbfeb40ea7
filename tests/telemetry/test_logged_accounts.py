"""``user_id`` in the access log: the account whose credential a request presented."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, register
from tests.support.logbook import logged
from tests.support.steps import (
    WRONG,
    change_email,
    forgot,
    inspect_link,
    link_about,
    mail_reset,
    refresh,
    resend,
    reset,
    revert,
    send,
    sign_in,
    verify,
)

Presenting = Callable[[Client, Account], Awaitable[ClientResponse]]
Opening = Callable[[Client, str], Awaitable[ClientResponse]]

NEW = "new@example.com"


async def refresh_once(client: Client, account: Account) -> ClientResponse:
    return await refresh(client, account.tokens["refresh_token"])


async def replay_refresh_token(client: Client, account: Account) -> ClientResponse:
    second = await (await refresh_once(client, account)).json()
    await refresh(client, second["refresh_token"])
    return await refresh_once(client, account)


async def log_out(client: Client, account: Account) -> ClientResponse:
    body = {"refresh_token": account.tokens["refresh_token"]}
    return await send(client, "POST", "/auth/logout", body)


@pytest.mark.parametrize(
    ("present", "status"),
    [(sign_in, 200), (refresh_once, 200), (replay_refresh_token, 401), (log_out, 204)],
)
async def test_request_with_a_credential_is_logged_with_its_account(
    client: Client, present: Presenting, status: int
) -> None:
    account = await register(client)
    with logged() as events:
        assert (await present(client, account)).status == status
    *_, line = [event for event in events if event["event"] == "request"]
    assert line["user_id"] == account.profile["id"]


@pytest.mark.parametrize("require_email_verification", [False, True])
async def test_registration_is_logged_with_its_account(
    start_app: StartApp, conn: Any, require_email_verification: bool
) -> None:
    client = await start_app(require_email_verification=require_email_verification)
    body = {"email": "ada@example.com", "password": PASSWORD}
    with logged() as events:
        await send(client, "POST", "/auth/register", body)
    (line,) = [event for event in events if event["event"] == "request"]
    assert line["user_id"] == str(await conn.fetchval("select id from users"))


async def verification(client: Client, data_dir: Path, account: Account) -> str:
    return await link_about(data_dir, account.profile["email"], "Confirm your email address")


async def reversal(client: Client, data_dir: Path, account: Account) -> str:
    token = await verification(client, data_dir, account)
    assert (await verify(client, token)).status == 200
    assert (await change_email(client, account, account.password, to=NEW)).status == 202
    token = await link_about(data_dir, NEW, "Confirm your new email address")
    assert (await verify(client, token)).status == 200
    return await link_about(
        data_dir, account.profile["email"], "The email address of your account was changed"
    )


@pytest.mark.usefixtures("mail_at_once")
@pytest.mark.parametrize(
    ("create", "open_link"),
    [
        (verification, verify),
        (verification, inspect_link),
        (mail_reset, reset),
        (reversal, revert),
    ],
)
async def test_opened_link_is_logged_with_its_account(
    client: Client,
    settings: Settings,
    create: Callable[[Client, Path, Account], Awaitable[str]],
    open_link: Opening,
) -> None:
    account = await register(client)
    token = await create(client, settings.data_dir, account)
    with logged() as events:
        assert (await open_link(client, token)).ok
    line = next(event for event in events if event["event"] == "request")
    assert line["user_id"] == account.profile["id"]


@pytest.mark.usefixtures("mail_at_once")
async def test_refused_link_is_logged_with_its_account(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    with logged() as events:
        assert (await reset(client, token, "short")).status == 422
    *_, line = [event for event in events if event["event"] == "request"]
    assert line["user_id"] == account.profile["id"]


async def fail_to_sign_in(client: Client, account: Account) -> ClientResponse:
    return await sign_in(client, account, WRONG)


async def ask_for_a_reset(client: Client, account: Account) -> ClientResponse:
    return await forgot(client, account.profile["email"])


async def ask_for_a_verification(client: Client, account: Account) -> ClientResponse:
    return await resend(client, account.profile["email"])


@pytest.mark.parametrize(
    "ask", [fail_to_sign_in, ask_for_a_reset, ask_for_a_verification], ids=lambda ask: ask.__name__
)
async def test_request_that_only_knows_an_email_is_logged_without_account(
    client: Client, ask: Presenting
) -> None:
    account = await register(client)
    with logged() as events:
        await ask(client, account)
    (line,) = [event for event in events if event["event"] == "request"]
    assert line["user_id"] is None
