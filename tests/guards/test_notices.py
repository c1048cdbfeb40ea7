"""Owners are notified by mail of what happens to their account."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, register, register_as
from tests.support.steps import (
    RESET,
    change_email,
    change_password,
    delete_account,
    forgot,
    link_about,
    mail_reset,
    mails,
    resend,
    reset,
    revert,
    send,
    verify,
)

OWN = "ada@example.com"
NEW = "ada.new@example.com"
VERIFY = "Confirm your email address"
CHANGE = "Confirm your new email address"
CHANGED = "The email address of your account was changed"

Act = Callable[[Client, Settings, Account], Awaitable[Any]]


async def registering(client: Client, settings: Settings, account: Account) -> None:
    """Do nothing: the account is already registered."""


async def resending(client: Client, settings: Settings, account: Account) -> None:
    await link_about(settings.data_dir, OWN, VERIFY)
    await resend(client, OWN)


async def forgetting(client: Client, settings: Settings, account: Account) -> None:
    await forgot(client, OWN)


async def resetting(client: Client, settings: Settings, account: Account) -> None:
    await reset(client, await mail_reset(client, settings.data_dir, account))


async def changing_the_password(client: Client, settings: Settings, account: Account) -> None:
    await change_password(client, account, account.password)


async def requesting_an_email_change(client: Client, settings: Settings, account: Account) -> None:
    await change_email(client, account, account.password, to=NEW)


async def requesting_another_accounts_email(
    client: Client, settings: Settings, account: Account
) -> None:
    other = await register(client, email="other@example.com")
    response = await change_email(client, other, other.password, to=OWN)
    assert response.status == 202


async def changing_the_email(client: Client, settings: Settings, account: Account) -> None:
    await verify(client, await link_about(settings.data_dir, OWN, VERIFY))
    await change_email(client, account, account.password, to=NEW)
    await verify(client, await link_about(settings.data_dir, NEW, CHANGE))


async def reverting_the_email(client: Client, settings: Settings, account: Account) -> None:
    await changing_the_email(client, settings, account)
    await revert(client, await link_about(settings.data_dir, OWN, CHANGED))


async def leaving(client: Client, settings: Settings, account: Account) -> None:
    await delete_account(client, account, account.password)


async def being_deleted(client: Client, settings: Settings, account: Account) -> None:
    admin = await register_as(client, "admin")
    await send(client, "DELETE", f"/users/{account.profile['id']}", by=admin)


async def being_created(client: Client, settings: Settings, account: Account) -> None:
    admin = await register_as(client, "admin")
    await send(client, "POST", "/users", {"email": NEW}, by=admin)


async def being_sent_a_reset(client: Client, settings: Settings, account: Account) -> None:
    admin = await register_as(client, "admin")
    await send(client, "POST", f"/users/{account.profile['id']}/password-reset", by=admin)


NOTICES: list[tuple[Act, str, str]] = [
    (registering, OWN, VERIFY),
    (resending, OWN, VERIFY),
    (forgetting, OWN, RESET),
    (resetting, OWN, "Your password was changed"),
    (changing_the_password, OWN, "Your password was changed"),
    (requesting_an_email_change, NEW, CHANGE),
    (requesting_another_accounts_email, OWN, "You already have an account"),
    (changing_the_email, OWN, CHANGED),
    (reverting_the_email, OWN, RESET),
    (leaving, OWN, "Your account will be deleted"),
    (being_deleted, OWN, "An administrator is deleting your account"),
    (being_created, NEW, RESET),
    (being_sent_a_reset, OWN, RESET),
]


@pytest.mark.parametrize(
    ("act", "to", "subject"), NOTICES, ids=[act.__name__ for act, *_ in NOTICES]
)
async def test_mail_is_sent(
    client: Client, settings: Settings, conn: Any, act: Act, to: str, subject: str
) -> None:
    await act(client, settings, await register(client, email=OWN))
    assert (to, subject) in await mails(settings.data_dir, conn)


async def test_owner_is_notified_of_a_registration_with_their_email(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    client = await start_app(require_email_verification=True)
    for _ in range(2):
        await send(client, "POST", "/auth/register", {"email": OWN, "password": PASSWORD})
    assert (OWN, "You already have an account") in await mails(settings.data_dir, conn)


async def test_email_change_sends_no_link_to_another_accounts_email(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client, email=OWN)
    await requesting_another_accounts_email(client, settings, account)
    assert (OWN, CHANGE) not in await mails(settings.data_dir, conn)
