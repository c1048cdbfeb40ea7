"""A browser for the pages."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import open_page

if TYPE_CHECKING:
    from playwright.async_api import Page


@pytest.fixture
async def page() -> AsyncIterator["Page"]:
    """A page of a new browser."""
    async with open_page() as page:
        yield page
