"""What each route asks of the session: none, level 1 or 2, proved recently or long ago."""

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import pytest

from service.auth.guards import (
    aal2,
    admin_recently,
    anyone,
    enrolling,
    optionally_signed_in,
    recently,
    recently_enrolling,
    recently_or_by_password,
)
from service.http.route import Route
from service.routes import ROUTES
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, register, register_as
from tests.support.factors import (
    add_passkey,
    add_totp,
    age_proofs,
    begin_passkey_sign_in,
    forget_used_codes,
    prove,
    sign_in_with,
)
from tests.support.holding import holding
from tests.support.logbook import logged, refusals_in
from tests.support.steps import refresh
from tests.support.tokens import claims_of
from tests.support.waiting import DEADLINE_S

ME = "/api/v1/users/me"
EXPORT = f"{ME}/export"
CHANGE_PASSWORD = f"{ME}/password"


class Session(NamedTuple):
    """What a session proves, and whether its account has a second factor."""

    name: str
    aal: int
    recent: bool
    has_second_factor: bool


SESSIONS = [
    Session("level 1, old", 1, recent=False, has_second_factor=False),
    Session("level 1, recent", 1, recent=True, has_second_factor=False),
    Session("level 2, old", 2, recent=False, has_second_factor=True),
    Session("level 2, recent", 2, recent=True, has_second_factor=True),
    # From a replica of a version without second factors.
    Session("level 1 beside a second factor", 1, recent=True, has_second_factor=True),
    # The last factor was removed.
    Session("level 2 without a second factor", 2, recent=True, has_second_factor=False),
]
PRIVATE = [route for route in ROUTES if route.access not in (anyone, optionally_signed_in)]
CELLS = {
    (route.method, route.path, session.name): session for route in PRIVATE for session in SESSIONS
}


def asked_for(route: Route, session: Session) -> str | None:
    """Return the challenge of the refusal, or None if the guard lets the session through."""
    level = 2 if session.has_second_factor else 1
    if (route.method, route.path) == ("POST", CHANGE_PASSWORD) and level == 1:
        # By the current password.
        return None
    has = min(session.aal, 1 + session.has_second_factor)
    challenge = 'Bearer error="insufficient_user_authentication"'
    enrols = route.access in (enrolling, recently_enrolling)
    if session.has_second_factor and has < 2 and not enrols:
        return f'{challenge}, acr_values="aal2"'
    if route.access is aal2:
        level = 2
    elif route.access not in (
        recently,
        recently_enrolling,
        recently_or_by_password,
        admin_recently,
    ):
        return None
    if has >= level and session.recent:
        return None
    return f'{challenge}, acr_values="aal{level}", max_age=600'


async def let_be(conn: Any, account: Account, session: Session) -> None:
    await conn.execute(
        """
        with users as (
            update users set has_second_factor = $2 where id = $1
        )
        update sessions
        set aal = $3::smallint, aal1_at = now() - $4::int * interval '1 minute',
            aal2_at = case when $3 = 2 then now() - $4::int * interval '1 minute' end
        where user_id = $1
        """,
        account.profile["id"],
        session.has_second_factor,
        session.aal,
        0 if session.recent else 11,
    )


def test_the_table_of_cells_is_whole() -> None:
    assert len(CELLS) == len(PRIVATE) * 6
    refused = {key for key, session in CELLS.items() if asked_for(_route(key), session) is not None}
    assert len(refused) >= 40


def _route(key: tuple[str, str, str]) -> Route:
    return next(route for route in PRIVATE if (route.method, route.path) == key[:2])


def bodies(account: Account) -> dict[tuple[str, str], dict[str, str]]:
    """Return the bodies of routes that look at the session only after their body."""
    password = {"current_password": account.password, "password": "weaves algebraic patterns"}
    return {
        ("POST", CHANGE_PASSWORD): password,
        ("POST", f"{ME}/email"): {"email": "other@example.com"},
    }


