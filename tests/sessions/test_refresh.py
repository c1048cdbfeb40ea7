"""``POST /auth/refresh``: one successor per token, and replay detection."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, bearer, register

REFRESH = "/api/v1/auth/refresh"
ME = "/api/v1/users/me"


async def refresh(client: Client, token: str) -> dict[str, Any] | None:
    """Return the new token pair, or None if the token was rejected."""
    response = await client.post(REFRESH, json={"refresh_token": token})
    if response.status == 200:
        tokens: dict[str, Any] = await response.json()
        assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token"}
        return tokens
    await assert_problem(response, 401, "invalid_refresh_token")
    return None


async def is_signed_in(client: Client, access_token: str) -> bool:
    return (await client.get(ME, headers=bearer(access_token))).status == 200


@pytest.mark.asvs("7.2.2", "7.2.3")
async def test_refresh_token_is_exchanged_for_a_new_pair(client: Client, conn: Any) -> None:
    tokens = (await register(client)).tokens
    seen = {tokens["refresh_token"]}
    for _ in range(5):
        refreshed = await refresh(client, tokens["refresh_token"])
        assert refreshed is not None
        assert await is_signed_in(client, refreshed["access_token"])
        seen.add(refreshed["refresh_token"])
        tokens = refreshed
    assert len(seen) == 6
    assert await conn.fetchval("select count(*) from sessions") == 1, "still one session"


async def let_pass(conn: Any, minutes: int) -> None:
    """Make all uses of refresh tokens older."""
    await conn.execute(
        "update refresh_tokens set used_at = used_at - make_interval(mins => $1)", minutes
    )


@pytest.mark.asvs("10.4.5")
async def test_retry_after_a_lost_response_gets_the_same_successor(client: Client) -> None:
    tokens = (await register(client)).tokens
    first = await refresh(client, tokens["refresh_token"])
    again = await refresh(client, tokens["refresh_token"])
    assert first is not None
    assert again is not None
    assert again["refresh_token"] == first["refresh_token"]
    assert await refresh(client, again["refresh_token"]) is not None


async def test_retry_after_an_outage_of_four_minutes_gets_the_successor(
    client: Client, conn: Any
) -> None:
    token = (await register(client)).tokens["refresh_token"]
    first = await refresh(client, token)
    await let_pass(conn, minutes=4)
    again = await refresh(client, token)
    assert first is not None
    assert again is not None
    assert again["refresh_token"] == first["refresh_token"]


async def test_fifty_concurrent_refreshes_get_one_successor(client: Client, conn: Any) -> None:
    tokens = (await register(client)).tokens
    pairs = await asyncio.gather(*(refresh(client, tokens["refresh_token"]) for _ in range(50)))
    assert len({pair["refresh_token"] for pair in pairs if pair}) == 1
    assert None not in pairs
    assert await conn.fetchval("select count(*) from refresh_tokens") == 2
    assert await conn.fetchval("select count(*) from sessions") == 1


@pytest.mark.asvs("10.4.5")
async def test_replay_ends_the_session(client: Client, conn: Any) -> None:
    account = await register(client)
    stolen = account.tokens["refresh_token"]
    first = await refresh(client, stolen)
    assert first is not None
    await let_pass(conn, minutes=6)
    assert await refresh(client, stolen) is None
    assert not await is_signed_in(client, first["access_token"])
    assert await refresh(client, first["refresh_token"]) is None
    action = await conn.fetchval(
        "select action from audit_events order by occurred_at desc limit 1"
    )
    assert action == "session.replay"


@pytest.mark.asvs("10.4.5")
async def test_token_whose_successor_was_used_is_a_replay_at_once(client: Client) -> None:
    """Even within the grace period: the client has its response, so this is someone else."""
    stolen = (await register(client)).tokens["refresh_token"]
    second = await refresh(client, stolen)
    assert second is not None
    third = await refresh(client, second["refresh_token"])
    assert third is not None
    assert await refresh(client, stolen) is None
    assert await refresh(client, third["refresh_token"]) is None


async def test_replay_leaves_other_sessions_alone(client: Client, conn: Any) -> None:
    account, other = await register(client), await register(client)
    await refresh(client, account.tokens["refresh_token"])
    await let_pass(conn, minutes=6)
    assert await refresh(client, account.tokens["refresh_token"]) is None
    assert await refresh(client, other.tokens["refresh_token"]) is not None


async def test_malformed_refresh_token_is_rejected(client: Client) -> None:
    account = await register(client)
    for token in ("x", account.tokens["access_token"][:500], account.tokens["refresh_token"][:-1]):
        assert await refresh(client, token) is None
    assert await refresh(client, account.tokens["refresh_token"]) is not None


@pytest.mark.asvs("9.2.2")
async def test_refresh_token_is_not_an_access_token(client: Client) -> None:
    account = await register(client)
    assert not await is_signed_in(client, account.tokens["refresh_token"])


@pytest.mark.asvs("7.3.1", "7.3.2", "10.4.8")
async def test_sessions_expire(start_app: StartApp, conn: Any) -> None:
    client = await start_app(session_idle_ttl_s=3600)
    tokens = (await register(client)).tokens
    await conn.execute("update sessions set idle_expires_at = now() + interval '1 minute'")
    refreshed = await refresh(client, tokens["refresh_token"])
    assert refreshed is not None
    left = await conn.fetchval("select idle_expires_at - now() from sessions")
    assert left.total_seconds() > 3500, "a refresh extends the idle time"
    for column in ("idle_expires_at", "expires_at"):
        before = await conn.fetchval(f"select {column} from sessions")
        await conn.execute(f"update sessions set {column} = now() - interval '1 second'")
        assert await refresh(client, refreshed["refresh_token"]) is None
        assert not await is_signed_in(client, refreshed["access_token"])
        await conn.execute(f"update sessions set {column} = $1", before)
    assert await is_signed_in(client, refreshed["access_token"])


@pytest.mark.asvs("7.4.1", "10.4.9")
async def test_logout_ends_both_tokens_at_once(client: Client) -> None:
    account, other = await register(client), await register(client)
    response = await client.post("/api/v1/auth/logout", headers=account.headers)
    assert (response.status, await response.read()) == (204, b"")
    assert not await is_signed_in(client, account.tokens["access_token"])
    assert await refresh(client, account.tokens["refresh_token"]) is None
    assert await is_signed_in(client, other.tokens["access_token"])
    again = await client.post("/api/v1/auth/logout", headers=account.headers)
    await assert_problem(again, 401, "invalid_token")
