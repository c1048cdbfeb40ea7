"""An account with a world."""

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, register
from tests.support.worlds import World, create_world


@pytest.fixture
async def account(client: Client) -> Account:
    return await register(client)


@pytest.fixture
async def world(client: Client, account: Account) -> World:
    return await create_world(client, account)
