"""Deletion by an administrator, which only an administrator can cancel."""

from typing import Any

import pytest

from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, register, register_as
from tests.support.mailbox import next_mail, text_of
from tests.support.steps import delete_account, send, sign_in, sign_in_again


@pytest.fixture
async def admin(client: Client) -> Account:
    return await register_as(client, "admin")


async def delete(client: Client, admin: Account, account: Account) -> dict[str, Any]:
    response = await send(client, "DELETE", f"/users/{account.profile['id']}", by=admin)
    assert response.status == 200
    shown: dict[str, Any] = await response.json()
    return shown


async def reinstate(client: Client, admin: Account, account: Account) -> dict[str, Any]:
    path = f"/users/{account.profile['id']}/reinstate"
    response = await send(client, "POST", path, by=admin)
    assert response.status == 200
    shown: dict[str, Any] = await response.json()
    return shown


async def show(client: Client, admin: Account, account: Account) -> dict[str, Any]:
    response = await send(client, "GET", f"/users/{account.profile['id']}", by=admin)
    shown: dict[str, Any] = await response.json()
    return shown


async def test_sign_in_to_an_account_deleted_by_an_administrator_looks_like_a_wrong_password(
    client: Client, admin: Account
) -> None:
    account = await register(client)
    await delete(client, admin, account)
    refused = await assert_problem(await sign_in(client, account), 401, "invalid_credentials")
    wrong = await sign_in(client, account, "not the password of it")
    assert await assert_problem(wrong, 401, "invalid_credentials") == refused


async def test_sign_in_does_not_cancel_a_deletion_by_an_administrator(
    client: Client, admin: Account
) -> None:
    account = await register(client)
    deleted = await delete(client, admin, account)
    await sign_in(client, account)
    assert await show(client, admin, account) == deleted


async def test_administrator_sees_who_requested_a_deletion(client: Client, admin: Account) -> None:
    own, other = await register(client), await register(client)
    await delete_account(client, own, own.password)
    assert (await show(client, admin, own))["deleted_by_admin"] is False
    assert (await delete(client, admin, other))["deleted_by_admin"] is True


async def test_owner_cannot_cancel_their_deletion_once_an_administrator_has_confirmed_it(
    client: Client, admin: Account
) -> None:
    account = await register(client)
    await delete_account(client, account, account.password)
    before = await show(client, admin, account)
    after = await delete(client, admin, account)
    assert after["deleted_by_admin"] is True
    assert after["purge_at"] == before["purge_at"], "the grace period does not start again"
    await assert_problem(await sign_in(client, account), 401, "invalid_credentials")


async def test_confirmation_of_an_owners_deletion_is_recorded(
    client: Client, admin: Account
) -> None:
    account = await register(client)
    await delete_account(client, account, account.password)
    for _ in range(2):
        await delete(client, admin, account)
    path = f"/audit-events?action=user.delete&actor_id={admin.profile['id']}"
    (event,) = (await (await send(client, "GET", path, by=admin)).json())["items"]
    assert (event["before"], event["after"]) == (
        {"deleted_by_admin": False},
        {"deleted_by_admin": True},
    )


async def test_reinstated_account_can_be_signed_in_to(client: Client, admin: Account) -> None:
    account = await register(client)
    await delete(client, admin, account)
    shown = await reinstate(client, admin, account)
    assert (shown["status"], shown["deleted_by_admin"]) == ("active", False)
    assert (await sign_in(client, account)).status == 200


async def test_owner_can_cancel_their_own_deletion_after_an_earlier_one_by_an_administrator(
    client: Client, admin: Account
) -> None:
    account = await register(client)
    await delete(client, admin, account)
    await reinstate(client, admin, account)
    account = await sign_in_again(client, account)
    await delete_account(client, account, account.password)
    assert (await sign_in(client, account)).status == 200


async def test_mail_says_that_an_administrator_deletes_the_account(
    client: Client, admin: Account, settings: Settings
) -> None:
    account = await register(client, email="ada@example.com")
    await next_mail(settings.data_dir, "ada@example.com")
    deleted = await delete(client, admin, account)
    mail = await next_mail(settings.data_dir, "ada@example.com")
    assert mail["Subject"] == "An administrator is deleting your account"
    text = text_of(mail)
    assert deleted["purge_at"][:10] in text
    assert "You can no longer sign in." in text
