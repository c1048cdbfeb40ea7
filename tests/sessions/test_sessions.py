"""``/users/me/sessions``: owners list and end their sessions."""

from typing import Any

import pytest
from yarl import URL

from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, bearer, register
from tests.support.growth import add_sessions, versions

SESSIONS = "/api/v1/users/me/sessions"


async def sign_in(client: Client, account: Account, **headers: str) -> dict[str, str]:
    """Sign in once more and return the session's headers."""
    response = await client.post(
        "/api/v1/auth/login",
        json={"email": account.profile["email"], "password": account.password},
        headers=headers,
    )
    assert response.status == 200
    return bearer((await response.json())["access_token"])


async def listed(client: Client, headers: dict[str, str]) -> list[dict[str, Any]]:
    response = await client.get(SESSIONS, headers=headers)
    assert response.status == 200
    body = await response.json()
    assert set(body) == {"items", "next_cursor", "has_more"}
    items: list[dict[str, Any]] = body["items"]
    return items


async def test_session_list_marks_the_current_one(client: Client) -> None:
    account = await register(client)
    other = await sign_in(client, account, **{"User-Agent": "a browser\xff"})
    newest, oldest = await listed(client, other)
    assert set(newest) == {
        "id",
        "created_at",
        "last_seen_at",
        "expires_at",
        "user_agent",
        "ip",
        "amr",
        "acr",
        "current",
    }
    assert (newest["current"], oldest["current"]) == (True, False)
    assert newest["user_agent"].startswith("a browser")
    assert newest["ip"] == "127.0.0.1"
    assert newest["expires_at"] > newest["last_seen_at"]


@pytest.mark.asvs("7.5.2", "10.4.9")
async def test_owner_ends_one_session(client: Client) -> None:
    account = await register(client)
    other = await sign_in(client, account)
    (ended,) = [item["id"] for item in await listed(client, account.headers) if not item["current"]]
    response = await client.delete(f"{SESSIONS}/{ended}", headers=account.headers)
    assert response.status == 204
    await assert_problem(await client.get(SESSIONS, headers=other), 401, "invalid_token")
    assert len(await listed(client, account.headers)) == 1
    again = await client.delete(f"{SESSIONS}/{ended}", headers=account.headers)
    await assert_problem(again, 404, "not_found")


@pytest.mark.asvs("7.5.2", "10.4.9")
async def test_owner_ends_all_other_sessions(client: Client) -> None:
    account, stranger = await register(client), await register(client)
    others = [await sign_in(client, account) for _ in range(3)]
    assert (await client.delete(SESSIONS, headers=account.headers)).status == 204
    for other in others:
        await assert_problem(await client.get(SESSIONS, headers=other), 401, "invalid_token")
    assert len(await listed(client, account.headers)) == 1
    assert len(await listed(client, stranger.headers)) == 1


@pytest.mark.parametrize(
    "session_id", ["x", "0", "01890000-0000-7000-8000-000000000000", "%00", "1" * 400]
)
async def test_unknown_session_is_not_found(client: Client, session_id: str) -> None:
    account = await register(client)
    response = await client.delete(f"{SESSIONS}/{session_id}", headers=account.headers)
    await assert_problem(response, 404, "not_found")


@pytest.mark.asvs("8.2.2")
async def test_session_of_another_owner_is_not_found(client: Client) -> None:
    account, stranger = await register(client), await register(client)
    (mine,) = await listed(client, account.headers)
    response = await client.delete(f"{SESSIONS}/{mine['id']}", headers=stranger.headers)
    await assert_problem(response, 404, "not_found")
    assert len(await listed(client, account.headers)) == 1


async def test_session_ip_is_the_clients_behind_a_trusted_proxy(start_app: StartApp) -> None:
    import ipaddress

    client = await start_app(trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),))
    account = await register(client)
    forged = "203.0.113.9, 198.51.100.7"
    headers = await sign_in(client, account, **{"X-Forwarded-For": forged})
    assert (await listed(client, headers))[0]["ip"] == "198.51.100.7"


async def test_session_list_is_paged(client: Client, conn: Any) -> None:
    account = await register(client)
    await add_sessions(conn, account, 4)
    seen = []
    url = f"{SESSIONS}?limit=2"
    while url:
        response = await client.get(url, headers=account.headers)
        page = await response.json()
        seen.append([item["current"] for item in page["items"]])
        assert page["has_more"] == ("next" in response.links)
        url = URL(response.links["next"]["url"]).path_qs if page["has_more"] else ""
    assert seen == [[True, False], [False, False], [False]]


async def test_sign_in_beyond_the_limit_ends_the_oldest_session(start_app: StartApp) -> None:
    client = await start_app(sessions_per_account=2)
    account = await register(client)
    second, third = await sign_in(client, account), await sign_in(client, account)
    await assert_problem(await client.get(SESSIONS, headers=account.headers), 401, "invalid_token")
    assert len(await listed(client, second)) == 2
    assert len(await listed(client, third)) == 2


async def test_session_that_a_sign_in_ended_is_recorded(start_app: StartApp, conn: Any) -> None:
    client = await start_app(sessions_per_account=1)
    account = await register(client)
    (first,) = await listed(client, account.headers)
    await sign_in(client, account)
    ended = await conn.fetch(
        "select actor_id, before from audit_events where action = 'session.end'"
    )
    before = f'{{"session_id": "{first["id"]}"}}'
    assert [(str(row["actor_id"]), row["before"]) for row in ended] == [
        (account.profile["id"], before)
    ]


async def test_sign_in_after_the_limit_was_lowered_ends_ten_sessions_at_most(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(sessions_per_account=1)
    account = await register(client)
    await add_sessions(conn, account, 30, tokens=3)
    before = await versions(conn, account)
    await sign_in(client, account)
    assert len(before - await versions(conn, account)) == 10


async def test_sessions_signed_in_after_all_ended_are_live(client: Client) -> None:
    account = await register(client)
    elsewhere = await sign_in(client, account)
    for _ in range(2):
        assert (await client.delete(SESSIONS, headers=elsewhere)).status == 204
    again = await sign_in(client, account)
    assert len(await listed(client, again)) == 2
