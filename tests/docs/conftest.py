"""A browser for the pages, and a host where it allows passkeys."""

import dataclasses
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import TestClient

from service.app import create_app
from service.settings import Settings
from tests.support import described
from tests.support.browser import open_page
from tests.support.clients import Client
from tests.support.served import Server

if TYPE_CHECKING:
    from playwright.async_api import Page


@pytest.fixture
async def page(lent: Settings | None) -> AsyncIterator["Page"]:
    """A page of a new browser, which is closed before the application is taken back."""
    async with open_page() as page:
        yield page


@pytest.fixture
async def localhost(settings: Settings) -> AsyncIterator[Client]:
    """The application at http://localhost: browsers allow no passkeys at an IP address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        changed = dataclasses.replace(
            settings,
            public_origin=f"http://localhost:{listener.getsockname()[1]}",
            rp_id="",
            rp_origins=frozenset(),
        )
        server = Server(create_app(changed), host="localhost", socket_factory=lambda *_: listener)
        async with TestClient(server, middlewares=described.checks_of(changed)) as client:
            yield client
