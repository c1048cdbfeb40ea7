"""Whoever proves an unverified mailbox gets the account to themselves.

A squatter registers somebody else's email and knows the password. Only the owner of the mailbox
receives the links.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, bearer, register, register_as
from tests.support.holding import holding
from tests.support.mailbox import next_mail, token_of
from tests.support.steps import (
    NEW_PASSWORD,
    RESET,
    change_email,
    delete_account,
    forgot,
    is_signed_in,
    link_about,
    mail_reset,
    mails,
    refresh,
    resend,
    reset,
    send,
    sign_in,
    sign_in_again,
    verify,
)

OWNERS = "ada@example.com"
SQUATTERS = "squatter@example.com"
VERIFY = "Confirm your email address"
CHANGE = "Confirm your new email address"
ROW = "select from users for update"
# Would send the owner's data to a server of the squatter's.
SETTINGS = {"llm_base_url": "https://squatter.example.com/"}


class Squatter:
    """Somebody who registered the owner's email, and the sessions they opened."""

    def __init__(self) -> None:
        self.account = Account({"email": OWNERS}, PASSWORD, {}, {})
        self.sessions: list[Account] = []

    async def keep_session(self, response: ClientResponse) -> None:
        """Remember the session that a sign-in or a registration opened, if it did."""
        if response.status in (200, 201):
            tokens = await response.json()
            headers = bearer(tokens["access_token"])
            self.sessions.append(self.account._replace(headers=headers, tokens=tokens))


async def squat(client: Client) -> Squatter:
    squatter = Squatter()
    body = {"email": OWNERS, "password": PASSWORD, "name": "Squatter"}
    await squatter.keep_session(await send(client, "POST", "/auth/register", body))
    for session in squatter.sessions:
        change = {"settings": SETTINGS}
        assert (await send(client, "PATCH", "/users/me", change, by=session)).status == 200
    return squatter


async def owner_registers(client: Client, squatter: Squatter) -> None:
    body = {"email": OWNERS, "password": "the owner's own first choice", "name": "Ada"}
    assert (await send(client, "POST", "/auth/register", body)).status in (202, 409)


async def squatter_requests_a_change(client: Client, squatter: Squatter) -> None:
    for session in squatter.sessions:
        assert (await change_email(client, session, PASSWORD, to=SQUATTERS)).status == 202


async def squatter_signs_in(client: Client, squatter: Squatter) -> None:
    await squatter.keep_session(await sign_in(client, squatter.account))


async def another_link_is_requested(client: Client, squatter: Squatter) -> None:
    assert (await resend(client, OWNERS)).status == 202


Step = Callable[[Client, Squatter], Awaitable[None]]
STEPS: list[Step] = [
    owner_registers,
    squatter_requests_a_change,
    squatter_signs_in,
    another_link_is_requested,
]
ORDERS = list(itertools.permutations(STEPS, 2))
# REQUIRE_EMAIL_VERIFICATION when the squatter registers, and from then on.
REQUIRED = {"optional": (False, False), "required": (True, True), "required later": (False, True)}


async def tokens_to(settings: Settings, conn: Any, email: str, subject: str) -> list[str]:
    """Return the tokens of all mails to this email with this subject, oldest first."""
    waiting = [to for to, _ in await mails(settings.data_dir, conn) if to == email]
    found = [await next_mail(settings.data_dir, email) for _ in waiting]
    return [token_of(mail) for mail in found if str(mail["Subject"]) == subject]


async def by_link(client: Client, settings: Settings, conn: Any) -> None:
    """Open every mailed link in turn: only the newest works."""
    tokens = await tokens_to(settings, conn, OWNERS, VERIFY)
    used = [await verify(client, token, new_password=NEW_PASSWORD) for token in tokens]
    assert [response.status for response in used] == [400] * (len(tokens) - 1) + [200]


async def by_reset(client: Client, settings: Settings, conn: Any) -> None:
    assert (await forgot(client, OWNERS)).status == 202
    (token,) = await tokens_to(settings, conn, OWNERS, RESET)
    assert (await reset(client, token)).status == 204


Prove = Callable[[Client, Settings, Any], Awaitable[None]]
proving = pytest.mark.parametrize("prove", [by_link, by_reset], ids=["by link", "by reset"])


