"""Guessing second factors: limits, locks, and what the responses and their times reveal."""

import asyncio
from collections import Counter
from ipaddress import ip_network
from typing import Any

import pytest

from service.factors import queries
from service.settings import Rate, Settings
from tests.support.authenticator import Authenticator
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register
from tests.support.factors import (
    PASSKEY,
    add_passkey,
    add_totp,
    answer,
    ask_for_challenge,
    begin_passkey_sign_in,
    confirm,
    log_in,
    options_of,
    prove,
    sign_in_with,
    sign_in_with_passkey,
    start_totp,
)
from tests.support.logbook import logged
from tests.support.mailbox import next_mail, text_of

# Leaves five guesses after three passwords, so that none is refused because its challenge has ended.
LIMIT = Rate(8, 15 * 60)


@pytest.mark.asvs("6.3.1")
async def test_two_hundred_guesses_at_once_get_no_more_than_the_limit(
    start_app: StartApp,
) -> None:
    client = await start_app(throttle_sign_in_per_account=LIMIT)
    account = await register(client)
    app = await add_totp(client, account.headers)
    problems = [await ask_for_challenge(client, account) for _ in range(3)]
    wrong = app.wrong_code()
    responses = await asyncio.gather(
        *(answer(client, problems[n % 3]["challenge"], code=wrong) for n in range(200))
    )
    # The passwords are not refunded.
    guesses = [(await r.json(content_type=None))["code"] for r in responses]
    assert Counter(guesses) == {"wrong_code": 5, "too_many_requests": 195}


@pytest.mark.asvs("6.3.1")
async def test_one_challenge_gets_five_guesses_however_many_come_at_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    wrong = app.wrong_code()
    responses = await asyncio.gather(
        *(answer(client, problem["challenge"], code=wrong) for _ in range(200))
    )
    guesses = [(await r.json(content_type=None))["code"] for r in responses]
    assert Counter(guesses) == {"wrong_code": 5, "invalid_challenge": 195}


@pytest.mark.asvs("6.3.1")
async def test_one_challenge_gets_five_refused_passkeys(client: Client) -> None:
    account = await register(client)
    passkey, stranger = await add_passkey(client, account.headers), Authenticator()
    stranger.credential_id = passkey.credential_id
    challenge = (await ask_for_challenge(client, account))["challenge"]
    options = await options_of(client, challenge)
    for _ in range(5):
        refused = await answer(client, challenge, credential=stranger.get(options))
        await assert_problem(refused, 401, "passkey_bad_signature")
    refused = await answer(client, challenge, credential=passkey.get(options))
    await assert_problem(refused, 401, "invalid_challenge")


@pytest.mark.asvs("6.5.1")
async def test_the_same_recovery_code_fifty_times_at_once_signs_in_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    problems = [await ask_for_challenge(client, account) for _ in range(10)]
    responses = await asyncio.gather(
        *(
            answer(client, problem["challenge"], recovery_code=app.recovery_codes[0])
            for problem in problems
            for _ in range(5)
        )
    )
    assert Counter(response.status for response in responses) == {200: 1, 401: 49}


@pytest.mark.asvs("6.3.1")
async def test_a_right_password_alone_gives_no_attempt_back(start_app: StartApp) -> None:
    """Otherwise whoever knows it could guess codes without a limit."""
    client = await start_app(throttle_sign_in_per_account=Rate(4, 15 * 60))
    account = await register(client)
    app = await add_totp(client, account.headers)
    for _ in range(2):
        problem = await ask_for_challenge(client, account)
        await assert_problem(
            await answer(client, problem["challenge"], code=app.wrong_code()), 401, "wrong_code"
        )
    await assert_problem(await log_in(client, account), 429, "too_many_requests")


async def test_a_whole_sign_in_gives_all_its_attempts_back(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(2, 15 * 60))
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    for code in app.recovery_codes[:4]:
        await sign_in_with(client, account, recovery_code=code)


async def test_a_right_proof_gives_its_attempt_back(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(2, 15 * 60))
    account = await register(client)
    for _ in range(4):
        proved = await prove(client, account.headers, password=account.password)
        assert proved.status == 200


@pytest.mark.asvs("6.3.1")
async def test_refused_passkeys_are_limited_by_client_alone(start_app: StartApp) -> None:
    client = await start_app(
        throttle_sign_in_per_ip=Rate(3, 15 * 60), trusted_proxies=(ip_network("127.0.0.1"),)
    )
    account = await register(client)
    passkey, stranger = await add_passkey(client, account.headers), Authenticator()
    stranger.credential_id = passkey.credential_id
    stranger.user_handle = passkey.user_handle
    for _ in range(3):
        await assert_problem(
            await sign_in_with_passkey(client, stranger), 401, "passkey_bad_signature"
        )
    refused = await sign_in_with_passkey(client, passkey)
    await assert_problem(refused, 429, "too_many_requests")
    begun = await begin_passkey_sign_in(client)
    body = {"challenge_id": begun["challenge_id"], "credential": passkey.get(begun["options"])}
    elsewhere = {"X-Forwarded-For": "203.0.113.9"}
    assert (await client.post(PASSKEY, json=body, headers=elsewhere)).status == 200


