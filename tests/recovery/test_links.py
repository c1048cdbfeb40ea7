"""``/auth/email/revert`` and ``/auth/links/inspect``: links that restore an email, and previews."""

from email.message import EmailMessage
from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.mailbox import next_mail, text_of, token_of
from tests.support.steps import (
    change_email,
    forgot,
    inspect_link,
    is_signed_in,
    link_about,
    mail_reset,
    reset,
    revert,
    send,
    sign_in,
    verify,
)

NEW = "new@example.com"
SUBJECTS = {
    "email_verify": "Confirm your email address",
    "email_change": "Confirm your new email address",
    "email_revert": "The email address of your account was changed",
    "password_reset": "Choose a new password",
}
PAGES = {
    "email_verify": "/email/verify",
    "email_change": "/email/verify",
    "email_revert": "/email/revert",
    "password_reset": "/password/reset",
}


async def mail_about(
    client: Client, settings: Settings, account: Account, purpose: str
) -> EmailMessage:
    """Cause a mail with a link for this purpose, and return it."""
    email = account.profile["email"]
    if purpose in ("email_change", "email_revert"):
        token = await link_about(settings.data_dir, email, SUBJECTS["email_verify"])
        assert (await verify(client, token)).status == 200
        assert (await change_email(client, account, account.password, to=NEW)).status == 202
    if purpose == "email_revert":
        token = await link_about(settings.data_dir, NEW, SUBJECTS["email_change"])
        assert (await verify(client, token)).status == 200
    if purpose == "password_reset":
        await forgot(client, email)
    to = NEW if purpose == "email_change" else email
    while True:
        mail = await next_mail(settings.data_dir, to)
        if str(mail["Subject"]) == SUBJECTS[purpose]:
            return mail


async def token_about(client: Client, settings: Settings, account: Account, purpose: str) -> str:
    return token_of(await mail_about(client, settings, account, purpose))


@pytest.mark.parametrize("purpose", SUBJECTS)
async def test_link_opens_the_page_of_its_purpose(
    client: Client, settings: Settings, purpose: str
) -> None:
    mail = await mail_about(client, settings, await register(client), purpose)
    assert f"{PAGES[purpose]}#token=" in text_of(mail)


@pytest.mark.asvs("9.2.2")
async def test_link_that_restores_an_email_does_not_verify(
    client: Client, settings: Settings
) -> None:
    """A scanner that opens the page of a verification must not lock the owner out."""
    account = await register(client)
    token = await token_about(client, settings, account, "email_revert")
    await assert_problem(await verify(client, token, by=account), 400, "invalid_token")
    assert await is_signed_in(client, account)


@pytest.mark.asvs("9.2.2")
@pytest.mark.parametrize("purpose", ["email_verify", "email_change", "password_reset"])
async def test_link_of_another_purpose_does_not_restore_an_email(
    client: Client, settings: Settings, purpose: str
) -> None:
    account = await register(client)
    token = await token_about(client, settings, account, purpose)
    await assert_problem(await revert(client, token), 400, "invalid_token")
    assert await is_signed_in(client, account)


async def test_restoring_an_email_says_what_was_done(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await token_about(client, settings, account, "email_revert")
    response = await revert(client, token)
    assert (response.status, await response.json()) == (200, {"done": "email_reverted"})


async def test_email_is_restored_once(client: Client, settings: Settings) -> None:
    token = await token_about(client, settings, await register(client), "email_revert")
    assert (await revert(client, token)).status == 200
    await assert_problem(await revert(client, token), 400, "invalid_token")


async def test_lost_response_to_restoring_an_email_is_replayed(
    client: Client, settings: Settings
) -> None:
    token = await token_about(client, settings, await register(client), "email_revert")
    body, key = {"token": token}, {"Idempotency-Key": "once"}
    for _ in range(2):
        response = await send(client, "POST", "/auth/email/revert", body, headers=key)
        assert response.status == 200


async def test_email_that_another_account_has_by_now_is_not_restored(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await token_about(client, settings, account, "email_revert")
    await register(client, email=account.profile["email"])
    await assert_problem(await revert(client, token), 409, "email_taken")


@pytest.mark.parametrize("purpose", SUBJECTS)
async def test_link_can_be_inspected(
    client: Client, settings: Settings, conn: Any, purpose: str
) -> None:
    account = await register(client)
    mail = await mail_about(client, settings, account, purpose)
    response = await inspect_link(client, token_of(mail))
    assert response.status == 200
    expires_at = await conn.fetchval(
        "select to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        " from action_tokens where purpose = $1",
        purpose,
    )
    expected = {"purpose": purpose, "email": str(mail["To"]), "expires_at": expires_at}
    assert await response.json() == expected


async def test_inspection_does_not_use_the_link(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    for _ in range(2):
        assert (await inspect_link(client, token)).status == 200
    assert (await reset(client, token)).status == 204


@pytest.mark.parametrize("why", ["made up", "expired", "used"])
async def test_invalid_link_cannot_be_inspected(
    client: Client, settings: Settings, conn: Any, why: str
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    if why == "made up":
        token = "made-up"
    elif why == "expired":
        await conn.execute("update action_tokens set expires_at = now()")
    else:
        assert (await reset(client, token)).status == 204
    await assert_problem(await inspect_link(client, token), 400, "invalid_token")


async def test_inspections_by_one_client_are_limited(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_ip=Rate(3, 3600))
    for _ in range(3):
        await assert_problem(await inspect_link(client, "made-up"), 400, "invalid_token")
    response = await inspect_link(client, "made-up")
    await assert_problem(response, 429, "too_many_requests")
    assert response.headers["RateLimit-Policy"].startswith('"link-per-ip"')


async def test_inspections_do_not_use_up_sign_ins(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_ip=Rate(1, 3600))
    account = await register(client)
    await inspect_link(client, "made-up")
    assert (await sign_in(client, account)).status == 200
