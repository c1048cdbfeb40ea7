"""Second factors and passkeys on the page at /docs, in a real browser with an authenticator."""

from base64 import b32decode
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import (
    add_authenticator,
    open_docs,
    open_factors,
    sign_in,
    sign_out,
)
from tests.support.clients import Client
from tests.support.factories import register
from tests.support.factors import App, add_totp, age_proofs, forget_used_codes, sign_in_with

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT_REQUESTS_FOR_PASSKEYS = """
window.askedForPasskeys = 0;
const ask = navigator.credentials.get.bind(navigator.credentials);
navigator.credentials.get = (options) => {
  window.askedForPasskeys += 1;
  return ask(options);
};
"""


async def add_passkey(page: "Page", name: str) -> None:
    """Add a passkey, and close the dialog."""
    dialog = await open_factors(page)
    await dialog.get_by_label("Name (optional)").fill(name)
    await dialog.get_by_role("button", name="Add a passkey").click()
    await dialog.get_by_role("heading", name="Recovery codes").wait_for()
    await page.keyboard.press("Escape")


def proof_of(page: "Page") -> "Locator":
    return page.get_by_role("dialog", name="Prove that the account is yours")


async def send(dialog: "Locator", label: str, text: str) -> None:
    """Fill in the field and submit it."""
    field = dialog.get_by_label(label)
    await field.fill(text)
    await field.press("Enter")


