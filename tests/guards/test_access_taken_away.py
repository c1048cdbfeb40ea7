"""Changes to credentials or status end the account's sessions and links."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service import purge
from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import Account, register, register_as
from tests.support.growth import add_sessions, versions
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
    revert,
    send,
    sign_in_again,
    verify,
)

Ending = Callable[[Client, Settings, Account, Account], Awaitable[Any]]


async def by_reset(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    token = await mail_reset(client, settings.data_dir, account)
    assert (await reset(client, token)).status == 204


async def by_password_change(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    elsewhere = await sign_in_again(client, account)
    assert (await change_password(client, elsewhere, account.password)).status == 204


async def by_deletion(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    assert (await delete_account(client, account, account.password)).status == 202


async def by_email_revert(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await complete_email_change(client, settings, account, "thief@example.com")
    token = await link_about(
        settings.data_dir,
        account.profile["email"],
        "The email address of your account was changed",
    )
    assert (await revert(client, token)).status == 200


async def by_suspension(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    path = f"/users/{account.profile['id']}/suspend"
    assert (await send(client, "POST", path, {"reason": "spam"}, by=admin)).status == 200


async def by_admin_deletion(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    assert (await send(client, "DELETE", f"/users/{account.profile['id']}", by=admin)).status == 200


async def by_admin(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    path = f"/users/{account.profile['id']}/sessions"
    assert (await send(client, "DELETE", path, by=admin)).status == 204


async def by_owner_elsewhere(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    elsewhere = await sign_in_again(client, account)
    assert (await send(client, "DELETE", "/users/me/sessions", by=elsewhere)).status == 204


async def by_logout(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    assert (await send(client, "POST", "/auth/logout", by=account)).status == 204


ENDINGS: list[Ending] = [
    by_reset,
    by_password_change,
    by_deletion,
    by_email_revert,
    by_suspension,
    by_admin_deletion,
    by_admin,
    by_owner_elsewhere,
    by_logout,
]


async def complete_email_change(
    client: Client, settings: Settings, account: Account, to: str
) -> None:
    """Verify the account's email, then change it."""
    email = account.profile["email"]
    token = await link_about(settings.data_dir, email, "Confirm your email address")
    assert (await verify(client, token)).status == 200
    assert (await change_email(client, account, account.password, to=to)).status == 202
    token = await link_about(settings.data_dir, to, "Confirm your new email address")
    assert (await verify(client, token)).status == 200


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_session_ends(client: Client, settings: Settings, end: Ending) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    await end(client, settings, account, admin)
    assert not await is_signed_in(client, account)


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_refresh_token_ends_with_the_session(
    client: Client, settings: Settings, end: Ending
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    await end(client, settings, account, admin)
    assert (await refresh(client, account.tokens["refresh_token"])).status == 401


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_access_is_taken_away_at_the_cost_of_one_session(
    client: Client,
    settings: Settings,
    conn: Any,
    end: Ending,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there are: a job deletes them later, and here never."""
    monkeypatch.setattr(purge, "SESSIONS_AT_ONCE", 0)
    account, admin = await register(client), await register_as(client, "admin")
    await add_sessions(conn, account, 50, tokens=3)
    before = await versions(conn, account)
    await end(client, settings, account, admin)
    changed = before - await versions(conn, account)
    assert len(changed) <= 1


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_sessions_of_other_accounts_survive(
    client: Client, settings: Settings, end: Ending
) -> None:
    account, other = await register(client), await register(client)
    await end(client, settings, account, await register_as(client, "admin"))
    assert await is_signed_in(client, other)


async def test_password_change_ends_reset_links(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    assert (await change_password(client, account, account.password)).status == 204
    assert (await reset(client, token)).status == 400


async def test_password_change_cancels_a_pending_email_change(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await change_email(client, account, account.password, to="new@example.com")
    token = await link_about(settings.data_dir, "new@example.com", "Confirm your new email address")
    assert (await change_password(client, account, account.password)).status == 204
    assert (await verify(client, token)).status == 400


async def test_password_change_keeps_reset_links_of_other_accounts(
    client: Client, settings: Settings
) -> None:
    account, other = await register(client), await register(client)
    token = await mail_reset(client, settings.data_dir, other)
    assert (await change_password(client, account, account.password)).status == 204
    assert (await reset(client, token)).status == 204


async def test_password_change_keeps_the_verification_link(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    assert (await change_password(client, account, account.password)).status == 204
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    assert (await verify(client, token, by=account)).status == 200


async def test_password_reset_cancels_a_pending_email_change(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await change_email(client, account, account.password, to="thief@example.com")
    token = await link_about(
        settings.data_dir, "thief@example.com", "Confirm your new email address"
    )
    await by_reset(client, settings, account, account)
    assert (await verify(client, token)).status == 400


async def test_email_change_ends_reset_links_to_the_old_email(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    await change_email(client, account, account.password, to="new@example.com")
    changing = await link_about(
        settings.data_dir, "new@example.com", "Confirm your new email address"
    )
    assert (await verify(client, changing)).status == 200
    assert (await reset(client, token)).status == 400


async def test_email_change_ends_the_old_emails_verification_link(
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
    assert (await verify(client, changing)).status == 200
    assert (await verify(client, verifying)).status == 400


async def test_email_revert_cancels_a_pending_email_change(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await complete_email_change(client, settings, account, "thief@example.com")
    await change_email(client, account, account.password, to="thief-too@example.com")
    changing = await link_about(
        settings.data_dir, "thief-too@example.com", "Confirm your new email address"
    )
    back = await link_about(
        settings.data_dir,
        account.profile["email"],
        "The email address of your account was changed",
    )
    assert (await revert(client, back)).status == 200
    assert (await verify(client, changing)).status == 400


async def test_email_revert_removes_the_password(client: Client, settings: Settings) -> None:
    account = await register(client)
    await by_email_revert(client, settings, account, account)
    body = {"email": account.profile["email"], "password": account.password}
    assert (await send(client, "POST", "/auth/login", body)).status == 401


@pytest.mark.parametrize("kind", ["reset", "verification", "change of email"])
async def test_newer_link_ends_the_older_one(client: Client, settings: Settings, kind: str) -> None:
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
    assert statuses == [400, 204 if kind == "reset" else 200]


async def test_links_live_as_long_as_the_mails_promise(
    client: Client, settings: Settings, conn: Any
) -> None:
    lives = "select purpose, extract(epoch from expires_at - created_at) / 60 from action_tokens"
    account = await register(client)
    assert (await change_email(client, account, account.password)).status == 202
    day = 24 * 60
    assert dict(await conn.fetch(lives)) == {"email_verify": day, "email_change": day}
    await complete_email_change(client, settings, account, "newest@example.com")
    await forgot(client, "newest@example.com")
    minutes = dict(await conn.fetch(lives))
    assert (minutes["email_revert"], minutes["password_reset"]) == (7 * day, 30)


@pytest.mark.parametrize("kind", ["reset", "verification"])
async def test_expired_link_is_rejected(
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


async def test_expired_link_is_rejected_before_the_password_is_checked(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    await conn.execute("update action_tokens set expires_at = now() - interval '1 second'")
    assert (await reset(client, token, "password")).status == 400


async def test_link_for_another_purpose_is_rejected_before_the_password_is_checked(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    assert (await reset(client, token, "password")).status == 400


@pytest.mark.parametrize("column", ["expires_at", "idle_expires_at"])
async def test_expired_session_is_not_listed(client: Client, conn: Any, column: str) -> None:
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
async def test_session_list_contains_only_the_accounts_own(client: Client, path: str) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    reader = admin if "{}" in path else account
    response = await send(client, "GET", path.format(account.profile["id"]), by=reader)
    body = await response.json()
    assert len(body["sessions"] if "export" in path else body["items"]) == 1


@pytest.mark.parametrize("kind", ["sessions", "known_networks", "audit_events"])
async def test_export_contains_nothing_of_other_accounts(client: Client, kind: str) -> None:
    account = await register(client)
    before = await (await send(client, "GET", "/users/me/export", by=account)).json()
    await sign_in_again(client, await register(client))
    after = await (await send(client, "GET", "/users/me/export", by=account)).json()
    assert after[kind] == before[kind]


async def test_admin_cannot_end_a_session_under_another_accounts_path(client: Client) -> None:
    """The session must belong to the account in the path."""
    account, admin = await register(client), await register_as(client, "admin")
    own = await (await send(client, "GET", "/users/me/sessions", by=admin)).json()
    path = f"/users/{account.profile['id']}/sessions/{own['items'][0]['id']}"
    assert (await send(client, "DELETE", path, by=admin)).status == 404
    assert await is_signed_in(client, admin)


async def test_owner_ends_another_session_by_id(client: Client) -> None:
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    listed = await (await send(client, "GET", "/users/me/sessions", by=account)).json()
    other = next(item["id"] for item in listed["items"] if not item["current"])
    assert (await send(client, "DELETE", f"/users/me/sessions/{other}", by=account)).status == 204
    assert not await is_signed_in(client, elsewhere)


async def test_reset_request_keeps_sessions_until_the_password_is_set(client: Client) -> None:
    account = await register(client)
    assert (await forgot(client, account.profile["email"])).status == 202
    assert await is_signed_in(client, account)


async def test_password_reset_verifies_the_email(client: Client, settings: Settings) -> None:
    account = await register(client)
    await by_reset(client, settings, account, account)
    again = await sign_in_again(client, account._replace(password=NEW_PASSWORD))
    me = await (await send(client, "GET", "/users/me", by=again)).json()
    assert me["email_verified"] is True


async def test_older_revert_link_works_after_a_newer_one(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await complete_email_change(client, settings, account, "second@example.com")
    await change_email(client, account, account.password, to="third@example.com")
    to_third = await link_about(
        settings.data_dir, "third@example.com", "Confirm your new email address"
    )
    assert (await verify(client, to_third)).status == 200
    subject = "The email address of your account was changed"
    newer = await link_about(settings.data_dir, "second@example.com", subject)
    older = await link_about(settings.data_dir, account.profile["email"], subject)
    assert [(await revert(client, token)).status for token in (newer, older)] == [200, 200]


async def test_revert_link_survives_another_accounts_revert(
    client: Client, settings: Settings
) -> None:
    account, other = await register(client), await register(client)
    await complete_email_change(client, settings, account, "new@example.com")
    await complete_email_change(client, settings, other, "newer@example.com")
    subject = "The email address of your account was changed"
    backs = [
        await link_about(settings.data_dir, each.profile["email"], subject)
        for each in (account, other)
    ]
    assert [(await revert(client, token)).status for token in backs] == [200, 200]
