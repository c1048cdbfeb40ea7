"""Settings stored before a rule was tightened: they block no other change."""

from typing import Any

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from service.app import create_app
from service.settings import Settings
from tests.support.clients import Client, pool_of
from tests.support.factories import Account, assert_problem, pointers, register, register_as

ME = "/api/v1/users/me"
OLD = {"llm_model": 5, "language": "in english", "notes": "x" * 17_000}


@pytest.fixture
async def client(settings: Settings, aiohttp_client: AiohttpClient) -> Client:
    """A client without checks: the description knows only settings that obey the rules."""
    return await aiohttp_client(create_app(settings))


@pytest.fixture
async def owner(client: Client) -> Account:
    account = await register(client)
    await pool_of(client).execute(
        "update users set settings = $2 where id = $1", account.profile["id"], OLD
    )
    return account


async def change(client: Client, account: Account, **body: Any) -> Any:
    return await client.patch(ME, headers=account.headers, json=body)


async def test_administrator_changes_the_role_of_an_account_with_old_settings(
    client: Client, owner: Account
) -> None:
    administrator = await register_as(client, "admin")
    response = await client.patch(
        f"/api/v1/users/{owner.profile['id']}",
        headers={**administrator.headers, "If-Match": "*"},
        json={"role": "support"},
    )
    assert (response.status, (await response.json())["role"]) == (200, "support")


async def test_administrator_changes_one_setting_beside_old_ones(
    client: Client, owner: Account
) -> None:
    administrator = await register_as(client, "admin")
    response = await client.patch(
        f"/api/v1/users/{owner.profile['id']}",
        headers={**administrator.headers, "If-Match": "*"},
        json={"settings": {"language": "en"}},
    )
    assert (await response.json())["settings"] == {**OLD, "language": "en"}


async def test_owner_changes_the_name_beside_old_settings(client: Client, owner: Account) -> None:
    response = await change(client, owner, name="Ada")
    assert (response.status, (await response.json())["settings"]) == (200, OLD)


async def test_owner_mends_one_old_setting_at_a_time(client: Client, owner: Account) -> None:
    response = await change(client, owner, settings={"language": "en"})
    assert (await response.json())["settings"] == {**OLD, "language": "en"}


async def test_owner_removes_an_old_setting(client: Client, owner: Account) -> None:
    response = await change(client, owner, settings={"llm_model": None})
    assert "llm_model" not in (await response.json())["settings"]


async def test_setting_that_is_sent_is_checked(client: Client, owner: Account) -> None:
    response = await change(client, owner, settings={"llm_model": 6})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/settings/llm_model"}


async def test_oversized_settings_do_not_grow(client: Client, owner: Account) -> None:
    response = await change(client, owner, settings={"more": 1})
    await assert_problem(response, 422, "invalid_fields")


async def test_put_checks_all_settings_that_it_stores(client: Client, owner: Account) -> None:
    response = await client.put(ME, headers=owner.headers, json={"settings": OLD})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/settings/llm_model", "#/settings/language"}


async def test_put_without_settings_leaves_old_ones(client: Client, owner: Account) -> None:
    response = await client.put(ME, headers=owner.headers, json={"name": "Ada"})
    assert (await response.json())["settings"] == OLD
