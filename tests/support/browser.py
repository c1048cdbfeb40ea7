"""A real browser, and the page at /docs as a person uses it there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.clients import Client
from tests.support.programs import require
from tests.support.waiting import DEADLINE_S

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server"),
]


@asynccontextmanager
async def open_page() -> AsyncIterator["Page"]:
    """Open a page in a new browser, if one is installed."""
    executable = require(*BROWSERS)
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        # Otherwise, axe-core may measure the contrast of a colour that is still changing.
        page = await browser.new_page(
            viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
        )
        page.set_default_timeout(DEADLINE_S * 1000)
        yield page
        await browser.close()


async def open_docs(page: "Page", client: Client) -> None:
    await page.goto(str(client.make_url("/docs")))
    await page.locator(".opblock").first.wait_for()


async def sign_in(page: "Page", email: str, password: str, button: str = "Sign in") -> None:
    await page.get_by_label("Email", exact=True).fill(email)
    await page.get_by_label("Password", exact=True).fill(password)
    await page.get_by_role("button", name=button, exact=True).click()


async def sign_out(page: "Page") -> None:
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name="Sign in", exact=True).wait_for()
    await page.locator(".opblock").first.wait_for()


async def open_factors(page: "Page") -> "Locator":
    """Open the dialog of second factors; return it."""
    await page.get_by_role("button", name="Second factors", exact=True).click()
    dialog = page.get_by_role("dialog", name="Second factors")
    await dialog.wait_for()
    return dialog


class Authenticator(NamedTuple):
    """The browser's own authenticator, whose user is there or not."""

    cdp: "CDPSession"
    id: str

    async def set_user(self, *, present: bool) -> None:
        """Let the user use a passkey whenever the page asks for one from now on, or never."""
        options = {"authenticatorId": self.id, "enabled": present}
        await self.cdp.send("WebAuthn.setAutomaticPresenceSimulation", options)


async def add_authenticator(page: "Page") -> Authenticator:
    """Give the browser an authenticator that keeps passkeys and verifies its user."""
    cdp = await page.context.new_cdp_session(page)
    await cdp.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    added = await cdp.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return Authenticator(cdp, added["authenticatorId"])


async def execute(page: "Page", operation: str) -> "Locator":
    """Try the operation, opening it if needed; return the element that shows its response."""
    block = page.locator(f"#operations-{operation}")
    if "is-open" not in (await block.get_attribute("class") or ""):
        await block.locator(".opblock-summary-control").click()
    async with page.expect_response(lambda response: "/api/v1/users" in response.url):
        await block.locator(".execute").click()
    return block.locator(".live-responses-table tbody")


async def open_lock(page: "Page", operation: str) -> "Locator":
    """Press the lock of the operation; return the dialog that it opens."""
    await page.locator(f"#operations-{operation} .authorization__btn").press("Enter")
    dialog = page.get_by_role("dialog")
    await dialog.wait_for()
    return dialog


async def overflow_width(page: "Page") -> int:
    overflow: int = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return overflow


async def find_violations(page: "Page", within: str | None = None) -> list[str]:
    """Run all rules of axe-core; return the rule, selector and HTML of each violation."""
    from axe_playwright_python.async_playwright import Axe

    found: list[dict[str, Any]] = (await Axe().run(page, context=within)).response["violations"]
    return [
        f"{violation['id']}: {' '.join(map(str, node['target']))} {node['html'][:200]}"
        for violation in found
        for node in violation["nodes"]
    ]
