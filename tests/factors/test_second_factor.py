"""Sign-in in two steps."""

import asyncio
from collections import Counter

import pytest
from aiohttp import ClientResponse

from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import assert_problem, bearer, register
from tests.support.factors import (
    add_totp,
    answer,
    ask_for_challenge,
    forget_used_codes,
    sign_in_with,
)
from tests.support.logbook import logged, refusals_in
from tests.support.mailbox import next_mail, text_of


@pytest.mark.asvs("6.3.3", "6.5.1")
async def test_a_code_completes_the_sign_in(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    assert problem["factors"] == ["totp", "recovery_code"]
    response = await answer(client, problem["challenge"], code=app.code(1))
    assert response.status == 200
    headers = bearer((await response.json())["access_token"])
    sessions = await (await client.get("/api/v1/users/me/sessions", headers=headers)).json()
    current = next(session for session in sessions["items"] if session["current"])
    assert (current["amr"], current["acr"]) == (["pwd", "otp"], "aal2")


@pytest.mark.asvs("6.5.1")
async def test_a_code_is_good_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)

    async def sign_in(code: str) -> ClientResponse:
        problem = await ask_for_challenge(client, account)
        response: ClientResponse = await answer(client, problem["challenge"], code=code)
        return response

    await assert_problem(await sign_in(app.used_code), 401, "wrong_code")
    code = app.code(1)
    assert (await sign_in(code)).status == 200
    await assert_problem(await sign_in(code), 401, "wrong_code")


async def test_a_recovery_code_is_good_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    code = app.recovery_codes[3]
    await sign_in_with(client, account, recovery_code=code.upper().replace("-", " "))
    problem = await ask_for_challenge(client, account)
    with logged() as events:
        response = await answer(client, problem["challenge"], recovery_code=code)
    await assert_problem(response, 401, "wrong_code")
    assert refusals_in(events) == [account.profile["id"]]


@pytest.mark.usefixtures("mail_at_once")
async def test_the_owner_is_notified_of_a_used_recovery_code(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    assert app.recovery_codes is not None
    await sign_in_with(client, account, recovery_code=app.recovery_codes[0])
    # The others are about the email and about the app.
    mails = [await next_mail(settings.data_dir, account.profile["email"]) for _ in range(3)]
    (notice,) = (mail for mail in mails if "recovery code was used" in mail["Subject"])
    assert "Recovery codes left: 9." in " ".join(text_of(notice).split())


async def test_a_challenge_is_good_once_and_for_five_tries(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problem = await ask_for_challenge(client, account)
    for _ in range(5):
        response = await answer(client, problem["challenge"], code=app.wrong_code())
        await assert_problem(response, 401, "wrong_code")
    response = await answer(client, problem["challenge"], code=app.code(1))
    await assert_problem(response, 401, "invalid_challenge")
    problem = await ask_for_challenge(client, account)
    assert (await answer(client, problem["challenge"], code=app.code(1))).status == 200
    await forget_used_codes(client)
    response = await answer(client, problem["challenge"], code=app.code())
    await assert_problem(response, 401, "invalid_challenge")


@pytest.mark.asvs("6.5.1")
async def test_the_same_code_fifty_times_at_once_signs_in_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    problems = [await ask_for_challenge(client, account) for _ in range(5)]
    code = app.code(1)
    responses = await asyncio.gather(
        *(
            answer(client, problem["challenge"], code=code)
            for problem in problems
            for _ in range(10)
        )
    )
    assert Counter(response.status for response in responses)[200] == 1