def orders() -> Iterator[Any]:
    """Yield all orders, settings and proofs. The quick tests have each order, and each of the rest."""
    proofs = {"by link": by_link, "by reset": by_reset}
    rest = list(itertools.product(REQUIRED.items(), proofs.items()))
    for number, steps in enumerate(ORDERS):
        for index, ((required, values), (proof, prove)) in enumerate(rest):
            yield pytest.param(
                steps,
                values,
                prove,
                id="-".join([*(step.__name__ for step in steps), required, proof]),
                marks=[] if index == number % len(rest) else pytest.mark.slow,
            )


async def assert_locked_out(client: Client, squatter: Squatter) -> None:
    """Assert that the squatter can neither sign in nor use a session."""
    assert (await sign_in(client, squatter.account)).status == 401
    for session in squatter.sessions:
        assert not await is_signed_in(client, session)
        assert (await refresh(client, session.tokens["refresh_token"])).status == 401


async def profile_of_owner(client: Client) -> Any:
    owner = await sign_in_again(client, Account({"email": OWNERS}, NEW_PASSWORD, {}, {}))
    return await (await send(client, "GET", "/users/me", by=owner)).json()


@pytest.mark.parametrize(("steps", "required", "prove"), list(orders()))
async def test_squatter_loses_the_account_to_the_mailbox(
    start_app: StartApp,
    settings: Settings,
    conn: Any,
    steps: tuple[Step, ...],
    required: tuple[bool, bool],
    prove: Prove,
) -> None:
    squatter = await squat(await start_app(require_email_verification=required[0]))
    client = await start_app(require_email_verification=required[1])
    for step in steps:
        await step(client, squatter)
    await prove(client, settings, conn)
    await assert_locked_out(client, squatter)
    for token in await tokens_to(settings, conn, SQUATTERS, CHANGE):
        assert (await verify(client, token)).status == 400
    assert (await profile_of_owner(client))["email_verified"] is True


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("proof", ["password", "session"])
async def test_owner_who_registered_first_keeps_everything(
    start_app: StartApp, settings: Settings, required: bool, proof: str
) -> None:
    owner = await register(await start_app(), email=OWNERS, name="Ada")
    client = await start_app(require_email_verification=required)
    body = {"email": OWNERS, "password": "a phrase of the squatter's", "name": "Squatter"}
    await send(client, "POST", "/auth/register", body)
    token = await link_about(settings.data_dir, OWNERS, VERIFY)
    used = await verify(client, token, by=owner if proof == "session" else None)
    assert used.status == 200
    me = await (await send(client, "GET", "/users/me", by=owner)).json()
    assert (me["name"], me["email_verified"]) == ("Ada", True)
    assert (await sign_in(client, owner)).status == 200


@proving
async def test_name_and_settings_of_a_squatter_are_cleared(
    client: Client, settings: Settings, conn: Any, prove: Prove
) -> None:
    await squat(client)
    await prove(client, settings, conn)
    me = await profile_of_owner(client)
    assert (me["name"], me["settings"]) == ("", {})


@proving
async def test_name_and_settings_given_by_an_administrator_are_kept(
    client: Client, settings: Settings, conn: Any, prove: Prove
) -> None:
    admin = await register_as(client, "admin")
    body = {"email": OWNERS, "name": "Ada", "settings": {"ui_theme": "dark"}}
    assert (await send(client, "POST", "/users", body, by=admin)).status == 201
    await link_about(settings.data_dir, OWNERS, RESET)
    assert (await resend(client, OWNERS)).status == 202
    await prove(client, settings, conn)
    me = await profile_of_owner(client)
    assert (me["name"], me["settings"]) == ("Ada", {"ui_theme": "dark"})


async def test_reset_of_a_verified_account_keeps_the_profile(
    client: Client, settings: Settings, conn: Any
) -> None:
    await register(client, email=OWNERS, name="Ada")
    await conn.execute("update users set email_verified_at = now()")
    await link_about(settings.data_dir, OWNERS, VERIFY)
    await by_reset(client, settings, conn)
    assert (await profile_of_owner(client))["name"] == "Ada"


@proving
async def test_networks_of_a_squatter_are_forgotten(
    client: Client, settings: Settings, conn: Any, prove: Prove
) -> None:
    await squat(client)
    await conn.execute("update known_networks set network = '203.0.113.0/24'")
    await prove(client, settings, conn)
    assert await conn.fetchval("select count(*) from known_networks") == 1


