"""What a change of an account's secrets, or its standing, takes away: sessions and links."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import Account, register, register_as
from tests.support.steps import (
    NEW_PASSWORD,
    change_email,
    change_password,
    delete_account,
    forgot,
    is_signed_in,
    link_about,
    mail_reset,
    refresh,
    reset,
    send,
    sign_in_again,
    verify,
)

Ending = Callable[[Client, Settings, Account, Account], Awaitable[Any]]


async def by_reset(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    token = await mail_reset(client, settings.data_dir, account)
    assert (await reset(client, token)).status == 204


async def by_change_of_password(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    elsewhere = await sign_in_again(client, account)
    assert (await change_password(client, elsewhere, account.password)).status == 204


async def by_deletion(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    assert (await delete_account(client, account, account.password)).status == 202


async def by_giving_the_address_back(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await move(client, settings, account, "thief@example.com")
    token = await link_about(
        settings.data_dir,
        account.profile["email"],
        "The email address of your account was changed",
    )
    assert (await verify(client, token)).status == 204


async def by_suspension(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    path = f"/users/{account.profile['id']}/suspend"
    assert (await send(client, "POST", path, {"reason": "spam"}, by=admin)).status == 200


async def by_an_administrators_deletion(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    assert (await send(client, "DELETE", f"/users/{account.profile['id']}", by=admin)).status == 200


async def by_an_administrator(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    path = f"/users/{account.profile['id']}/sessions"
    assert (await send(client, "DELETE", path, by=admin)).status == 204


async def by_its_owner_elsewhere(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    elsewhere = await sign_in_again(client, account)
    assert (await send(client, "DELETE", "/users/me/sessions", by=elsewhere)).status == 204


async def by_logout(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    assert (await send(client, "POST", "/auth/logout", by=account)).status == 204


ENDINGS: list[Ending] = [
    by_reset,
    by_change_of_password,
    by_deletion,
    by_giving_the_address_back,
    by_suspension,
    by_an_administrators_deletion,
    by_an_administrator,
    by_its_owner_elsewhere,
    by_logout,
]


async def move(client: Client, settings: Settings, account: Account, to: str) -> None:
    """Verify the account's email, and change it."""
    email = account.profile["email"]
    token = await link_about(settings.data_dir, email, "Confirm your email address")
    assert (await verify(client, token)).status == 204
    assert (await change_email(client, account, account.password, to=to)).status == 202
    token = await link_about(settings.data_dir, to, "Confirm your new email address")
    assert (await verify(client, token)).status == 204


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_a_session_is_ended(client: Client, settings: Settings, end: Ending) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    await end(client, settings, account, admin)
    assert not await is_signed_in(client, account)


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_its_refresh_token_is_ended_too(
    client: Client, settings: Settings, end: Ending
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    await end(client, settings, account, admin)
    assert (await refresh(client, account.tokens["refresh_token"])).status == 401


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_sessions_of_others_live_on(client: Client, settings: Settings, end: Ending) -> None:
    account, other = await register(client), await register(client)
    await end(client, settings, account, await register_as(client, "admin"))
    assert await is_signed_in(client, other)


async def test_a_change_of_password_ends_links_that_set_one(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    assert (await change_password(client, account, account.password)).status == 204
    assert (await reset(client, token)).status == 400


async def test_a_change_of_password_ends_a_change_of_address(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await change_email(client, account, account.password, to="new@example.com")
    token = await link_about(settings.data_dir, "new@example.com", "Confirm your new email address")
    assert (await change_password(client, account, account.password)).status == 204
    assert (await verify(client, token)).status == 400


async def test_a_change_of_password_leaves_the_links_of_others(
    client: Client, settings: Settings
) -> None:
    account, other = await register(client), await register(client)
    token = await mail_reset(client, settings.data_dir, other)
    assert (await change_password(client, account, account.password)).status == 204
    assert (await reset(client, token)).status == 204


async def test_a_change_of_password_leaves_the_link_that_verifies(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    assert (await change_password(client, account, account.password)).status == 204
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    assert (await verify(client, token)).status == 204


async def test_a_reset_ends_a_change_of_address(client: Client, settings: Settings) -> None:
    account = await register(client)
    await change_email(client, account, account.password, to="thief@example.com")
    token = await link_about(
        settings.data_dir, "thief@example.com", "Confirm your new email address"
    )
    await by_reset(client, settings, account, account)
    assert (await verify(client, token)).status == 400


async def test_a_change_of_address_ends_links_to_the_old_one(
    client: Client, settings: Settings
) -> None:
    """Those that set a password."""
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    await change_email(client, account, account.password, to="new@example.com")
    changing = await link_about(
        settings.data_dir, "new@example.com", "Confirm your new email address"
    )
    assert (await verify(client, changing)).status == 204
    assert (await reset(client, token)).status == 400


async def test_a_change_of_address_ends_the_link_that_verified_the_old_one(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    verifying = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    await change_email(client, account, account.password, to="new@example.com")
    changing = await link_about(
        settings.data_dir, "new@example.com", "Confirm your new email address"
    )
    assert (await verify(client, changing)).status == 204
    assert (await verify(client, verifying)).status == 400


async def test_giving_an_address_back_ends_a_change_that_waits(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await move(client, settings, account, "thief@example.com")
    await change_email(client, account, account.password, to="thief-too@example.com")
    changing = await link_about(
        settings.data_dir, "thief-too@example.com", "Confirm your new email address"
    )
    back = await link_about(
        settings.data_dir,
        account.profile["email"],
        "The email address of your account was changed",
    )
    assert (await verify(client, back)).status == 204
    assert (await verify(client, changing)).status == 400


async def test_giving_an_address_back_takes_the_password_away(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await by_giving_the_address_back(client, settings, account, account)
    body = {"email": account.profile["email"], "password": account.password}
    assert (await send(client, "POST", "/auth/login", body)).status == 401


@pytest.mark.parametrize("kind", ["reset", "verification", "change of address"])
async def test_a_newer_link_ends_the_older(client: Client, settings: Settings, kind: str) -> None:
    account = await register(client)
    email = account.profile["email"]
    await link_about(settings.data_dir, email, "Confirm your email address")

    async def mail() -> str:
        if kind == "reset":
            return await mail_reset(client, settings.data_dir, account)
        if kind == "verification":
            await send(client, "POST", "/auth/email/verify/resend", {"email": email})
            return await link_about(settings.data_dir, email, "Confirm your email address")
        await change_email(client, account, account.password, to="new@example.com")
        return await link_about(
            settings.data_dir, "new@example.com", "Confirm your new email address"
        )

    older, newer = await mail(), await mail()
    use = reset if kind == "reset" else verify
    statuses = [(await use(client, token)).status for token in (older, newer)]
    assert statuses == [400, 204]


@pytest.mark.parametrize("kind", ["reset", "verification"])
async def test_an_expired_link_is_refused(
    client: Client, settings: Settings, conn: Any, kind: str
) -> None:
    account = await register(client)
    if kind == "reset":
        token = await mail_reset(client, settings.data_dir, account)
    else:
        token = await link_about(
            settings.data_dir, account.profile["email"], "Confirm your email address"
        )
    await conn.execute("update action_tokens set expires_at = now() - interval '1 second'")
    response = await (reset if kind == "reset" else verify)(client, token)
    assert response.status == 400


async def test_an_expired_link_has_no_password_looked_at(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    await conn.execute("update action_tokens set expires_at = now() - interval '1 second'")
    assert (await reset(client, token, "password")).status == 400


async def test_a_link_of_another_purpose_has_no_password_looked_at(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    assert (await reset(client, token, "password")).status == 400


@pytest.mark.parametrize("column", ["expires_at", "idle_expires_at"])
async def test_an_expired_session_is_listed_nowhere(client: Client, conn: Any, column: str) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    elsewhere = await sign_in_again(client, account)
    await conn.execute(
        f"update sessions set {column} = now() - interval '1 second' where id ="
        " (select min(id::text)::uuid from sessions where user_id = $1)",
        account.profile["id"],
    )
    own = await send(client, "GET", "/users/me/sessions", by=elsewhere)
    path = f"/users/{account.profile['id']}/sessions"
    others = await send(client, "GET", path, by=admin)
    assert [len((await each.json())["items"]) for each in (own, others)] == [1, 1]


@pytest.mark.parametrize("path", ["/users/me/sessions", "/users/me/export", "/users/{}/sessions"])
async def test_a_list_of_sessions_holds_no_others(client: Client, path: str) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    reader = admin if "{}" in path else account
    response = await send(client, "GET", path.format(account.profile["id"]), by=reader)
    body = await response.json()
    assert len(body["sessions"] if "export" in path else body["items"]) == 1


@pytest.mark.parametrize("kind", ["sessions", "known_networks", "audit_events"])
async def test_an_export_holds_nothing_of_others(client: Client, kind: str) -> None:
    account = await register(client)
    before = await (await send(client, "GET", "/users/me/export", by=account)).json()
    await sign_in_again(client, await register(client))
    after = await (await send(client, "GET", "/users/me/export", by=account)).json()
    assert after[kind] == before[kind]


async def test_an_administrator_ends_no_session_of_another_account(client: Client) -> None:
    """The path says whose session it is."""
    account, admin = await register(client), await register_as(client, "admin")
    own = await (await send(client, "GET", "/users/me/sessions", by=admin)).json()
    path = f"/users/{account.profile['id']}/sessions/{own['items'][0]['id']}"
    assert (await send(client, "DELETE", path, by=admin)).status == 404
    assert await is_signed_in(client, admin)


async def test_a_session_that_was_ended_among_others_is_gone(client: Client) -> None:
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    listed = await (await send(client, "GET", "/users/me/sessions", by=account)).json()
    other = next(item["id"] for item in listed["items"] if not item["current"])
    assert (await send(client, "DELETE", f"/users/me/sessions/{other}", by=account)).status == 204
    assert not await is_signed_in(client, elsewhere)


async def test_a_forgotten_password_leaves_sessions_until_it_is_set(client: Client) -> None:
    account = await register(client)
    assert (await forgot(client, account.profile["email"])).status == 202
    assert await is_signed_in(client, account)


async def test_a_reset_verifies_the_address_that_its_link_was_mailed_to(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await by_reset(client, settings, account, account)
    again = await sign_in_again(client, account._replace(password=NEW_PASSWORD))
    me = await (await send(client, "GET", "/users/me", by=again)).json()
    assert me["email_verified"] is True


async def test_an_older_way_back_outlives_a_newer_one(client: Client, settings: Settings) -> None:
    account = await register(client)
    await move(client, settings, account, "second@example.com")
    await change_email(client, account, account.password, to="third@example.com")
    to_third = await link_about(
        settings.data_dir, "third@example.com", "Confirm your new email address"
    )
    assert (await verify(client, to_third)).status == 204
    subject = "The email address of your account was changed"
    newer = await link_about(settings.data_dir, "second@example.com", subject)
    older = await link_about(settings.data_dir, account.profile["email"], subject)
    assert [(await verify(client, token)).status for token in (newer, older)] == [204, 204]


async def test_a_way_back_outlives_that_of_another_account(
    client: Client, settings: Settings
) -> None:
    account, other = await register(client), await register(client)
    await move(client, settings, account, "new@example.com")
    await move(client, settings, other, "newer@example.com")
    subject = "The email address of your account was changed"
    backs = [
        await link_about(settings.data_dir, each.profile["email"], subject)
        for each in (account, other)
    ]
    assert [(await verify(client, token)).status for token in backs] == [204, 204]
