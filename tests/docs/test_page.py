"""The pages at / and /docs: their files over HTTP, and /docs in a browser if one is installed."""

import gzip
import re
from typing import TYPE_CHECKING

import pytest

from service import __version__
from service.auth.guards import optionally_signed_in
from service.docs import handlers
from service.routes import ROUTES
from tests.support.browser import execute, open_docs, overflow_width, sign_in
from tests.support.clients import Client, StartApp, pool_of
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.probes import make_patient
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from playwright.async_api import Page

FILES = {route.path for route in ROUTES if route.handler.__module__ == handlers.__name__}


async def test_files_are_compressed_cached_and_revalidated(client: Client) -> None:
    for path in FILES:
        encodings = ("gzip", "identity")
        responses = [
            # Raw: neither decompressed nor checked against the API's description.
            await client.get(
                path,
                headers={"Accept-Encoding": encoding},
                auto_decompress=False,
                middlewares=(),
            )
            for encoding in encodings
        ]
        compressed, plain = [await response.read() for response in responses]
        assert gzip.decompress(compressed) == plain
        assert responses[0].headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in responses[1].headers
        assert responses[0].headers["ETag"] != responses[1].headers["ETag"]
        for response, encoding in zip(responses, encodings, strict=True):
            assert response.status == 200
            assert response.headers["Vary"] == "Accept-Encoding"
            assert response.headers["Cache-Control"] == "public, no-cache"
            known = {"Accept-Encoding": encoding, "If-None-Match": response.headers["ETag"]}
            again = await client.get(path, headers=known)
            assert (again.status, await again.read()) == (304, b"")
            assert again.headers["ETag"] == response.headers["ETag"]
        stale = await client.get(path, headers={"If-None-Match": '"another"'})
        assert stale.status == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_has_no_inline_code_and_no_external_resources(client: Client, path: str) -> None:
    text = await (await client.get(path)).text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|javascript:", text)
    for attributes, content in re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL):
        assert 'src="/docs/' in attributes
        assert content == ""
    for url in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert url.startswith(("/", "data:image/svg+xml,")), url
        assert not url.startswith("//"), url


async def test_page_may_load_only_its_own_scripts_and_styles(client: Client) -> None:
    response = await client.get("/docs")
    assert response.headers["Content-Security-Policy"] == handlers.DOCS_POLICY


async def test_root_names_the_service_and_its_version(client: Client) -> None:
    response = await client.get("/")
    assert (response.status, response.content_type) == (200, "text/html")
    text = await response.text()
    assert "<title>Shinkei</title>" in text
    assert __version__ in text


async def test_every_link_of_the_root_leads_somewhere(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patient(monkeypatch)
    links = set(re.findall(r'<a href="([^"]*)"', await (await client.get("/")).text()))
    assert links == {"/docs", "/openapi.json", "/health"}
    for link in links:
        assert (await client.get(link)).status == 200, link


async def test_root_runs_no_scripts(client: Client) -> None:
    response = await client.get("/")
    assert response.status == 200
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert not any(directive.startswith(("script-src", "connect-src")) for directive in policy)
    assert "<script" not in await response.text()


async def test_root_is_a_page_whatever_the_client_accepts(client: Client) -> None:
    for accepted in ("application/json", "*/*", "image/png"):
        response = await client.get("/", headers={"Accept": accepted})
        assert (response.status, response.content_type) == (200, "text/html"), accepted


async def test_docs_can_be_turned_off(start_app: StartApp) -> None:
    client = await start_app(docs=False)
    for path in FILES:
        # Responses are checked against the description of the default settings.
        await assert_problem(await client.get(path, middlewares=()), 404, "not_found")
    described = await (await client.get("/openapi.json")).json()
    assert "/api/v1/users/me" in described["paths"]
    assert not FILES & set(described["paths"])


@pytest.mark.asvs("3.4.3", "6.2.6", "7.4.4", "14.3.1", "14.3.3")
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_user_signs_in_and_tries_a_request(page: "Page", client: Client) -> None:
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
    # Probes and files come last.
    assert await page.locator(".opblock-tag").first.get_attribute("data-tag") == "users"
    assert await page.get_by_label("Password", exact=True).get_attribute("type") == "password"
    await sign_in(page, email, account.password)
    await page.get_by_text(f"Signed in as {email}").wait_for()
    response = await execute(page, "users-users_read_me")
    await response.get_by_text(f'"{email}"').wait_for()
    assert (await response.locator(".response-col_status").first.inner_text()).strip() == "200"

    assert complaints == []

    # The session ends elsewhere; the browser itself logs the 401.
    await client.delete("/api/v1/users/me/sessions", headers=account.headers)
    await execute(page, "users-users_read_me")
    message = page.get_by_role("status").get_by_text("The session has ended. Sign in again.")
    await message.wait_for()
    # Swagger UI shows a closed lock wherever the token is optional.
    optional = sum(route.access is optionally_signed_in for route in ROUTES)
    locked = page.locator(".authorization__btn .locked")

    async def only_those_are_locked() -> bool:
        return await locked.count() == optional

    await eventually(only_those_are_locked)
    (complaint,) = await eventually(lambda: complaints)
    assert "401" in complaint
    complaints.clear()

    # Nothing is stored, and nothing remains after signing out.
    await sign_in(page, email, account.password)
    await page.get_by_text(f"Signed in as {email}").wait_for()

    async def others_are_locked() -> bool:
        return await locked.count() > optional

    await eventually(others_are_locked)
    stored = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert stored == [0, 0, ""]
    assert await page.get_by_label("Password", exact=True).input_value() == ""
    for width in (1280, 768, 360):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await overflow_width(page) <= 0, width
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name="Sign in", exact=True).wait_for()
    await page.locator(".opblock").first.wait_for()
    assert email not in await page.locator("body").inner_text()
    me = await client.get("/api/v1/users/me", headers=account.headers)
    assert me.status == 200, "only the session of the page has ended"
    sessions = await client.get("/api/v1/users/me/sessions", headers=account.headers)
    assert len((await sessions.json())["items"]) == 1

    assert complaints == []
    assert hosts == {client.make_url("/").authority}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_page_reports_problems_and_renews_its_tokens(
    page: "Page", start_app: StartApp
) -> None:
    # Tokens so short-lived that the page renews them before each request.
    client = await start_app(access_token_ttl_s=10)
    message = page.get_by_role("status")
    await open_docs(page, client)
    await sign_in(page, "new@example.com", PASSWORD)
    await message.get_by_text("Wrong email or password.").wait_for()
    await sign_in(page, "new@example.com", "too short", "Create an account")
    await message.get_by_text("15").wait_for()
    await sign_in(page, "new@example.com", PASSWORD, "Create an account")
    await page.get_by_text("Signed in as new@example.com").wait_for()
    for _ in range(2):
        async with page.expect_response(lambda response: "/auth/refresh" in response.url):
            response = await execute(page, "users-users_read_me")
        await response.get_by_text('"new@example.com"').wait_for()
    await pool_of(client).execute("delete from sessions")
    await execute(page, "users-users_read_me")
    await message.get_by_text("This refresh token is invalid").wait_for()

    client = await start_app(require_email_verification=True)
    await open_docs(page, client)
    await sign_in(page, "ada@example.com", PASSWORD, "Create an account")
    await message.get_by_text("Check your email").wait_for()