async def test_proving_again_has_the_limit_of_passwords(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 15 * 60))
    account = await register(client)
    app = await add_totp(client, account.headers)
    for _ in range(3):
        refused = await prove(client, account.headers, code=app.wrong_code())
        await assert_problem(refused, 403, "wrong_code")
    refused = await prove(client, account.headers, code=app.code(1))
    await assert_problem(refused, 429, "too_many_requests")
    await assert_problem(await log_in(client, account), 429, "too_many_requests")


@pytest.mark.asvs("6.3.1")
async def test_an_app_is_locked_after_a_hundred_wrong_codes_in_a_row(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    await conn.execute("update factors set failures = $1", queries.FAILURES_MAX - 1)
    problem = await ask_for_challenge(client, account)
    for _ in range(2):
        await next_mail(settings.data_dir, account.profile["email"])
    response = await answer(client, problem["challenge"], code=app.wrong_code())
    await assert_problem(response, 401, "wrong_code")
    told = text_of(await next_mail(settings.data_dir, account.profile["email"]))
    assert "has been locked" in told
    assert await conn.fetchval("select action from audit_events order by id desc") == "factor.lock"
    problem = await ask_for_challenge(client, account)
    assert problem["factors"] == ["recovery_code"]
    response = await answer(client, problem["challenge"], code=app.code(1))
    await assert_problem(response, 401, "wrong_code")
    # The owner signs in with a recovery code, and replaces the app.
    signed_in = await sign_in_with(client, account, recovery_code=app.recovery_codes[0])
    url = f"/api/v1/users/me/factors/{app.factor_id}"
    assert (await client.delete(url, headers=signed_in.headers)).status == 204
    fresh = await start_totp(client, signed_in.headers)
    assert (await confirm(client, signed_in.headers, fresh, fresh.code())).status == 200
    await sign_in_with(client, account, code=fresh.code(1))


async def test_a_right_code_starts_the_count_of_wrong_ones_anew(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await conn.execute("update factors set failures = $1", queries.FAILURES_MAX - 1)
    await sign_in_with(client, account, code=app.code(1))
    assert await conn.fetchval("select failures from factors") == 0


async def test_a_code_of_one_app_is_not_a_wrong_one_of_another(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await add_totp(client, account.headers)
    await sign_in_with(client, account, code=app.code(1))
    assert await conn.fetchval("select sum(failures) from factors") == 0


@pytest.mark.parametrize("how", ["password", "suspension", "sessions ended"])
async def test_a_challenge_ends_with_the_sessions(client: Client, conn: Any, how: str) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    me = "/api/v1/users/me"
    if how == "password":
        body = {"current_password": account.password, "password": "weaves algebraic patterns"}
        changed = await client.post(f"{me}/password", headers=account.headers, json=body)
        assert changed.status == 204
    elif how == "suspension":
        await conn.execute("update users set status = 'suspended'")
    else:
        assert (await client.delete(f"{me}/sessions", headers=account.headers)).status == 204
    response = await answer(client, problem["challenge"], code=app.code(1))
    await assert_problem(response, 401, "invalid_challenge")


async def test_challenges_are_in_no_log_and_stored_as_hashes(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    with logged() as events:
        problem = await ask_for_challenge(client, account)
        await answer(client, problem["challenge"], code=app.wrong_code())
    assert len(events) >= 2
    assert problem["challenge"] not in str(events)
    rows = await conn.fetch("select * from sign_in_challenges")
    assert problem["challenge"] not in str(rows)
    assert problem["challenge"].encode() not in b"".join(row["token_hash"] for row in rows)


async def test_an_account_has_ten_sign_ins_in_progress_at_most(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problems = [await ask_for_challenge(client, account) for _ in range(12)]
    assert await conn.fetchval("select count(*) from sign_in_challenges") == 10
    oldest, newest = problems[0]["challenge"], problems[-1]["challenge"]
    await assert_problem(await answer(client, oldest, code=app.code(1)), 401, "invalid_challenge")
    assert (await answer(client, newest, code=app.code(1))).status == 200


async def test_passkey_guesses_do_not_lock_the_owner_out(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(1, 15 * 60))
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    begun = await begin_passkey_sign_in(client)
    for _ in range(3):
        forged = authenticator.get(begun["options"], signature=lambda _: b"forged")
        body = {"challenge_id": begun["challenge_id"], "credential": forged}
        refused = await client.post("/api/v1/auth/passkey", json=body)
        await assert_problem(refused, 401, "passkey_bad_signature")
    await ask_for_challenge(client, account)
