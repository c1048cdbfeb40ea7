"""Mailed links: password reset, and email verification, change and revert."""

import asyncio
from typing import Any

import pytest

from service.settings import MailServer, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, assert_problem, bearer, pointers, register
from tests.support.mailbox import next_mail, text_of, token_of
from tests.support.processes import reserved_port
from tests.support.steps import mails

AUTH = "/api/v1/auth"
ME = "/api/v1/users/me"
NEW_PASSWORD = "quite another phrase than that"


async def sign_in(client: Client, email: str, password: str) -> int:
    response = await client.post(f"{AUTH}/login", json={"email": email, "password": password})
    return response.status


async def forget(client: Client, settings: Settings, account: Account) -> str:
    """Request a password reset and return the mailed token."""
    email = account.profile["email"]
    await next_mail(settings.data_dir, email)  # the verification mail
    response = await client.post(f"{AUTH}/password/forgot", json={"email": email.upper()})
    assert (response.status, await response.read()) == (202, b"")
    return token_of(await next_mail(settings.data_dir, email))


async def reset(client: Client, token: str, password: str = NEW_PASSWORD) -> int:
    body = {"token": token, "password": password}
    response = await client.post(f"{AUTH}/password/reset", json=body)
    if response.status != 204:
        await assert_problem(response, 400, "invalid_token")
    return response.status


async def verify(client: Client, token: str) -> int:
    response = await client.post(
        f"{AUTH}/email/verify", json={"token": token, "password": PASSWORD}
    )
    if response.status != 200:
        await assert_problem(response, 400, "invalid_token")
    return response.status


async def revert(client: Client, token: str) -> int:
    response = await client.post(f"{AUTH}/email/revert", json={"token": token})
    if response.status != 200:
        await assert_problem(response, 400, "invalid_token")
    return response.status


@pytest.mark.asvs("6.4.1", "6.4.3", "7.4.3")
async def test_forgotten_password_can_be_reset(client: Client, settings: Settings) -> None:
    account = await register(client)
    email = account.profile["email"]
    token = await forget(client, settings, account)
    assert await reset(client, token) == 204
    response = await client.get(ME, headers=account.headers)
    await assert_problem(response, 401, "invalid_token")
    refreshed = await client.post(
        f"{AUTH}/refresh", json={"refresh_token": account.tokens["refresh_token"]}
    )
    assert refreshed.status == 401
    assert await sign_in(client, email, PASSWORD) == 401
    assert await sign_in(client, email, NEW_PASSWORD) == 200
    notice = await next_mail(settings.data_dir, email)
    assert "password" in str(notice["Subject"]).lower()
    assert "#token=" not in text_of(notice)
    assert await reset(client, token) == 400, "a link works once"


@pytest.mark.asvs("6.4.3")
async def test_only_one_of_fifty_concurrent_resets_succeeds(
    client: Client, settings: Settings
) -> None:
    token = await forget(client, settings, await register(client))
    statuses = await asyncio.gather(*(reset(client, token) for _ in range(50)))
    assert sorted(statuses) == [204] + [400] * 49


