"""``POST /auth/logout``, with an access token, a refresh token, or both."""

from typing import Any

import pytest
from aiohttp import ClientResponse

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers, register
from tests.support.holding import holding
from tests.support.steps import is_signed_in, refresh, send, sign_in_again


async def log_out(
    client: Client, refresh_token: str, headers: dict[str, str] | None = None
) -> ClientResponse:
    body = {"refresh_token": refresh_token}
    return await send(client, "POST", "/auth/logout", body, headers=headers)


async def session_id_of(client: Client, account: Account) -> str:
    listed = await (await send(client, "GET", "/users/me/sessions", by=account)).json()
    return str(next(item["id"] for item in listed["items"] if item["current"]))


@pytest.mark.asvs("7.4.1", "10.4.9")
async def test_refresh_token_ends_its_session(client: Client) -> None:
    account = await register(client)
    response = await log_out(client, account.tokens["refresh_token"])
    assert (response.status, await response.read()) == (204, b"")
    assert not await is_signed_in(client, account)
    assert (await refresh(client, account.tokens["refresh_token"])).status == 401


async def test_refresh_token_ends_its_session_despite_an_invalid_access_token(
    client: Client,
) -> None:
    """Clients send the access token with every request, and it may have expired."""
    account = await register(client)
    expired = {"Authorization": "Bearer expired"}
    assert (await log_out(client, account.tokens["refresh_token"], expired)).status == 204
    assert not await is_signed_in(client, account)


async def test_refresh_token_ends_no_other_session(client: Client) -> None:
    account, other = await register(client), await register(client)
    elsewhere = await sign_in_again(client, account)
    assert (await log_out(client, account.tokens["refresh_token"])).status == 204
    assert await is_signed_in(client, elsewhere)
    assert await is_signed_in(client, other)


async def test_used_refresh_token_ends_its_session(client: Client) -> None:
    """A tab that missed a refresh must not seem to sign out."""
    account = await register(client)
    used = account.tokens["refresh_token"]
    assert (await refresh(client, used)).status == 200
    assert (await log_out(client, used)).status == 204
    assert not await is_signed_in(client, account)


async def test_unknown_refresh_token_gets_the_same_response(client: Client) -> None:
    account = await register(client)
    response = await log_out(client, "made-up")
    assert (response.status, await response.read()) == (204, b"")
    assert await is_signed_in(client, account)


async def test_refresh_token_of_an_ended_session_gets_the_same_response(client: Client) -> None:
    account = await register(client)
    for _ in range(2):
        assert (await log_out(client, account.tokens["refresh_token"])).status == 204


async def test_both_tokens_end_their_sessions(client: Client) -> None:
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    response = await log_out(client, elsewhere.tokens["refresh_token"], account.headers)
    assert response.status == 204
    assert not await is_signed_in(client, account)
    assert not await is_signed_in(client, elsewhere)


async def test_access_token_ends_its_session_despite_an_unknown_refresh_token(
    client: Client,
) -> None:
    account = await register(client)
    assert (await log_out(client, "made-up", account.headers)).status == 204
    assert not await is_signed_in(client, account)


@pytest.mark.parametrize("body", [None, {}])
async def test_logout_without_any_token_is_refused(client: Client, body: Any) -> None:
    response = await send(client, "POST", "/auth/logout", body)
    await assert_problem(response, 401, "not_signed_in")


async def test_logout_with_an_invalid_access_token_alone_is_refused(client: Client) -> None:
    response = await send(
        client, "POST", "/auth/logout", headers={"Authorization": "Bearer expired"}
    )
    await assert_problem(response, 401, "invalid_token")


async def test_access_token_with_an_empty_object_ends_its_session(client: Client) -> None:
    account = await register(client)
    assert (await send(client, "POST", "/auth/logout", {}, by=account)).status == 204
    assert not await is_signed_in(client, account)


@pytest.mark.parametrize("body", [{"refresh_token": ""}, {"refresh_token": 1}])
async def test_malformed_refresh_token_is_refused(client: Client, body: Any) -> None:
    account = await register(client)
    response = await send(client, "POST", "/auth/logout", body, by=account)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/refresh_token"}


async def test_logout_by_refresh_token_is_recorded(client: Client, conn: Any) -> None:
    account = await register(client)
    session_id = await session_id_of(client, account)
    await log_out(client, account.tokens["refresh_token"])
    events = await conn.fetch(
        "select actor_id::text, subject_id::text, before ->> 'session_id' as session_id"
        " from audit_events where action = 'session.end'"
    )
    id_ = account.profile["id"]
    assert [tuple(event) for event in events] == [(id_, id_, session_id)]


async def test_logout_with_both_tokens_of_a_session_is_recorded_once(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await log_out(client, account.tokens["refresh_token"], account.headers)
    recorded = "select count(*) from audit_events where action = 'session.end'"
    assert await conn.fetchval(recorded) == 1


async def test_session_refreshed_at_the_same_moment_ends(client: Client, conn: Any) -> None:
    account = await register(client)
    token = account.tokens["refresh_token"]
    async with holding(conn, "select from sessions for update") as start:
        refreshed = await start(refresh(client, token))
        ended = await start(log_out(client, token))
    successor = (await (await refreshed).json())["refresh_token"]
    assert (await ended).status == 204
    assert (await refresh(client, successor)).status == 401
