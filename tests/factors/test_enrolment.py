"""Apps for one-time codes: how they are added and removed, and what that does to sessions."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from service.settings import Settings
from tests.support.clients import Client, StartApp, pool_of
from tests.support.factories import Account, assert_problem, bearer, register, register_as
from tests.support.factors import (
    add_passkey,
    add_totp,
    answer,
    ask_for_challenge,
    confirm,
    forget_used_codes,
    log_in,
    sign_in_with,
    start_totp,
)
from tests.support.jobs import run_jobs
from tests.support.mailbox import next_mail, text_of
from tests.support.steps import mail_reset, reset

ME = "/api/v1/users/me"
FACTORS = f"{ME}/factors"


async def remove(client: Client, account: Account, factor_id: str) -> Any:
    return await client.delete(f"{FACTORS}/{factor_id}", headers=account.headers)


async def sessions_of(client: Client, account: Account) -> list[dict[str, Any]]:
    response = await client.get(f"{ME}/sessions", headers=account.headers)
    items: list[dict[str, Any]] = (await response.json())["items"]
    return items


async def test_an_app_begins_with_a_secret_in_three_forms(client: Client) -> None:
    account = await register(client)
    response = await client.post(f"{FACTORS}/totp", headers=account.headers, json={"name": "Phone"})
    begun = await response.json()
    assert begun["secret"] in begun["otpauth_uri"]
    assert begun["otpauth_uri"].startswith("otpauth://totp/Shinkei%3A")
    assert begun["qr_svg"].startswith("<svg")
    listed = await (await client.get(FACTORS, headers=account.headers)).json()
    assert listed == {"items": [], "recovery_codes_left": 0}


async def test_an_app_works_once_it_is_confirmed(client: Client) -> None:
    account = await register(client)
    app = await start_totp(client, account.headers)
    assert (await log_in(client, account)).status == 200
    wrong = await confirm(client, account.headers, app, app.wrong_code())
    await assert_problem(wrong, 403, "wrong_code")
    confirmed = await confirm(client, account.headers, app, app.code())
    assert len((await confirmed.json())["recovery_codes"]) == 10
    await assert_problem(await confirm(client, account.headers, app, app.code()), 404, "not_found")
    await ask_for_challenge(client, account)


async def test_the_next_app_ends_one_that_is_not_confirmed(client: Client) -> None:
    account = await register(client)
    first = await start_totp(client, account.headers)
    second = await start_totp(client, account.headers)
    refused = await confirm(client, account.headers, first, first.code())
    await assert_problem(refused, 404, "not_found")
    assert (await confirm(client, account.headers, second, second.code())).status == 200


async def test_an_app_must_be_confirmed_within_an_hour(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account = await register(client)
    app = await start_totp(client, account.headers)
    await conn.execute("update factors set created_at = now() - interval '61 minutes'")
    refused = await confirm(client, account.headers, app, app.code())
    await assert_problem(refused, 404, "not_found")
    await run_jobs(client, start_app, "select not exists (select from factors)")


@pytest.mark.asvs("7.4.3")
async def test_the_first_factor_ends_other_sessions_and_raises_this_one(client: Client) -> None:
    account = await register(client)
    other = bearer((await (await log_in(client, account)).json())["access_token"])
    await add_totp(client, account.headers)
    await assert_problem(await client.get(ME, headers=other), 401, "invalid_token")
    (session,) = await sessions_of(client, account)
    assert (session["amr"], session["acr"]) == (["pwd", "otp"], "aal2")


async def test_another_factor_ends_no_session_and_has_no_codes(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    other = await sign_in_with(client, account, code=app.code(1))
    second = await add_totp(client, account.headers)
    assert second.recovery_codes is None
    assert (await client.get(ME, headers=other.headers)).status == 200


@pytest.mark.asvs("6.5.6", "7.4.3")
async def test_removing_the_last_factor_drops_all_to_level_one(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    other = await sign_in_with(client, account, code=app.code(1))
    assert (await remove(client, account, app.factor_id)).status == 204
    await assert_problem(await client.get(ME, headers=other.headers), 401, "invalid_token")
    (session,) = await sessions_of(client, account)
    assert session["acr"] == "aal1"
    assert (await log_in(client, account)).status == 200
    listed = await (await client.get(FACTORS, headers=account.headers)).json()
    assert listed == {"items": [], "recovery_codes_left": 0}
    await forget_used_codes(client)
    # A session that had level 2 through a factor that is gone does not get it back with a new one.
    await assert_problem(await remove(client, account, app.factor_id), 404, "not_found")


async def test_changes_of_factors_end_sign_ins_in_progress(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    await add_totp(client, account.headers)
    response = await answer(client, problem["challenge"], code=app.code(1))
    await assert_problem(response, 401, "invalid_challenge")


async def test_new_recovery_codes_end_the_old_ones_and_sign_ins_in_progress(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    begun = await ask_for_challenge(client, account)
    response = await client.post(f"{ME}/recovery-codes", headers=account.headers)
    ended = await answer(client, begun["challenge"], code=app.code(1))
    await assert_problem(ended, 401, "invalid_challenge")
    fresh = (await response.json())["recovery_codes"]
    assert len(set(fresh) - set(app.recovery_codes)) == 10
    problem = await ask_for_challenge(client, account)
    refused = await answer(client, problem["challenge"], recovery_code=app.recovery_codes[0])
    await assert_problem(refused, 401, "wrong_code")
    await sign_in_with(client, account, recovery_code=fresh[0])
    listed = await (await client.get(FACTORS, headers=account.headers)).json()
    assert listed["recovery_codes_left"] == 9


async def test_an_account_has_three_apps_at_most(client: Client) -> None:
    account = await register(client)
    for _ in range(3):
        await add_totp(client, account.headers)
    response = await client.post(f"{FACTORS}/totp", headers=account.headers, json={})
    await assert_problem(response, 409, "too_many_factors")


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.asvs("6.3.7")
async def test_the_owner_is_told_of_each_change(
    client: Client, settings: Settings, language: str
) -> None:
    account = await register(client)
    await client.patch(ME, headers=account.headers, json={"settings": {"language": language}})
    email = account.profile["email"]
    told: list[str] = []

    async def tell() -> None:
        told.append(text_of(await next_mail(settings.data_dir, email)))

    await tell()
    app = await add_totp(client, account.headers)
    await tell()
    await client.post(f"{ME}/recovery-codes", headers=account.headers)
    await tell()
    await remove(client, account, app.factor_id)
    await tell()
    assert len(set(told)) == 4


async def test_changes_are_recorded_without_secrets(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await client.patch(
        f"{FACTORS}/{app.factor_id}", headers=account.headers, json={"name": "Phone"}
    )
    await client.post(f"{ME}/recovery-codes", headers=account.headers)
    await remove(client, account, app.factor_id)
    rows = await conn.fetch("select action, before, after from audit_events order by id")
    actions = [row["action"] for row in rows]
    assert actions == [
        "user.register",
        "factor.add",
        "factor.rename",
        "factor.replace_codes",
        "factor.remove",
    ]
    assert "secret" not in json.dumps([list(row) for row in rows])


@pytest.mark.asvs("6.4.3")
async def test_the_first_proof_of_a_mailbox_removes_factors(
    client: Client, settings: Settings, conn: Any
) -> None:
    """Whoever registered a stranger's email may have added a factor, to keep its owner out."""
    account = await register(client)
    await add_totp(client, account.headers)
    await reset_password(client, settings, account)
    assert await conn.fetchval("select count(*) from factors") == 0
    assert (await log_in(client, account)).status == 200