@pytest.mark.asvs("6.3.3")
async def test_a_passkey_signs_in_until_it_is_removed(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    email = account.profile["email"]
    signed_in = page.get_by_text(f"Signed in as {email}")
    user = await add_authenticator(page)
    await page.add_init_script(COUNT_REQUESTS_FOR_PASSKEYS)
    await open_docs(page, localhost)
    await sign_in(page, email, account.password)
    await signed_in.wait_for()
    await add_passkey(page, "Laptop")

    # Without a name.
    await user.set_user(present=False)
    await sign_out(page)
    # Otherwise, the page would sign in by itself.
    await page.wait_for_function("askedForPasskeys")
    await user.set_user(present=True)
    await page.get_by_role("button", name="Use a passkey").click()
    await signed_in.wait_for()

    # As the second factor.
    await user.set_user(present=False)
    await sign_out(page)
    await sign_in(page, email, account.password)
    proof = proof_of(page)
    await proof.wait_for()
    assert not await proof.get_by_label("Code from your app").is_visible()
    await user.set_user(present=True)
    await proof.get_by_role("button", name="Use a passkey").click()
    await signed_in.wait_for()

    dialog = await open_factors(page)
    await dialog.get_by_role("button", name="Add a passkey").click()
    await dialog.get_by_text("You have a passkey for this account here already.").wait_for()
    page.on("dialog", lambda question: question.accept())
    await dialog.get_by_role("button", name="Remove Laptop").click()
    await dialog.get_by_label("Passkey, added").wait_for(state="detached")
    await page.keyboard.press("Escape")
    # The authenticator still has the passkey, and would answer at once that it is there.
    await user.set_user(present=False)
    await sign_out(page)
    await sign_in(page, email, account.password)
    await signed_in.wait_for()


async def test_the_browser_offers_a_passkey_where_it_fills_in_the_email(
    page: "Page", localhost: Client
) -> None:
    account = await register(localhost)
    await add_authenticator(page)
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    await add_passkey(page, "Laptop")
    async with page.expect_response(lambda response: response.url.endswith("/auth/passkey")):
        await page.get_by_role("button", name="Sign out").click()
    await page.get_by_text(f"Signed in as {account.profile['email']}").wait_for()


@pytest.mark.asvs("6.3.3")
async def test_an_app_signs_in_with_its_codes_or_recovery_codes(
    page: "Page", localhost: Client
) -> None:
    account = await register(localhost)
    email = account.profile["email"]
    signed_in = page.get_by_text(f"Signed in as {email}")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_docs(page, localhost)
    await sign_in(page, email, account.password)

    dialog = await open_factors(page)
    await dialog.get_by_role("button", name="Add an app").click()
    qr = dialog.get_by_alt_text("QR code of the key")
    await qr.wait_for()
    assert await qr.evaluate("async image => { await image.decode(); return image.naturalWidth }")
    app = App("", b32decode(await dialog.locator("code").inner_text()), None)
    await send(dialog, "Code that the app shows", app.wrong_code())
    await dialog.get_by_text("The code is wrong").wait_for()
    code = app.code()
    await send(dialog, "Code that the app shows", f"{code[:3]} {code[3:]}")
    await dialog.get_by_role("heading", name="Recovery codes").wait_for()
    codes = (await dialog.locator("pre").inner_text()).split()
    assert len(codes) == 10
    await dialog.get_by_role("button", name="Copy").click()
    await dialog.get_by_text("Copied.").wait_for()
    assert (await page.evaluate("navigator.clipboard.readText()")).split() == codes
    await page.keyboard.press("Escape")

    await sign_out(page)
    await sign_in(page, email, account.password)
    await send(proof_of(page), "Code from your app", app.wrong_code())
    await proof_of(page).get_by_text("The code is wrong, or has been used already.").wait_for()
    await send(proof_of(page), "Code from your app", app.code(1))
    await signed_in.wait_for()

    await sign_out(page)
    await sign_in(page, email, account.password)
    await send(proof_of(page), "Recovery code", codes[0])
    await signed_in.wait_for()
    dialog = await open_factors(page)
    await dialog.get_by_text("Recovery codes left: 9").wait_for()
    assert not await dialog.locator("pre").inner_text(), "the codes are still in the page"


async def test_too_many_wrong_codes_end_the_sign_in(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    app = await add_totp(localhost, account.headers)
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    for _ in range(5):
        async with page.expect_response(lambda response: "/second-factor" in response.url):
            await send(proof_of(page), "Code from your app", app.wrong_code())
        # Only now does the form take another.
        await proof_of(page).get_by_text("The code is wrong").wait_for()
    await send(proof_of(page), "Code from your app", app.code(1))
    await proof_of(page).wait_for(state="hidden")
    await page.get_by_role("status").get_by_text("Start again.").wait_for()


@pytest.mark.asvs("7.5.1")
async def test_an_old_proof_is_asked_for_again(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    app = await add_totp(localhost, account.headers)
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    await send(proof_of(page), "Code from your app", app.code(1))
    dialog = await open_factors(page)
    await send(dialog, "App, added", "Phone")
    await dialog.get_by_role("button", name="Remove Phone").wait_for()

    await age_proofs(localhost)
    await forget_used_codes(localhost)
    make = dialog.get_by_role("button", name="Make new codes")
    await make.click()
    assert not await proof_of(page).get_by_label("Your password").is_visible()
    await proof_of(page).get_by_role("button", name="Cancel").click()
    await dialog.get_by_text("Nothing has changed.").wait_for()
    await make.click()
    await send(proof_of(page), "Code from your app", app.code())
    await dialog.get_by_role("heading", name="Recovery codes").wait_for()
    codes = (await dialog.locator("pre").inner_text()).split()
    assert app.recovery_codes is not None
    assert not set(codes) & set(app.recovery_codes)
    await sign_in_with(localhost, account, recovery_code=codes[0])


async def test_dialogs_close_when_the_session_ends(page: "Page", localhost: Client) -> None:
    account = await register(localhost)
    await open_docs(page, localhost)
    await sign_in(page, account.profile["email"], account.password)
    dialog = await open_factors(page)
    await localhost.delete("/api/v1/users/me/sessions", headers=account.headers)
    await dialog.get_by_role("button", name="Add an app").click()
    await page.get_by_role("button", name="Sign in", exact=True).wait_for()
    await dialog.wait_for(state="hidden")
    await page.get_by_role("status").get_by_text("session").wait_for()
