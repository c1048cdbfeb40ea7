"""Passkeys over HTTP."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.authenticator import Authenticator
from tests.support.clients import Client, StartApp, pool_of
from tests.support.factories import Account, assert_problem, bearer, register
from tests.support.factors import (
    PASSKEY,
    PASSKEYS,
    add_passkey,
    add_totp,
    answer,
    ask_for_challenge,
    begin_passkey,
    begin_passkey_sign_in,
    log_in,
    options_of,
    sign_in_with,
    sign_in_with_passkey,
)
from tests.support.holding import holding
from tests.support.logbook import logged, refusals_in
from tests.support.passkey_faults import FAULTS, Fault
from tests.support.steps import change_email, mail_reset, mails, reset

ME = "/api/v1/users/me"
OF_CREATION = [fault for fault in FAULTS if fault.step == "create"]
OF_SIGN_IN = [fault for fault in FAULTS if fault.step == "get"]


@pytest.mark.asvs("6.3.3", "6.7.2")
async def test_a_passkey_signs_in_without_a_name(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    response = await sign_in_with_passkey(client, authenticator)
    assert response.status == 200
    headers = bearer((await response.json())["access_token"])
    profile = await (await client.get(ME, headers=headers)).json()
    assert profile["email"] == account.profile["email"]
    sessions = await (await client.get(f"{ME}/sessions", headers=headers)).json()
    current = next(session for session in sessions["items"] if session["current"])
    assert (current["amr"], current["acr"]) == (["swk"], "aal2")


async def test_a_passkey_is_a_second_factor(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    problem = await ask_for_challenge(client, account)
    assert problem["factors"] == ["passkey", "recovery_code"]
    options = await options_of(client, problem["challenge"])
    assert [allowed["id"] for allowed in options["allowCredentials"]] != []
    credential = authenticator.get(options)
    response = await answer(client, problem["challenge"], credential=credential)
    assert response.status == 200
    again = await answer(client, problem["challenge"], credential=credential)
    await assert_problem(again, 401, "invalid_challenge")


async def test_the_counter_of_a_second_factor_must_rise(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    for accepted in (True, False):
        challenge = (await ask_for_challenge(client, account))["challenge"]
        credential = authenticator.get(await options_of(client, challenge))
        response = await answer(client, challenge, credential=credential)
        assert (response.status == 200) is accepted
        authenticator.count -= 1
    await assert_problem(response, 401, "passkey_counter_fell")


@pytest.mark.asvs("6.7.2")
@pytest.mark.parametrize("fault", OF_CREATION, ids=lambda fault: fault.name)
async def test_a_registration_with_a_fault_is_refused(client: Client, fault: Fault) -> None:
    account = await register(client)
    begun = await begin_passkey(client, account.headers)
    authenticator = Authenticator()
    sent = {"challenge_id": begun["challenge_id"]}
    wrong = {**sent, "credential": fault.wrong(authenticator, begun["options"])}
    response = await client.post(PASSKEYS, headers=account.headers, json=wrong)
    code = fault.over_http or f"passkey_{fault.code}"
    await assert_problem(response, 422, code)
    assert await listed(client, account) == []
    right = {**sent, "credential": fault.right(authenticator, begun["options"])}
    response = await client.post(PASSKEYS, headers=account.headers, json=right)
    assert response.status == 201, await response.text()


@pytest.mark.asvs("6.7.2")
@pytest.mark.parametrize("fault", OF_SIGN_IN, ids=lambda fault: fault.name)
async def test_a_sign_in_with_a_fault_is_refused(client: Client, fault: Fault) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    begun = await begin_passkey_sign_in(client)
    sent = {"challenge_id": begun["challenge_id"]}
    wrong = {**sent, "credential": fault.wrong(authenticator, begun["options"])}
    status, code = (422, fault.over_http) if fault.over_http else (401, f"passkey_{fault.code}")
    if fault.code == "credential_id_mismatch" and code == "passkey_credential_id_mismatch":
        code = (
            "unknown_passkey" if wrong["credential"]["id"] == wrong["credential"]["rawId"] else code
        )
    await assert_problem(await client.post(PASSKEY, json=wrong), status, code)
    right = fault.right(authenticator, begun["options"])
    if right["response"].get("userHandle") is None:
        # Accepted as a second factor, but without a name the handle is needed (§7.2, step 6).
        right = authenticator.get(begun["options"])
    response = await client.post(PASSKEY, json={**sent, "credential": right})
    assert response.status == 200, await response.text()


async def test_a_challenge_is_good_once(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    begun = await begin_passkey_sign_in(client)
    sent = {"challenge_id": begun["challenge_id"]}
    first = {**sent, "credential": authenticator.get(begun["options"])}
    assert (await client.post(PASSKEY, json=first)).status == 200
    second = {**sent, "credential": authenticator.get(begun["options"])}
    await assert_problem(await client.post(PASSKEY, json=second), 401, "invalid_challenge")


async def test_a_challenge_registers_one_passkey(client: Client) -> None:
    account = await register(client)
    begun = await begin_passkey(client, account.headers)
    bodies = [
        {
            "challenge_id": begun["challenge_id"],
            "credential": Authenticator().create(begun["options"]),
        }
        for _ in range(2)
    ]
    added = await client.post(PASSKEYS, headers=account.headers, json=bodies[0])
    assert added.status == 201
    refused = await client.post(PASSKEYS, headers=account.headers, json=bodies[1])
    await assert_problem(refused, 403, "invalid_challenge")
    assert len(await listed(client, account)) == 1


async def test_the_same_assertion_fifty_times_at_once_signs_in_once(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    begun = await begin_passkey_sign_in(client)
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.get(begun["options"]),
    }
    responses = await asyncio.gather(*(client.post(PASSKEY, json=body) for _ in range(50)))
    assert Counter(response.status for response in responses)[200] == 1


async def test_a_challenge_of_another_session_or_purpose_is_refused(client: Client) -> None:
    account, other = await register(client), await register(client)
    begun = await begin_passkey(client, account.headers)
    authenticator = Authenticator()
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.create(begun["options"]),
    }
    refused = await client.post(PASSKEYS, headers=other.headers, json=body)
    await assert_problem(refused, 403, "invalid_challenge")
    sign_in = await begin_passkey_sign_in(client)
    swapped = {**body, "challenge_id": sign_in["challenge_id"]}
    refused = await client.post(PASSKEYS, headers=account.headers, json=swapped)
    await assert_problem(refused, 403, "invalid_challenge")
    assert (await client.post(PASSKEYS, headers=account.headers, json=body)).status == 201


async def test_an_expired_challenge_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    monkeypatch.setattr("service.factors.challenges.TTL_S", -10)
    expired = await begin_passkey_sign_in(client)
    monkeypatch.undo()
    body = {
        "challenge_id": expired["challenge_id"],
        "credential": authenticator.get(expired["options"]),
    }
    await assert_problem(await client.post(PASSKEY, json=body), 401, "invalid_challenge")
    assert (await sign_in_with_passkey(client, authenticator)).status == 200


@pytest.mark.parametrize("off_s", [-3600, 3600])
async def test_a_clock_that_is_off_ends_no_challenge(
    client: Client, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    """Another replica, with another clock, may have issued it."""
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    right = time.time
    monkeypatch.setattr("time.time", lambda: right() + off_s)
    begun = await begin_passkey_sign_in(client)
    monkeypatch.undo()
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.get(begun["options"]),
    }
    assert (await client.post(PASSKEY, json=body)).status == 200


async def test_a_credential_id_belongs_to_one_account(client: Client) -> None:
    one, other = await register(client), await register(client)
    authenticator = await add_passkey(client, one.headers)
    begun = await begin_passkey(client, other.headers)
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.create(begun["options"]),
    }
    response = await client.post(PASSKEYS, headers=other.headers, json=body)
    await assert_problem(response, 409, "credential_taken")
    assert (await client.get(f"{ME}/factors", headers=other.headers)).status == 200


async def test_a_passkey_of_another_account_is_no_second_factor(client: Client) -> None:
    owner, other = await register(client), await register(client)
    await add_passkey(client, owner.headers)
    stranger = await add_passkey(client, other.headers)
    problem = await ask_for_challenge(client, owner)
    credential = stranger.get(await options_of(client, problem["challenge"]))
    response = await answer(client, problem["challenge"], credential=credential)
    await assert_problem(response, 401, "unknown_passkey")


async def test_a_handle_of_another_account_is_refused(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    authenticator.user_handle = b"somebody else"
    with logged() as events:
        response = await sign_in_with_passkey(client, authenticator)
    await assert_problem(response, 401, "unknown_passkey")
    assert refusals_in(events) == [None]


async def test_a_handle_is_not_the_id_and_stays(client: Client) -> None:
    account = await register(client)
    first = (await begin_passkey(client, account.headers))["options"]["user"]
    second = (await begin_passkey(client, account.headers))["options"]["user"]
    assert first == second
    assert account.profile["id"].replace("-", "") not in first["id"]


@pytest.mark.parametrize("status", ["suspended", "deleted by an administrator", "unverified"])
async def test_an_account_that_may_not_sign_in_does_not_by_passkey(
    start_app: StartApp, status: str
) -> None:
    client = await start_app()
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    change = {
        "suspended": "status = 'suspended'",
        "deleted by an administrator": "status = 'deleting', deleted_by_admin = true,"
        " purge_at = now() + interval '1 day'",
        "unverified": "email_verified_at = null",
    }[status]
    await pool_of(client).execute(f"update users set {change}")
    if status == "unverified":
        client = await start_app(require_email_verification=True)
    with logged() as events:
        response = await sign_in_with_passkey(client, authenticator)
    await assert_problem(response, 401, "unknown_passkey")
    assert refusals_in(events) == [account.profile["id"]]


async def test_an_account_without_a_password_keeps_its_last_passkey(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    response = await client.delete(
        f"{ME}/password", headers=account.headers, json={"current_password": account.password}
    )
    assert response.status == 204
    (passkey,) = await listed(client, account)
    url = f"{ME}/factors/{passkey['id']}"
    await assert_problem(await client.delete(url, headers=account.headers), 409, "last_way_in")
    await add_totp(client, account.headers)
    await assert_problem(await client.delete(url, headers=account.headers), 409, "last_way_in")
    assert (await sign_in_with_passkey(client, authenticator)).status == 200
    await add_passkey(client, account.headers)
    assert (await client.delete(url, headers=account.headers)).status == 204
    await assert_problem(await sign_in_with_passkey(client, authenticator), 401, "unknown_passkey")


async def test_a_password_is_removed_only_beside_a_passkey(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    url, own = f"{ME}/password", {"current_password": account.password}
    refused = await client.delete(url, headers=account.headers, json=own)
    await assert_problem(refused, 401, "insufficient_authentication")
    app = await add_totp(client, account.headers)
    refused = await client.delete(url, headers=account.headers, json=own)
    await assert_problem(refused, 409, "last_way_in")
    await add_passkey(client, account.headers)
    other = await sign_in_with(client, account, code=app.code(1))
    wrong = {"current_password": "another passphrase of mine"}
    refused = await client.delete(url, headers=account.headers, json=wrong)
    await assert_problem(refused, 403, "wrong_password")
    assert (await client.delete(url, headers=account.headers, json=own)).status == 204
    await assert_problem(await client.get(ME, headers=other.headers), 401, "invalid_token")
    await assert_problem(await log_in(client, account), 401, "invalid_credentials")
    notice = (account.profile["email"], "Your password was removed")
    assert notice in await mails(settings.data_dir, conn)
    actions = await conn.fetch("select action from audit_events order by id")
    assert "password.remove" in {row["action"] for row in actions}
    body = {"password": account.password}
    assert (await client.post(url, headers=account.headers, json=body)).status == 204
    await ask_for_challenge(client, account)


async def test_a_password_that_was_just_replaced_is_not_removed(client: Client, conn: Any) -> None:
    account = await register(client)
    await add_passkey(client, account.headers)
    own = {"current_password": account.password}
    new = {**own, "password": "quite another phrase than that"}
    async with holding(conn, "select from users for update") as start:
        url, headers = f"{ME}/password", account.headers
        replaced = await start(client.post(url, headers=headers, json=new))
        removed = await start(client.delete(url, headers=headers, json=own))
    assert replaced.result().status == 204
    await assert_problem(removed.result(), 403, "wrong_password")


async def test_links_that_were_requested_end_with_the_password(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    await add_passkey(client, account.headers)
    token = await mail_reset(client, settings.data_dir, account)
    await change_email(client, account, account.password, to="other@example.com")
    own = {"current_password": account.password}
    removed = await client.delete(f"{ME}/password", headers=account.headers, json=own)
    assert removed.status == 204
    await assert_problem(await reset(client, token), 400, "invalid_token")
    purposes = await conn.fetch("select distinct purpose from action_tokens")
    assert [row["purpose"] for row in purposes] == ["email_verify"]


async def test_a_removed_password_gives_its_attempt_back(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    account = await register(client)
    await add_passkey(client, account.headers)
    own = {"current_password": account.password}
    removed = await client.delete(f"{ME}/password", headers=account.headers, json=own)
    assert removed.status == 204
    assert ";r=3;" in removed.headers["RateLimit"]


async def test_the_password_and_the_last_passkey_do_not_go_together(client: Client) -> None:
    account = await register(client)
    await add_passkey(client, account.headers)
    (passkey,) = await listed(client, account)
    responses = await asyncio.gather(
        client.delete(f"{ME}/factors/{passkey['id']}", headers=account.headers),
        client.delete(
            f"{ME}/password", headers=account.headers, json={"current_password": account.password}
        ),
    )
    assert sorted(response.status for response in responses) in ([204, 401], [204, 409])


async def test_an_account_has_twenty_passkeys_at_most(client: Client) -> None:
    account = await register(client)
    for _ in range(19):
        await add_passkey(client, account.headers)
    begun = await begin_passkey(client, account.headers)
    await add_passkey(client, account.headers)
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": Authenticator().create(begun["options"]),
    }
    response = await client.post(PASSKEYS, headers=account.headers, json=body)
    await assert_problem(response, 409, "too_many_factors")
    response = await client.post(f"{PASSKEYS}/options", headers=account.headers)
    await assert_problem(response, 409, "too_many_factors")


async def test_an_ip_address_has_no_passkeys(start_app: StartApp) -> None:
    client = await start_app(public_origin="http://192.0.2.7:8080", rp_id="")
    account = await register(client)
    for path, headers in (
        (f"{PASSKEYS}/options", account.headers),
        (f"{PASSKEY}/options", {}),
    ):
        response = await client.post(path, headers=headers)
        await assert_problem(response, 409, "passkeys_not_configured")


async def test_passkeys_are_named_renamed_and_counted(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers, name="Phone")
    (passkey,) = await listed(client, account)
    assert (passkey["type"], passkey["name"], passkey["last_used_at"]) == ("passkey", "Phone", None)
    url = f"{ME}/factors/{passkey['id']}"
    renamed = await client.patch(url, headers=account.headers, json={"name": "Old phone"})
    assert (await renamed.json())["name"] == "Old phone"
    await sign_in_with_passkey(client, authenticator)
    (passkey,) = await listed(client, account)
    assert passkey["last_used_at"] is not None


async def listed(client: Client, account: Account) -> list[dict[str, Any]]:
    response = await client.get(f"{ME}/factors", headers=account.headers)
    items: list[dict[str, Any]] = (await response.json())["items"]
    return items