@pytest.mark.asvs("7.5.1", "7.5.3", "8.2.1", "8.3.1")
@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.name)
async def test_every_route_asks_for_its_assurance(
    client: Client, conn: Any, session: Session
) -> None:
    """Without a body, callers past the guard change nothing except by DELETE.

    A password in the body does instead of a proof of level 1, where the guard says so.
    """
    account = await register_as(client, "admin")
    for route in PRIVATE:
        if (await client.get(f"{ME}/factors", headers=account.headers)).status != 200:
            account = await register_as(client, "admin")
        await let_be(conn, account, session)
        path = route.path
        for name in ("user_id", "session_id", "factor_id"):
            path = path.replace(f"{{{name}}}", account.profile["id"])
        for name in ("world_id", "event_id", "story_id", "beat_id", "cause_id"):
            path = path.replace(f"{{{name}}}", account.profile["id"])
        body = bodies(account).get((route.method, route.path))
        response = await client.request(route.method, path, headers=account.headers, json=body)
        cell = (route.method, route.path, session.name, response.status, await response.text())
        challenge = asked_for(route, session)
        if challenge is not None:
            assert response.headers.get("WWW-Authenticate") == challenge, cell
            await assert_problem(response, 401, "insufficient_authentication")
        else:
            assert response.status not in (401, 403, 405, 500), cell


async def test_the_description_says_how_recent_a_proof_must_be(client: Client) -> None:
    document = await (await client.get("/openapi.json")).json()
    described = document["paths"]["/api/v1/users/me/factors/{factor_id}"]["delete"]["description"]
    assert "proved in the last 10 minutes" in " ".join(described.split())


async def test_a_session_from_before_counts_as_old(client: Client, conn: Any) -> None:
    account = await register(client)
    await conn.execute("update sessions set aal1_at = null")
    refused = await client.get(EXPORT, headers=account.headers)
    await assert_problem(refused, 401, "insufficient_authentication")
    tokens = await (await refresh(client, account.tokens["refresh_token"])).json()
    started = await conn.fetchval("select extract(epoch from created_at)::int8 from sessions")
    claims = claims_of(tokens["access_token"])
    assert (claims["acr"], claims["amr"]) == ("aal1", ["pwd"])
    assert abs(claims["auth_time"] - started) <= 1


@pytest.mark.asvs("7.5.1")
async def test_a_password_proves_level_one_again(client: Client) -> None:
    account = await register(client)
    await age_proofs(client)
    refused = await client.get(EXPORT, headers=account.headers)
    await assert_problem(refused, 401, "insufficient_authentication")
    proved = await prove(client, account.headers, password=account.password)
    assert proved.status == 200
    answer = await proved.json()
    assert set(answer) == {"access_token", "token_type", "expires_in"}
    old, new = claims_of(account.tokens["access_token"]), claims_of(answer["access_token"])
    assert (new["sid"], new["acr"], new["amr"]) == (old["sid"], "aal1", ["pwd"])
    assert (await client.get(EXPORT, headers=account.headers)).status == 200


@pytest.mark.asvs("7.5.1")
async def test_a_password_does_not_make_level_two_recent(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await age_proofs(client)
    assert (await prove(client, account.headers, password=account.password)).status == 200
    refused = await client.get(EXPORT, headers=account.headers)
    await assert_problem(refused, 401, "insufficient_authentication")
    assert 'acr_values="aal2", max_age=600' in refused.headers["WWW-Authenticate"]
    proved = await prove(client, account.headers, code=app.code(1))
    assert claims_of((await proved.json())["access_token"])["acr"] == "aal2"
    assert (await client.get(EXPORT, headers=account.headers)).status == 200


async def test_a_refresh_moves_no_time_and_keeps_the_level(client: Client) -> None:
    account = await register(client)
    await add_totp(client, account.headers)
    await age_proofs(client)
    tokens = await (await refresh(client, account.tokens["refresh_token"])).json()
    claims = claims_of(tokens["access_token"])
    assert (claims["acr"], claims["amr"]) == ("aal2", ["pwd", "otp"])
    assert claims["iat"] - claims["auth_time"] >= 3600
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    await assert_problem(
        await client.get(EXPORT, headers=headers), 401, "insufficient_authentication"
    )


async def test_a_passkey_proves_both_levels(client: Client) -> None:
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    await age_proofs(client)
    begun = await begin_passkey_sign_in(client)
    proof = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.get(begun["options"]),
    }
    proved = await prove(client, account.headers, **proof)
    assert proved.status == 200, await proved.text()
    assert (await client.get(EXPORT, headers=account.headers)).status == 200
    again = await prove(client, account.headers, **proof)
    await assert_problem(again, 403, "passkey_counter_fell")
    proof["credential"] = authenticator.get(begun["options"])
    await assert_problem(await prove(client, account.headers, **proof), 403, "invalid_challenge")


