"""What somebody who knew the password, or used a stranger's email, can and cannot keep."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.authenticator import Authenticator
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register
from tests.support.factors import (
    PASSKEYS,
    add_passkey,
    add_totp,
    age_proofs,
    answer,
    ask_for_challenge,
    begin_passkey,
    confirm,
    log_in,
    prove,
    sign_in_with,
    sign_in_with_passkey,
    start_totp,
)
from tests.support.holding import holding
from tests.support.operations import CHANGE, CHANGED
from tests.support.steps import RESET, change_email, link_about, reset, revert, verify

ME = "/api/v1/users/me"
CODES = f"{ME}/recovery-codes"
DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"


async def restore_email(
    client: Client, settings: Settings, account: Account, changed_to: str
) -> None:
    """Confirm the change of an email, and restore the one before."""
    token = await link_about(settings.data_dir, changed_to, CHANGE)
    assert (await verify(client, token, by=account)).status == 200
    token = await link_about(settings.data_dir, account.profile["email"], CHANGED)
    assert (await revert(client, token)).status == 200


@pytest.mark.asvs("6.4.3")
@pytest.mark.parametrize("begun", ["a passkey before", "an app begun before, confirmed after"])
async def test_restoring_an_email_removes_what_a_thief_added(
    client: Client, settings: Settings, conn: Any, begun: str
) -> None:
    account = await register(client)
    await conn.execute("update users set email_verified_at = now() - interval '1 year'")
    app = await start_totp(client, account.headers)
    passkey = await add_passkey(client, account.headers) if "passkey" in begun else None
    assert (
        await change_email(client, account, account.password, to="thief@example.com")
    ).status == 202
    if passkey is None:
        assert (await confirm(client, account.headers, app, app.code())).status == 200
        # The first factor has ended the link.
        await link_about(settings.data_dir, "thief@example.com", CHANGE)
        await change_email(client, account, account.password, to="thief@example.com")
    await restore_email(client, settings, account, "thief@example.com")
    assert await conn.fetchval("select count(*) from factors") == 0
    assert await conn.fetchval("select count(*) from recovery_codes") == 0
    assert not await conn.fetchval("select has_second_factor from users")
    if passkey is not None:
        refused = await sign_in_with_passkey(client, passkey)
        await assert_problem(refused, 401, "unknown_passkey")
    removed = "select count(*) from audit_events where action = 'factor.remove'"
    assert await conn.fetchval(removed) == 1
    token = await link_about(settings.data_dir, account.profile["email"], RESET)
    assert (await reset(client, token, account.password)).status == 204
    assert (await log_in(client, account)).status == 200


async def test_restoring_an_email_keeps_factors_from_long_before(
    client: Client, settings: Settings, conn: Any
) -> None:
    """Otherwise whoever has the old mailbox could remove them."""
    account = await register(client)
    await conn.execute("update users set email_verified_at = now() - interval '1 year'")
    app = await add_totp(client, account.headers)
    await conn.execute("update factors set confirmed_at = now() - interval '8 days'")
    await change_email(client, account, account.password, to="new@example.com")
    await restore_email(client, settings, account, "new@example.com")
    assert await conn.fetchval("select count(*) from recovery_codes") == 10
    token = await link_about(settings.data_dir, account.profile["email"], RESET)
    assert (await reset(client, token, account.password)).status == 204
    problem = await ask_for_challenge(client, account)
    assert (await answer(client, problem["challenge"], code=app.code(1))).status == 200


async def test_restoring_an_email_removes_the_recovery_codes_with_any_factor(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    await conn.execute("update users set email_verified_at = now() - interval '1 year'")
    app = await add_totp(client, account.headers)
    await conn.execute("update factors set confirmed_at = now() - interval '8 days'")
    await add_totp(client, account.headers)
    await change_email(client, account, account.password, to="new@example.com")
    await restore_email(client, settings, account, "new@example.com")
    assert [str(row["id"]) for row in await conn.fetch("table factors")] == [app.factor_id]
    assert await conn.fetchval("select count(*) from recovery_codes") == 0


async def test_links_requested_without_a_second_factor_end_with_the_first(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    await conn.execute("update users set email_verified_at = now()")
    await change_email(client, account, account.password, to="thief@example.com")
    token = await link_about(settings.data_dir, "thief@example.com", CHANGE)
    await add_totp(client, account.headers)
    refused = await verify(client, token, password=account.password)
    await assert_problem(refused, 400, "invalid_token")


@pytest.mark.asvs("6.4.3")
async def test_a_password_does_not_confirm_an_email_beside_a_second_factor(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    await conn.execute("update users set email_verified_at = now()")
    await add_totp(client, account.headers)
    await change_email(client, account, account.password, to="new@example.com")
    token = await link_about(settings.data_dir, "new@example.com", CHANGE)
    refused = await verify(client, token, password=account.password)
    await assert_problem(refused, 403, "proof_required")
    assert (await verify(client, token, by=account)).status == 200


async def test_changes_of_factors_are_limited_because_each_sends_a_mail(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(throttle_factors_per_account=Rate(5, 3600))
    account = await register(client)
    await add_totp(client, account.headers)
    statuses = [(await client.post(CODES, headers=account.headers)).status for _ in range(6)]
    assert statuses == [201, 201, 201, 429, 429, 429]
    begun = await begin_passkey(client, account.headers)
    passkey = Authenticator().create(begun["options"])
    for method, path, body in (
        ("POST", f"{ME}/factors/totp", None),
        ("POST", PASSKEYS, {"challenge_id": begun["challenge_id"], "credential": passkey}),
        ("DELETE", f"{ME}/factors/01890000-0000-7000-8000-000000000000", None),
    ):
        refused = await client.request(method, path, headers=account.headers, json=body)
        await assert_problem(refused, 429, "too_many_requests")
    assert await conn.fetchval("select count(*) from audit_events where action ~ 'factor'") == 4


async def test_recovery_codes_are_made_only_beside_a_second_factor(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    async with holding(conn, "select from users for update") as start:
        path = f"{ME}/factors/{app.factor_id}"
        removed = await start(client.delete(path, headers=account.headers))
        too_late = await start(client.post(CODES, headers=account.headers))
    assert removed.result().status == 204
    for refused in (too_late.result(), await client.post(CODES, headers=account.headers)):
        problem = await assert_problem(refused, 401, "insufficient_authentication")
        assert "your account has none" in problem["detail"]
    assert await conn.fetchval("select count(*) from recovery_codes") == 0


async def test_a_recent_code_of_a_removed_app_does_not_add_another(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await age_proofs(client)
    assert (await prove(client, account.headers, code=app.code(1))).status == 200
    async with holding(conn, "select from users for update") as start:
        path = f"{ME}/factors/{app.factor_id}"
        removed = await start(client.delete(path, headers=account.headers))
        too_late = await start(client.post(f"{ME}/factors/totp", headers=account.headers))
    assert removed.result().status == 204
    await assert_problem(too_late.result(), 401, "insufficient_authentication")
    assert await conn.fetchval("select count(*) from factors") == 0


async def test_codes_whose_response_was_lost_are_had_again(client: Client) -> None:
    account = await register(client)
    app = await start_totp(client, account.headers)
    headers = {**account.headers, "Idempotency-Key": "confirm"}
    code = app.code()
    first = await (await confirm(client, headers, app, code)).json()
    assert await (await confirm(client, headers, app, code)).json() == first
    headers["Idempotency-Key"] = "codes"
    fresh = await (await client.post(CODES, headers=headers)).json()
    assert await (await client.post(CODES, headers=headers)).json() == fresh
    await sign_in_with(client, account, recovery_code=fresh["recovery_codes"][0])


@pytest.mark.parametrize("change", ["add an app", "add a passkey", "new codes", "remove"])
async def test_a_session_that_ends_meanwhile_changes_nothing(
    client: Client, conn: Any, change: str
) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    begun = await begin_passkey(client, account.headers)
    passkey = Authenticator().create(begun["options"])
    method, path, body = {
        "add an app": ("POST", f"{ME}/factors/totp", None),
        "add a passkey": (
            "POST",
            PASSKEYS,
            {"challenge_id": begun["challenge_id"], "credential": passkey},
        ),
        "new codes": ("POST", CODES, None),
        "remove": ("DELETE", f"{ME}/factors/{app.factor_id}", None),
    }[change]
    stored = (
        "select (select jsonb_agg(factors) from factors), (select count(*) from audit_events),"
        " (select jsonb_agg(recovery_codes) from recovery_codes)"
    )
    before = await conn.fetchrow(stored)
    async with holding(conn, "select from users for update") as start:
        asked = await start(client.request(method, path, headers=account.headers, json=body))
        await conn.execute("update sessions set expires_at = now()")
    await assert_problem(asked.result(), 401, "invalid_token")
    assert await conn.fetchrow(stored) == before


async def test_wrong_codes_and_removals_at_once_do_not_deadlock(client: Client, conn: Any) -> None:
    account = await register(client)
    apps = [await add_totp(client, account.headers) for _ in range(3)]
    problems = [await ask_for_challenge(client, account) for _ in range(4)]
    wrong = apps[0].wrong_code()
    guesses = [
        *(answer(client, each["challenge"], code=wrong) for each in problems * 5),
        *(prove(client, account.headers, code=wrong) for _ in range(10)),
    ]
    removals = [
        client.delete(f"{ME}/factors/{app.factor_id}", headers=account.headers) for app in apps[1:]
    ]
    before = await conn.fetchval(DEADLOCKS)
    # Without the lock, both apps are removed before the first code is checked.
    async with holding(conn, "select from users for no key update") as start:
        first = [await start(guesses.pop(0)), await start(removals.pop(0))]
        others = asyncio.gather(*guesses, *removals)
    responses = [*(await asyncio.gather(*first)), *(await others)]
    assert Counter(response.status for response in responses) == {401: 20, 403: 10, 204: 2}
    assert (await responses[0].json(content_type=None))["code"] == "wrong_code"
    after = await conn.fetchval(DEADLOCKS)
    assert after == before


async def test_an_old_first_step_gives_no_more_back_than_it_still_takes(
    start_app: StartApp, conn: Any
) -> None:
    """The quota has regained the attempt by then, so a refund would be a second one."""
    client = await start_app(throttle_sign_in_per_account=Rate(2, 120))
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    await conn.execute("update sign_in_challenges set created_at = now() - interval '2 minutes'")
    response = await answer(client, problem["challenge"], code=app.code(1))
    assert response.status == 200
    # A minute each, of which only the second step's is given back.
    assert response.headers["RateLimit"].startswith('"sign-in-per-account";r=1;')
