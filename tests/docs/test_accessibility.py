"""Accessibility of the pages: the rules of axe-core, and the keyboard."""

import itertools
from base64 import b32decode
from typing import TYPE_CHECKING, Literal

import pytest

from service.routes import ROUTES
from tests.support.browser import (
    add_authenticator,
    execute,
    find_violations,
    open_docs,
    open_factors,
    open_lock,
    overflow_width,
    sign_in,
    sign_out,
)
from tests.support.clients import Client
from tests.support.factories import register
from tests.support.factors import App, age_proofs

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

READ_ME = "users-users_read_me"
FOCUSED = """() => {
  const { activeElement: found } = document;
  const { outlineStyle, outlineWidth } = getComputedStyle(found);
  const { top, bottom } = found.getBoundingClientRect();
  const header = document.querySelector("header");
  const covered = header.contains(found) ? 0 : header.getBoundingClientRect().bottom;
  return {
    at: [...document.querySelectorAll("*")].indexOf(found),
    name: found.outerHTML.slice(0, 120),
    outlined: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2,
    visible: bottom > covered && top < innerHeight,
  };
}"""
FOCUSABLE = """() => [...document.querySelectorAll("*")].flatMap((found, at) =>
  found.matches("a[href], button, input, select, textarea, [tabindex]") && found.tabIndex >= 0 &&
  found.checkVisibility({ visibilityProperty: true }) ? [at] : [])"""