@proving
async def test_networks_of_other_accounts_are_kept(
    client: Client, settings: Settings, conn: Any, prove: Prove
) -> None:
    other = await register(client)
    await squat(client)
    await prove(client, settings, conn)
    known = "select count(*) from known_networks where user_id = $1"
    assert await conn.fetchval(known, other.profile["id"]) == 1


async def test_reset_of_a_verified_account_keeps_its_networks(
    client: Client, settings: Settings, conn: Any
) -> None:
    await register(client, email=OWNERS)
    await conn.execute("update users set email_verified_at = now()")
    await conn.execute("update known_networks set network = '203.0.113.0/24'")
    await link_about(settings.data_dir, OWNERS, VERIFY)
    await by_reset(client, settings, conn)
    assert await conn.fetchval("select count(*) from known_networks") == 2


async def test_new_password_ends_reset_links(client: Client, settings: Settings) -> None:
    account = await register(client)
    email = account.profile["email"]
    verifying = await link_about(settings.data_dir, email, VERIFY)
    resetting = await mail_reset(client, settings.data_dir, account)
    assert (await verify(client, verifying, new_password=NEW_PASSWORD)).status == 200
    assert (await reset(client, resetting, "a third phrase, for the road")).status == 400


async def test_reset_ends_the_verification_link(client: Client, settings: Settings) -> None:
    account = await register(client)
    verifying = await link_about(settings.data_dir, account.profile["email"], VERIFY)
    token = await mail_reset(client, settings.data_dir, account)
    assert (await reset(client, token)).status == 204
    assert (await verify(client, verifying, password=NEW_PASSWORD)).status == 400


async def test_account_scheduled_for_deletion_by_a_squatter_is_kept_by_signing_in(
    client: Client, settings: Settings, conn: Any
) -> None:
    squatter = await squat(client)
    assert (await delete_account(client, squatter.sessions[0], PASSWORD)).status == 202
    await by_link(client, settings, conn)
    await profile_of_owner(client)
    assert await conn.fetchval("select status from users") == "active"


@pytest.mark.parametrize("first", ["owner", "squatter"])
@pytest.mark.parametrize("act", ["signs in", "refreshes", "requests a change"])
async def test_squatter_who_acts_at_the_same_moment_is_locked_out(
    client: Client, settings: Settings, conn: Any, act: str, first: str
) -> None:
    squatter = await squat(client)
    token = await link_about(settings.data_dir, OWNERS, VERIFY)
    session = squatter.sessions[0]
    acts: dict[str, Callable[[], Awaitable[ClientResponse]]] = {
        "signs in": lambda: sign_in(client, squatter.account),
        "refreshes": lambda: refresh(client, session.tokens["refresh_token"]),
        "requests a change": lambda: change_email(client, session, PASSWORD, to=SQUATTERS),
    }
    async with holding(conn, ROW) as start:
        if first == "squatter":
            acting = await start(acts[act]())
        proved = await start(verify(client, token, new_password=NEW_PASSWORD))
        if first == "owner":
            acting = await start(acts[act]())
    assert (await proved).status == 200
    await squatter.keep_session(await acting)
    await assert_locked_out(client, squatter)
    for changing in await tokens_to(settings, conn, SQUATTERS, CHANGE):
        assert (await verify(client, changing)).status == 400


@pytest.mark.parametrize("first", ["owner", "squatter"])
@pytest.mark.parametrize("proof", ["password", "session"])
async def test_squatter_and_owner_never_both_use_their_links(
    client: Client, settings: Settings, conn: Any, proof: str, first: str
) -> None:
    """If the squatter's change of email wins, the owner's email is free to register."""
    squatter = await squat(client)
    await squatter_requests_a_change(client, squatter)
    owners = await link_about(settings.data_dir, OWNERS, VERIFY)
    squatters = await link_about(settings.data_dir, SQUATTERS, CHANGE)
    by = squatter.sessions[0] if proof == "session" else None
    async with holding(conn, ROW) as start:
        if first == "squatter":
            changed = await start(verify(client, squatters, by=by))
        proved = await start(verify(client, owners, new_password=NEW_PASSWORD))
        if first == "owner":
            changed = await start(verify(client, squatters, by=by))
    statuses = {"owner": (await proved).status, "squatter": (await changed).status}
    assert statuses.pop(first) == 200
    assert set(statuses.values()) == {400}
    body = {"email": OWNERS, "password": PASSWORD}
    again = await send(client, "POST", "/auth/register", body)
    assert again.status == (409 if first == "owner" else 201)