@pytest.mark.asvs("6.4.3")
async def test_a_reset_of_the_password_keeps_factors(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    await conn.execute("update users set email_verified_at = now()")
    app = await add_totp(client, account.headers)
    await reset_password(client, settings, account)
    problem = await ask_for_challenge(client, account)
    assert (await answer(client, problem["challenge"], code=app.code(1))).status == 200


async def reset_password(client: Client, settings: Settings, account: Account) -> None:
    token = await mail_reset(client, settings.data_dir, account)
    response = await reset(client, token, account.password)
    assert response.status == 204, await response.text()


async def test_the_last_two_factors_are_not_both_removed_at_once(start_app: StartApp) -> None:
    """Where the policy asks for one."""
    client = await start_app(require_second_factor="admins")
    account = await register(client)
    app, other = await add_totp(client, account.headers), await add_totp(client, account.headers)
    account = await promoted(client, account)
    responses = await asyncio.gather(
        *(remove(client, account, each.factor_id) for each in (app, other) for _ in range(5))
    )
    statuses = Counter(response.status for response in responses)
    assert statuses == {204: 1, 404: 4, 409: 5}
    listed = await (await client.get(FACTORS, headers=account.headers)).json()
    assert len(listed["items"]) == 1


async def promoted(client: Client, account: Account) -> Account:
    await pool_of(client).execute("update users set role = 'admin'")
    return account


async def test_export_lists_factors_without_secrets(client: Client, conn: Any) -> None:
    account = await register(client)
    await add_totp(client, account.headers)
    await add_passkey(client, account.headers)
    document = await (await client.get(f"{ME}/export", headers=account.headers)).json()
    assert [factor["type"] for factor in document["factors"]] == ["totp", "passkey"]
    assert set(document["factors"][0]) == {"id", "type", "name", "created_at", "last_used_at"}


async def test_strangers_do_not_reach_a_factor(client: Client) -> None:
    owner, stranger = await register(client), await register_as(client, "support")
    app = await start_totp(client, owner.headers)
    refused = await confirm(client, stranger.headers, app, app.code())
    await assert_problem(refused, 404, "not_found")
    assert (await confirm(client, owner.headers, app, app.code())).status == 200
    url = f"{FACTORS}/{app.factor_id}"
    renamed = await client.patch(url, headers=stranger.headers, json={"name": "mine"})
    await assert_problem(renamed, 404, "not_found")
    removed = await client.delete(url, headers=stranger.headers)
    await assert_problem(removed, 404, "not_found")
