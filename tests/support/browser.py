"""A real browser, if one is installed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.programs import require
from tests.support.waiting import DEADLINE_S

if TYPE_CHECKING:
    from playwright.async_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server"),
]


@asynccontextmanager
async def open_page() -> AsyncIterator["Page"]:
    """Open a page in a new browser."""
    executable = require(*BROWSERS)
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(DEADLINE_S * 1000)
        yield page
        await browser.close()