async def test_a_passkey_of_another_account_proves_nothing(client: Client) -> None:
    account, other = await register(client), await register(client)
    stranger = await add_passkey(client, other.headers)
    begun = await begin_passkey_sign_in(client)
    proof = {"challenge_id": begun["challenge_id"], "credential": stranger.get(begun["options"])}
    with logged() as events:
        refused = await prove(client, account.headers, **proof)
    await assert_problem(refused, 403, "unknown_passkey")
    assert refusals_in(events) == [account.profile["id"]]
    assert (await prove(client, other.headers, **proof)).status == 200


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        ({"password": "another passphrase of mine"}, "wrong_password"),
        ({"code": "000000"}, "wrong_code"),
        ({}, "invalid_fields"),
        ({"password": "a", "code": "000000"}, "invalid_fields"),
        ({"challenge_id": "x"}, "invalid_fields"),
    ],
)
async def test_a_wrong_proof_is_refused(client: Client, proof: dict[str, str], code: str) -> None:
    account = await register(client)
    await age_proofs(client)
    response = await prove(client, account.headers, **proof)
    await assert_problem(response, 422 if code == "invalid_fields" else 403, code)
    refused = await client.get(EXPORT, headers=account.headers)
    await assert_problem(refused, 401, "insufficient_authentication")


async def test_the_same_code_proves_once_at_once(client: Client) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    await forget_used_codes(client)
    code = app.code()
    responses = await asyncio.gather(
        *(prove(client, account.headers, code=code) for _ in range(50))
    )
    assert Counter(response.status for response in responses) == {200: 1, 403: 49}


async def test_a_code_is_checked_behind_the_lock_of_the_account(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    code = app.code(1)
    async with holding(conn, "select from factors for update") as start:
        proofs = [await start(prove(client, account.headers, code=code)) for _ in range(2)]
    assert [proof.result().status for proof in proofs] == [200, 403]


async def test_email_and_deletion_take_a_recent_proof_or_the_password(client: Client) -> None:
    account = await register(client)
    body = {"email": "other@example.com"}
    recent = await client.post(f"{ME}/email", headers=account.headers, json=body)
    assert recent.status == 202
    await age_proofs(client)
    old = await client.post(f"{ME}/email", headers=account.headers, json=body)
    await assert_problem(old, 401, "insufficient_authentication")
    by_password = {**body, "password": account.password}
    assert (
        await client.post(f"{ME}/email", headers=account.headers, json=by_password)
    ).status == 202
    wrong = await client.delete(ME, headers=account.headers, json={"password": "not the password"})
    await assert_problem(wrong, 403, "wrong_password")
    await assert_problem(
        await client.delete(ME, headers=account.headers), 401, "insufficient_authentication"
    )
    await prove(client, account.headers, password=account.password)
    assert (await client.delete(ME, headers=account.headers)).status == 202


@pytest.mark.asvs("6.2.3", "7.5.1")
async def test_a_password_change_takes_the_password_and_the_second_factor(client: Client) -> None:
    account = await register(client)
    url, new = f"{ME}/password", {"password": "weaves algebraic patterns"}
    missing = await client.post(url, headers=account.headers, json=new)
    await assert_problem(missing, 422, "invalid_fields")
    app = await add_totp(client, account.headers)
    await age_proofs(client)
    both = {**new, "current_password": account.password}
    refused = await client.post(url, headers=account.headers, json=both)
    await assert_problem(refused, 401, "insufficient_authentication")
    await prove(client, account.headers, code=app.code(1))
    assert (await client.post(url, headers=account.headers, json=both)).status == 204


async def test_an_account_without_a_password_sets_one_by_a_recent_proof(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await add_passkey(client, account.headers)
    await conn.execute("update users set password_hash = null")
    url, new = f"{ME}/password", {"password": "weaves algebraic patterns"}
    wrong = {**new, "current_password": account.password}
    await assert_problem(
        await client.post(url, headers=account.headers, json=wrong), 403, "wrong_password"
    )
    await age_proofs(client)
    refused = await client.post(url, headers=account.headers, json=new)
    await assert_problem(refused, 401, "insufficient_authentication")
    await conn.execute("update sessions set aal2_at = now()")
    assert (await client.post(url, headers=account.headers, json=new)).status == 204
    assert await conn.fetchval("select password_hash is not null from users")


async def test_tokens_say_what_the_session_proves(client: Client) -> None:
    account = await register(client)
    claims = claims_of(account.tokens["access_token"])
    assert (claims["acr"], claims["amr"]) == ("aal1", ["pwd"])
    assert 0 <= claims["iat"] - claims["auth_time"] < DEADLINE_S
    app = await add_totp(client, account.headers)
    signed_in = await sign_in_with(client, account, code=app.code(1))
    claims = claims_of(signed_in.tokens["access_token"])
    assert (claims["acr"], claims["amr"]) == ("aal2", ["pwd", "otp"])
