"""/docs: its files as they are served, and the page in a real browser, where one is installed."""

import gzip
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from service.db.connection import POOL
from service.docs.handlers import PAGE_POLICY
from service.routes import ROUTES
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.programs import require
from tests.support.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FILES = {route.path for route in ROUTES if route.path.startswith("/docs")}
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server"),
]


async def test_files_are_compressed_kept_and_asked_for_again(client: Client) -> None:
    for path in FILES:
        encodings = ("gzip", "identity")
        answers = [
            # As it comes: neither decompressed nor compared with the description.
            await client.get(
                path,
                headers={"Accept-Encoding": encoding},
                auto_decompress=False,
                middlewares=(),
            )
            for encoding in encodings
        ]
        compressed, plain = [await answer.read() for answer in answers]
        assert gzip.decompress(compressed) == plain
        assert answers[0].headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in answers[1].headers
        assert answers[0].headers["ETag"] != answers[1].headers["ETag"]
        for answer, encoding in zip(answers, encodings, strict=True):
            assert answer.status == 200
            assert answer.headers["Vary"] == "Accept-Encoding"
            assert answer.headers["Cache-Control"] == "public, no-cache"
            known = {"Accept-Encoding": encoding, "If-None-Match": answer.headers["ETag"]}
            again = await client.get(path, headers=known)
            assert (again.status, await again.read()) == (304, b"")
            assert again.headers["ETag"] == answer.headers["ETag"]
        stale = await client.get(path, headers={"If-None-Match": '"another"'})
        assert stale.status == 200


async def test_the_page_has_nothing_inline_and_nothing_of_others(client: Client) -> None:
    response = await client.get("/docs")
    text = await response.text()
    assert response.headers["Content-Security-Policy"] == PAGE_POLICY
    assert not re.search(r"<style|\bstyle=|\bon\w+=|javascript:", text)
    for attributes, content in re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL):
        assert 'src="/docs/' in attributes
        assert content == ""
    for url in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert url.startswith(("/docs", "/openapi.json", "data:image/svg+xml,")), url


async def test_it_can_be_turned_off(start_app: StartApp) -> None:
    client = await start_app(docs=False)
    for path in FILES:
        # The description that answers are compared with is that of the defaults.
        await assert_problem(await client.get(path, middlewares=()), 404, "not_found")
    described = await (await client.get("/openapi.json")).json()
    assert "/api/v1/users/me" in described["paths"]
    assert not FILES & set(described["paths"])


@pytest.fixture
async def page() -> AsyncIterator["Page"]:
    """A page of a new browser; what it complains of, and whom it asks, is kept in its attributes."""
    executable = require(*BROWSERS)
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
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


async def execute(page: "Page", operation: str) -> "Locator":
    """Try the operation, opening it if need be; where its answer is shown."""
    block = page.locator(f"#operations-{operation}")
    if "is-open" not in (await block.get_attribute("class") or ""):
        await block.locator(".opblock-summary-control").click()
    async with page.expect_response(lambda response: "/api/v1/users/me" in response.url):
        await block.locator(".execute").click()
    return block.locator(".live-responses-table tbody")


async def width_beyond(page: "Page") -> int:
    beyond: int = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return beyond


@pytest.mark.asvs("3.4.3", "6.2.6", "7.4.4", "14.3.1", "14.3.3")
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_one_signs_in_and_tries_a_request(page: "Page", client: Client) -> None:
    account = await register(client)
    email = account.profile["email"]
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda entry: complaints.append(f"{entry.type}: {entry.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("request", lambda request: hosts.add(request.url.partition("?")[0].split("/")[2]))

    await open_docs(page, client)
    for route in ROUTES:
        row = page.locator(f".opblock-{route.method.lower()} [data-path='{route.path}']")
        assert await row.count() == 1, route
    assert await page.get_by_label("Password", exact=True).get_attribute("type") == "password"
    await sign_in(page, email, account.password)
    await page.get_by_text(f"Signed in as {email}").wait_for()
    answer = await execute(page, "users-users_read_me")
    await answer.get_by_text(f'"{email}"').wait_for()
    assert (await answer.locator(".response-col_status").first.inner_text()).strip() == "200"

    assert complaints == []

    # A session that is ended elsewhere: the browser itself complains of the 401.
    await client.delete("/api/v1/users/me/sessions", headers=account.headers)
    await execute(page, "users-users_read_me")
    told = page.get_by_role("status").get_by_text("The session has ended; sign in again.")
    await told.wait_for()
    assert await page.locator(".authorization__btn .locked").count() == 0
    (complaint,) = await eventually(lambda: complaints)
    assert "401" in complaint
    complaints.clear()

    # Nothing is stored, and nothing is left after signing out.
    await sign_in(page, email, account.password)
    await page.get_by_text(f"Signed in as {email}").wait_for()
    assert await page.locator(".authorization__btn .locked").count() > 0
    stored = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert stored == [0, 0, ""]
    assert await page.get_by_label("Password", exact=True).input_value() == ""
    for width in (1280, 768, 360):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await width_beyond(page) <= 0, width
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name="Sign in", exact=True).wait_for()
    await page.locator(".opblock").first.wait_for()
    assert email not in await page.locator("body").inner_text()
    me = await client.get("/api/v1/users/me", headers=account.headers)
    assert me.status == 200, "the session that the page had is over, and no other"
    sessions = await client.get("/api/v1/users/me/sessions", headers=account.headers)
    assert len((await sessions.json())["items"]) == 1

    assert complaints == []
    assert hosts == {client.make_url("/").authority}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_what_one_is_told_and_how_long_one_stays(page: "Page", start_app: StartApp) -> None:
    # Tokens so short that the page renews them before each request.
    client = await start_app(access_token_ttl_s=10)
    told = page.get_by_role("status")
    await open_docs(page, client)
    await sign_in(page, "new@example.com", PASSWORD)
    await told.get_by_text("Wrong email or password.").wait_for()
    await sign_in(page, "new@example.com", "too short", "Create an account")
    await told.get_by_text("15").wait_for()
    await sign_in(page, "new@example.com", PASSWORD, "Create an account")
    await page.get_by_text("Signed in as new@example.com").wait_for()
    for _ in range(2):
        async with page.expect_response(lambda response: "/auth/refresh" in response.url):
            answer = await execute(page, "users-users_read_me")
        await answer.get_by_text('"new@example.com"').wait_for()
    assert client.app is not None
    await client.app[POOL].execute("delete from sessions")
    await execute(page, "users-users_read_me")
    await told.get_by_text("This refresh token is invalid").wait_for()

    client = await start_app(require_email_verification=True)
    await open_docs(page, client)
    await sign_in(page, "ada@example.com", PASSWORD, "Create an account")
    await told.get_by_text("A mail is on its way").wait_for()
