"""A link that verifies or changes an email says so again, for a while, if it is opened again."""

from typing import Any

import pytest

from service.auth.passwords import HASHER
from service.settings import Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.holding import holding
from tests.support.steps import (
    NEW_PASSWORD,
    WRONG,
    change_email,
    inspect_link,
    link_about,
    revert,
    send,
    sign_in,
    verify,
)

NEW = "new@example.com"
PROOFS = ["session", "password", "new_password"]


async def mailed_link(client: Client, settings: Settings, account: Account) -> str:
    """Return the token of the link that verifies the account's email."""
    email = account.profile["email"]
    return await link_about(settings.data_dir, email, "Confirm your email address")


async def changing_link(client: Client, settings: Settings, account: Account) -> str:
    """Return the token of a link that changes the account's email to NEW."""
    assert (await change_email(client, account, account.password, to=NEW)).status == 202
    return await link_about(settings.data_dir, NEW, "Confirm your new email address")


async def use(client: Client, token: str, account: Account, proof: str) -> Any:
    """Use the link with one kind of proof."""
    given = {"password": account.password, "new_password": NEW_PASSWORD}
    by = account if proof == "session" else None
    return await verify(client, token, by=by, **({proof: given[proof]} if not by else {}))


@pytest.mark.parametrize("proof", PROOFS)
async def test_second_opening_gets_the_response_of_the_first(
    client: Client, settings: Settings, proof: str
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    first = await use(client, token, account, proof)
    second = await use(client, token, account, proof)
    assert (first.status, second.status) == (200, 200), await second.text()
    assert await first.json() == await second.json() == {"done": "verified"}


@pytest.mark.parametrize("proof", PROOFS)
async def test_two_openings_at_once_both_verify(
    client: Client, settings: Settings, conn: Any, proof: str
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    async with holding(conn, "select from users for update") as start:
        both = [await start(use(client, token, account, proof)) for _ in range(2)]
    assert [(await one).status for one in both] == [200, 200]


async def test_second_opening_of_a_change_says_that_it_is_done(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await changing_link(client, settings, account)
    assert (await verify(client, token, by=account)).status == 200
    second = await verify(client, token, by=account)
    assert (second.status, await second.json()) == (200, {"done": "email_changed"})


async def test_second_opening_needs_no_proof(client: Client, settings: Settings) -> None:
    """It does nothing, and says only what the first one did."""
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, by=account)
    second = await send(client, "POST", "/auth/email/verify", {"token": token})
    assert (second.status, await second.json()) == (200, {"done": "verified"})


async def test_second_opening_changes_nothing(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, new_password=NEW_PASSWORD)
    state = "select (select version from users), (select count(*) from audit_events)"
    before = await conn.fetchrow(state)
    await verify(client, token, new_password=NEW_PASSWORD)
    assert await conn.fetchrow(state) == before


async def test_used_link_does_not_pretend_to_set_another_password(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    assert (await verify(client, token, by=account)).status == 200
    second = await verify(client, token, new_password=NEW_PASSWORD)
    await assert_problem(second, 400, "invalid_token")
    assert (await sign_in(client, account)).status == 200


async def test_guesses_through_a_used_link_count_toward_the_sign_in_limit(
    start_app: StartApp, settings: Settings
) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, by=account)
    for _ in range(3):
        await verify(client, token, new_password=WRONG)
    second = await verify(client, token, new_password=account.password)
    await assert_problem(second, 429, "too_many_requests")


@pytest.mark.parametrize("proof", ["password", "new_password"])
async def test_right_password_of_a_second_opening_is_refunded(
    start_app: StartApp, settings: Settings, conn: Any, proof: str
) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(2, 3600))
    account = await register(client)
    token = await mailed_link(client, settings, account)
    async with holding(conn, "select from users for update") as start:
        both = [await start(use(client, token, account, proof)) for _ in range(2)]
    assert [(await one).status for one in both] == [200, 200]
    right = NEW_PASSWORD if proof == "new_password" else account.password
    statuses = [(await sign_in(client, account, password)).status for password in (WRONG, right)]
    assert statuses == [401, 200]


async def test_second_opening_is_not_counted_if_the_hash_queue_is_full(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, by=account)
    assert client.app is not None
    client.app[HASHER].queue_limit = 0
    response = await verify(client, token, new_password=account.password)
    await assert_problem(response, 503, "too_many_sign_ins")
    assert "RateLimit" not in response.headers


async def test_used_link_can_be_inspected(client: Client, settings: Settings) -> None:
    account = await register(client)
    verifying = await mailed_link(client, settings, account)
    await verify(client, verifying, by=account)
    link = await (await inspect_link(client, verifying)).json()
    assert (link["purpose"], link["email"]) == ("email_verified", account.profile["email"])
    changing = await changing_link(client, settings, account)
    await verify(client, changing, by=account)
    link = await (await inspect_link(client, changing)).json()
    assert (link["purpose"], link["email"]) == ("email_changed", NEW)


@pytest.mark.parametrize("ask", [verify, inspect_link])
@pytest.mark.parametrize("since", ["a day", "unverified", "changed", "gone"])
async def test_used_link_is_invalid_once_it_no_longer_holds(
    client: Client, settings: Settings, conn: Any, since: str, ask: Any
) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, by=account)
    lifetime = "select expires_at - now() <= interval '24 hours' from action_tokens"
    assert await conn.fetchval(lifetime) is True
    statements = {
        "a day": "update action_tokens set expires_at = now()",
        "unverified": "update users set email_verified_at = null",
        "changed": "update users set email = 'other@example.com'",
        "gone": "delete from users",
    }
    await conn.execute(statements[since])
    await assert_problem(await ask(client, token), 400, "invalid_token")


async def test_used_link_does_not_confirm_a_change_that_was_undone(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    await verify(client, await mailed_link(client, settings, account), by=account)
    token = await changing_link(client, settings, account)
    await verify(client, token, by=account)
    old = account.profile["email"]
    subject = "The email address of your account was changed"
    undoing = await link_about(settings.data_dir, old, subject)
    assert (await revert(client, undoing)).status == 200
    await assert_problem(await verify(client, token), 400, "invalid_token")


async def test_used_link_is_no_token_for_anything_else(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await mailed_link(client, settings, account)
    await verify(client, token, by=account)
    await assert_problem(await revert(client, token), 400, "invalid_token")
    body = {"token": token, "password": NEW_PASSWORD}
    response = await send(client, "POST", "/auth/password/reset", body)
    await assert_problem(response, 400, "invalid_token")