@pytest.mark.asvs("6.4.1")
async def test_links_expire_and_are_replaced_by_newer_ones(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    email = account.profile["email"]
    first = await forget(client, settings, account)
    await client.post(f"{AUTH}/password/forgot", json={"email": email})
    second = token_of(await next_mail(settings.data_dir, email))
    assert await reset(client, first) == 400
    ttl = await conn.fetchval(
        "select expires_at - created_at from action_tokens where purpose = 'password_reset'"
    )
    assert ttl.total_seconds() == 30 * 60
    await conn.execute("update action_tokens set expires_at = now()")
    assert await reset(client, second) == 400
    assert await sign_in(client, email, PASSWORD) == 200


async def test_mail_expires_with_its_link(start_app: StartApp, conn: Any) -> None:
    with reserved_port() as port:
        client = await start_app(mail_server=MailServer("127.0.0.1", port, "none"))
        account = await register(client)
        await conn.execute("delete from action_tokens; delete from mail_outbox")
        body = {"email": account.profile["email"]}
        assert (await client.post(f"{AUTH}/password/forgot", json=body)).status == 202
        assert await conn.fetchval(
            "select mail_outbox.expires_at = action_tokens.expires_at from mail_outbox"
            " cross join action_tokens"
        )


async def test_verification_link_works_for_a_day(client: Client, conn: Any) -> None:
    await register(client)
    lifetime = await conn.fetchval(
        "select expires_at - created_at from action_tokens where purpose = 'email_verify'"
    )
    assert lifetime.total_seconds() == 24 * 3600


@pytest.mark.parametrize("path", ["password/forgot", "email/verify/resend"])
async def test_request_for_a_link_needs_an_email(client: Client, path: str) -> None:
    problem = await assert_problem(
        await client.post(f"{AUTH}/{path}", json={}), 422, "invalid_fields"
    )
    assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [
        ("#/email", "required")
    ]


@pytest.mark.parametrize("body", [{}, {"token": "x"}, {"password": PASSWORD}])
async def test_reset_needs_a_token_and_a_password(client: Client, body: dict[str, str]) -> None:
    response = await client.post(f"{AUTH}/password/reset", json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    missing = {f"#/{name}" for name in ("token", "password") if name not in body}
    assert {error["pointer"] for error in problem["errors"]} == missing


@pytest.mark.asvs("9.2.2")
async def test_link_works_only_for_its_own_purpose(client: Client, settings: Settings) -> None:
    account = await register(client)
    verifying = token_of(await next_mail(settings.data_dir, account.profile["email"]))
    assert await reset(client, verifying) == 400
    response = await client.post(
        f"{AUTH}/password/forgot", json={"email": account.profile["email"]}
    )
    assert response.status == 202
    resetting = token_of(await next_mail(settings.data_dir, account.profile["email"]))
    assert await verify(client, resetting) == 400
    assert await verify(client, verifying) == 200
    assert await reset(client, resetting) == 204


@pytest.mark.asvs("6.2.11")
async def test_weak_password_leaves_the_link_usable(client: Client, settings: Settings) -> None:
    token = await forget(client, settings, await register(client, name="Ada Lovelace"))
    for password in ("short", "123456789012345", "Ada Lovelace Ada"):
        body = {"token": token, "password": password}
        response = await client.post(f"{AUTH}/password/reset", json=body)
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {"#/password"}
    assert await reset(client, token) == 204


@pytest.mark.parametrize("path", ["password/forgot", "email/verify/resend"])
async def test_unknown_email_gets_the_same_response_and_no_mail(
    client: Client, settings: Settings, conn: Any, path: str
) -> None:
    response = await client.post(f"{AUTH}/{path}", json={"email": "nobody@example.com"})
    assert (response.status, await response.read()) == (202, b"")
    assert await mails(settings.data_dir, conn) == []


@pytest.mark.asvs("6.4.3", "14.2.1")
async def test_links_start_with_the_configured_origin(
    start_app: StartApp, settings: Settings
) -> None:
    client = await start_app(public_origin="https://accounts.example")
    account = await register(client)
    email = account.profile["email"]
    await next_mail(settings.data_dir, email)
    await client.post(
        f"{AUTH}/password/forgot",
        json={"email": email},
        headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"},
    )
    text = text_of(await next_mail(settings.data_dir, email))
    assert "https://accounts.example/password/reset#token=" in text
    assert "evil.example" not in text


async def test_dotless_i_does_not_match_another_email(client: Client, conn: Any) -> None:
    await register(client, email="mike@example.com")
    await conn.execute("delete from mail_outbox")
    response = await client.post(f"{AUTH}/password/forgot", json={"email": "mıke@example.com"})
    assert response.status == 202
    assert (
        await conn.fetchval("select count(*) from action_tokens where purpose = 'password_reset'")
        == 0
    )


async def test_email_is_verified_by_its_link(client: Client, settings: Settings) -> None:
    account = await register(client)
    email = account.profile["email"]
    first = token_of(await next_mail(settings.data_dir, email))
    response = await client.post(f"{AUTH}/email/verify/resend", json={"email": email})
    assert response.status == 202
    second = token_of(await next_mail(settings.data_dir, email))
    assert await verify(client, first) == 400
    assert await verify(client, second) == 200
    me = await client.get(ME, headers=account.headers)
    assert (await me.json())["email_verified"] is True
    assert me.headers["ETag"] == '"2"'


async def test_required_verification_blocks_sign_in_until_the_link_is_used(
    start_app: StartApp, settings: Settings
) -> None:
    client = await start_app(require_email_verification=True)
    body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada"}
    responses = [await client.post(f"{AUTH}/register", json=body) for _ in range(2)]
    assert [(response.status, await response.read()) for response in responses] == [(202, b"")] * 2
    mails = [await next_mail(settings.data_dir, "ada@example.com") for _ in range(2)]
    link, notice = sorted(mails, key=lambda mail: "#token=" not in text_of(mail))
    assert "#token=" not in text_of(notice)
    assert await sign_in(client, "ada@example.com", PASSWORD) == 401
    assert await verify(client, token_of(link)) == 200
    assert await sign_in(client, "ada@example.com", PASSWORD) == 200


async def test_verified_email_gets_no_new_verification_link(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register_verified(client, settings)
    body = {"email": account.profile["email"]}
    assert (await client.post(f"{AUTH}/email/verify/resend", json=body)).status == 202
    links = "select count(*) from action_tokens where purpose = 'email_verify'"
    assert await conn.fetchval(links) == 0


async def register_verified(client: Client, settings: Settings) -> Account:
    account = await register(client)
    token = token_of(await next_mail(settings.data_dir, account.profile["email"]))
    assert await verify(client, token) == 200
    return account


async def test_owners_revert_ends_the_thiefs_revert_link(
    client: Client, settings: Settings
) -> None:
    """The thief changes the email twice, so the thief's first email gets a revert link too."""
    account = await register_verified(client, settings)
    for email in ("first@thief.example.com", "second@thief.example.com"):
        assert await change_email(client, account, email) == 202
        assert await verify(client, token_of(await next_mail(settings.data_dir, email))) == 200
    thiefs = token_of(await next_mail(settings.data_dir, "first@thief.example.com"))
    owners = token_of(await next_mail(settings.data_dir, account.profile["email"]))
    assert await revert(client, owners) == 200
    assert await revert(client, thiefs) == 400


async def test_unverified_email_gets_no_revert_link(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client, email="mistyped@example.com")
    assert await change_email(client, account, "right@example.com") == 202
    token = token_of(await next_mail(settings.data_dir, "right@example.com"))
    assert await verify(client, token) == 200
    reverts = "select count(*) from action_tokens where purpose = 'email_revert'"
    assert await conn.fetchval(reverts) == 0


async def test_pending_email_change_ends_with_a_password_reset(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    assert await change_email(client, account, "thief@example.com") == 202
    waiting = token_of(await next_mail(settings.data_dir, "thief@example.com"))
    assert await reset(client, await forget(client, settings, account)) == 204
    assert await verify(client, waiting) == 400


async def test_lost_response_to_a_password_change_is_replayed(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    key = {"Idempotency-Key": "once"}
    body = {"current_password": PASSWORD, "password": NEW_PASSWORD}
    for _ in range(2):
        response = await client.post(
            f"{ME}/password", json=body, headers={**account.headers, **key}
        )
        assert response.status == 204
    await next_mail(settings.data_dir, account.profile["email"])
    token = await forget(client, settings, account)
    body = {"token": token, "password": "a third phrase, for the road"}
    for _ in range(2):
        response = await client.post(f"{AUTH}/password/reset", json=body, headers=key)
        assert response.status == 204
    response = await client.post(
        f"{AUTH}/password/reset", json={**body, "token": "another"}, headers=key
    )
    await assert_problem(response, 400, "invalid_token")


async def change_email(client: Client, account: Account, email: str) -> int:
    response = await client.post(
        f"{ME}/email",
        json={"email": email, "password": account.password},
        headers=account.headers,
    )
    return response.status


@pytest.mark.asvs("7.5.1", "10.3.3")
async def test_email_is_changed_and_reverted(client: Client, settings: Settings) -> None:
    account = await register_verified(client, settings)
    old, new = account.profile["email"], "new@example.com"
    assert await change_email(client, account, new) == 202
    me = await client.get(ME, headers=account.headers)
    assert (await me.json())["email"] == old, "until the new mailbox has confirmed"
    assert await verify(client, token_of(await next_mail(settings.data_dir, new))) == 200
    profile = await (await client.get(ME, headers=account.headers)).json()
    assert (profile["email"], profile["email_verified"]) == (new, True)
    assert await sign_in(client, old, PASSWORD) == 401
    assert await sign_in(client, new, PASSWORD) == 200

    back = await next_mail(settings.data_dir, old)
    assert await revert(client, token_of(back)) == 200
    response = await client.get(ME, headers=account.headers)
    await assert_problem(response, 401, "invalid_token")
    assert await sign_in(client, old, PASSWORD) == 401, "a revert removes the password"
    assert await reset(client, token_of(await next_mail(settings.data_dir, old))) == 204
    assert await sign_in(client, old, NEW_PASSWORD) == 200
    assert await sign_in(client, new, NEW_PASSWORD) == 401


async def test_another_accounts_email_cannot_be_taken(client: Client, settings: Settings) -> None:
    account, other = await register(client), await register(client)
    taken = other.profile["email"]
    await next_mail(settings.data_dir, taken)
    assert await change_email(client, account, taken.upper()) == 202
    assert "#token=" not in text_of(await next_mail(settings.data_dir, taken))
    assert await change_email(client, account, "free@example.com") == 202
    await register(client, email="free@example.com")
    responses = []
    for _ in range(2):  # one confirms the change, the other verifies the new account
        token = token_of(await next_mail(settings.data_dir, "free@example.com"))
        body = {"token": token, "password": PASSWORD}
        responses.append(await client.post(f"{AUTH}/email/verify", json=body))
    assert sorted(response.status for response in responses) == [200, 409]
    taken_since = max(responses, key=lambda response: response.status)
    await assert_problem(taken_since, 409, "email_taken")


@pytest.mark.asvs("6.2.3", "7.5.1")
async def test_wrong_password_changes_nothing(client: Client, conn: Any) -> None:
    account = await register(client)
    for path, body in [
        ("password", {"current_password": "not the one it has", "password": NEW_PASSWORD}),
        ("email", {"email": "new@example.com", "password": "not the one it has"}),
    ]:
        response = await client.post(f"{ME}/{path}", json=body, headers=account.headers)
        await assert_problem(response, 403, "wrong_password")
    body = {"password": "not the one it has"}
    response = await client.delete(ME, json=body, headers=account.headers)
    await assert_problem(response, 403, "wrong_password")
    assert (await client.get(ME, headers=account.headers)).status == 200


@pytest.mark.asvs("6.2.2", "7.4.3")
async def test_password_change_ends_other_sessions(client: Client, settings: Settings) -> None:
    account = await register(client)
    email = account.profile["email"]
    await next_mail(settings.data_dir, email)
    login = await client.post(f"{AUTH}/login", json={"email": email, "password": PASSWORD})
    other = bearer((await login.json())["access_token"])
    body = {"current_password": PASSWORD, "password": NEW_PASSWORD}
    response = await client.post(f"{ME}/password", json=body, headers=account.headers)
    assert response.status == 204
    assert (await client.get(ME, headers=account.headers)).status == 200
    await assert_problem(await client.get(ME, headers=other), 401, "invalid_token")
    assert await sign_in(client, email, PASSWORD) == 401
    assert await sign_in(client, email, NEW_PASSWORD) == 200
    assert "password" in str((await next_mail(settings.data_dir, email))["Subject"]).lower()
    again = await client.post(f"{ME}/password", json=body, headers=account.headers)
    await assert_problem(again, 403, "wrong_password")