async def check(page: "Page", state: str, within: str | None = None) -> None:
    """Check the page as it is, in both schemes and at both widths."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme, (width, height) in itertools.product(schemes, ((1280, 900), (390, 844))):
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size({"width": width, "height": height})
        where = (state, scheme, width)
        assert await find_violations(page, within) == [], where
        assert await overflow_width(page) <= 0, where


async def test_root_has_no_violations(page: "Page", client: Client) -> None:
    await page.goto(str(client.make_url("/")))
    await check(page, "open")


async def test_docs_have_no_violations(page: "Page", client: Client) -> None:
    account = await register(client)
    await open_docs(page, client)
    await check(page, "before signing in")
    await sign_in(page, "nobody@example.com", account.password)
    await page.get_by_text("Wrong email or password.").wait_for()
    await check(page, "an error")
    dialog = await open_lock(page, READ_ME)
    await check(page, "the dialog")
    await dialog.get_by_label("Value").fill("a token")
    await dialog.get_by_role("button", name="Authorize").click()
    await dialog.get_by_role("button", name="Logout").wait_for()
    await check(page, "the dialog, authorized")
    await page.keyboard.press("Escape")
    await sign_in(page, account.profile["email"], account.password)
    await page.get_by_text("Signed in as").wait_for()
    response = await execute(page, "users-users_merge_me")
    await response.get_by_text("200").first.wait_for()
    await page.locator("#operations-admin-admin_list_users .opblock-summary-control").click()
    await page.locator("#operations-admin-admin_list_users .execute").wait_for()
    await page.locator(".models button").first.click()
    await check(page, "signed in, with open operations")


async def test_second_factors_have_no_violations(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    user = await add_authenticator(page)
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    dialog = await open_factors(page)
    await check(page, "no factors", "dialog[open]")
    await age_proofs(localhost)
    await dialog.get_by_role("button", name="Add an app").click()
    proof = page.get_by_role("dialog", name="Prove that the account is yours")
    await proof.get_by_label("Your password").fill("not the right one")
    await proof.get_by_role("button", name="Continue").click()
    await proof.get_by_text("password is wrong").wait_for()
    await check(page, "a wrong password", "dialog[open]")
    await proof.get_by_label("Your password").fill(account.password)
    await proof.get_by_role("button", name="Continue").click()
    await dialog.get_by_label("Code that the app shows").fill("123")
    await dialog.get_by_role("button", name="Confirm").click()
    await dialog.get_by_text("Must be at least").wait_for()
    await check(page, "an app to be confirmed", "dialog[open]")
    app = App("", b32decode(await dialog.locator("code").inner_text()), None)
    await dialog.get_by_label("Code that the app shows").fill(app.code())
    await dialog.get_by_role("button", name="Confirm").click()
    await dialog.get_by_role("heading", name="Recovery codes").wait_for()
    await check(page, "recovery codes", "dialog[open]")
    await dialog.get_by_role("button", name="Add a passkey").click()
    await dialog.get_by_text("Passkey, added").wait_for()
    await check(page, "an app and a passkey", "dialog[open]")
    await page.keyboard.press("Escape")
    await user.set_user(present=False)
    await sign_out(page)
    await sign_in(page, account.profile["email"], account.password)
    await proof.wait_for()
    await check(page, "all ways to complete a sign-in", "dialog[open]")


async def test_focus_returns_from_dialogs(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    focused = "element => element === document.activeElement"
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    dialog = await open_factors(page)
    assert await dialog.get_by_role("heading").evaluate(focused)
    await age_proofs(localhost)
    add = dialog.get_by_role("button", name="Add an app")
    await add.click()
    proof = page.get_by_role("dialog", name="Prove that the account is yours")
    assert await proof.get_by_label("Your password").evaluate(focused)
    await page.keyboard.press("Escape")
    await dialog.get_by_text("Nothing has changed.").wait_for()
    assert await add.evaluate(focused)
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    opener = page.get_by_role("button", name="Second factors", exact=True)
    assert await opener.evaluate(focused)


async def test_tab_reaches_every_control_and_shows_it(page: "Page", client: Client) -> None:
    await open_docs(page, client)
    controls = await page.evaluate(FOCUSABLE)
    # Each operation has one that opens it, and one that copies its path.
    assert len(controls) > 2 * len(ROUTES)
    for at in controls:
        await page.keyboard.press("Tab")
        focused = await page.evaluate(FOCUSED)
        assert focused["at"] == at, focused
        assert focused["outlined"], focused
        assert focused["visible"], focused


async def test_dialog_takes_a_token(page: "Page", client: Client) -> None:
    account = await register(client)
    await open_docs(page, client)
    dialog = await open_lock(page, READ_ME)
    await page.keyboard.insert_text(account.tokens["access_token"])
    await dialog.get_by_role("button", name="Authorize").click()
    await dialog.get_by_role("button", name="Close").last.click()
    response = await execute(page, READ_ME)
    await response.get_by_text(f'"{account.profile["email"]}"').wait_for()


async def test_closing_the_dialog_returns_focus_to_its_lock(page: "Page", client: Client) -> None:
    await open_docs(page, client)
    lock = page.locator(f"#operations-{READ_ME} .authorization__btn")
    for button in ("Authorize", "Close", None):
        dialog = await open_lock(page, READ_ME)
        if button:
            await dialog.get_by_role("button", name=button).last.click()
        await page.keyboard.press("Escape")
        await dialog.wait_for(state="hidden")
        assert await lock.evaluate("lock => lock === document.activeElement"), button


async def test_focus_stays_in_the_open_dialog(page: "Page", client: Client) -> None:
    await open_docs(page, client)
    dialog = await open_lock(page, READ_ME)
    outside = "() => !document.activeElement.matches('body, [role=dialog] *')"
    inside = await dialog.locator("input, button").count()
    for _ in range(2 * inside):
        await page.keyboard.press("Tab")
        assert not await page.evaluate(outside)
    await dialog.get_by_label("Value").fill("a token")
    await dialog.get_by_role("button", name="Authorize").press("Enter")
    await dialog.get_by_role("button", name="Logout").wait_for()
    assert await dialog.evaluate("dialog => dialog.contains(document.activeElement)")


async def test_dialog_signs_the_page_out(page: "Page", client: Client) -> None:
    account = await register(client)
    await open_docs(page, client)
    await sign_in(page, account.profile["email"], account.password)
    await page.get_by_text("Signed in as").wait_for()
    dialog = await open_lock(page, READ_ME)
    await dialog.get_by_role("button", name="Logout").click()
    await page.get_by_role("status").get_by_text("Signed out.").wait_for()
    sessions = await client.get("/api/v1/users/me/sessions", headers=account.headers)
    assert len((await sessions.json())["items"]) == 1


async def test_focus_follows_signing_in_and_out(page: "Page", client: Client) -> None:
    account = await register(client)
    password = page.get_by_label("Password", exact=True)
    focused = "element => element === document.activeElement"
    await open_docs(page, client)

    await sign_in(page, account.profile["email"], "not the right one")
    await page.get_by_role("status").get_by_text("Wrong email or password.").wait_for()
    assert await page.get_by_role("button", name="Sign in", exact=True).evaluate(focused)

    await password.fill(account.password)
    await password.press("Enter")
    await page.get_by_text("Signed in as").wait_for()
    assert await page.locator("#signed-in").evaluate(focused)

    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.get_by_role("status").get_by_text("Signed out.").wait_for()
    assert await page.get_by_label("Email", exact=True).evaluate(focused)
