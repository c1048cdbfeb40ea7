"""Common, personal and short passwords are rejected wherever one is chosen."""

import pytest

from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import assert_problem, pointers, register
from tests.support.steps import mail_reset, reset, send


@pytest.mark.parametrize("where", ["registration", "change", "reset"])
@pytest.mark.parametrize("password", ["123456789012345", "Ada Lovelace Ada", "t0o short"])
async def test_guessable_password_is_rejected(
    client: Client, settings: Settings, where: str, password: str
) -> None:
    if where == "registration":
        body = {"email": "ada@example.com", "password": password, "name": "Ada Lovelace"}
        response = await send(client, "POST", "/auth/register", body)
    elif where == "change":
        account = await register(client, name="Ada Lovelace")
        body = {"current_password": account.password, "password": password}
        response = await send(client, "POST", "/users/me/password", body, by=account)
    else:
        account = await register(client, name="Ada Lovelace")
        token = await mail_reset(client, settings.data_dir, account)
        response = await reset(client, token, password)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}
