"""Leaving: export, deletion with a grace period, and what remains."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service import purge
from service.db.transactions import write
from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, assert_problem, register
from tests.support.mailbox import next_mail, text_of

ME = "/api/v1/users/me"


async def delete(client: Client, account: Account) -> dict[str, Any]:
    response = await client.delete(ME, json={"password": PASSWORD}, headers=account.headers)
    assert response.status == 202
    body: dict[str, Any] = await response.json()
    return body


@pytest.mark.parametrize(("method", "path"), [("DELETE", ME), ("POST", f"{ME}/deletion")])
async def test_account_can_be_deleted_with_either_method(
    client: Client, method: str, path: str
) -> None:
    account = await register(client)
    response = await client.request(
        method, path, json={"password": PASSWORD}, headers=account.headers
    )
    assert (response.status, list(await response.json())) == (202, ["purge_at"])
    await assert_problem(await client.get(ME, headers=account.headers), 401, "invalid_token")
    assert await sign_in(client, account) == 200


async def test_deletion_by_post_needs_the_password(client: Client) -> None:
    account = await register(client)
    response = await client.post(
        f"{ME}/deletion", json={"password": "not the password of it"}, headers=account.headers
    )
    await assert_problem(response, 403, "wrong_password")
    assert (await client.get(ME, headers=account.headers)).status == 200


async def sign_in(client: Client, account: Account) -> int:
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    return (await client.post("/api/v1/auth/login", json=credentials)).status


async def test_export_contains_all_stored_data(client: Client) -> None:
    account = await register(client, name="Ada")
    await client.patch(ME, headers=account.headers, json={"settings": {"language": "en"}})
    response = await client.get(f"{ME}/export", headers=account.headers)
    assert response.status == 200
    assert response.headers["Content-Disposition"].startswith("attachment")
    document = await response.json()
    assert set(document) == {
        "account",
        "factors",
        "sessions",
        "known_networks",
        "audit_events",
        "worlds",
    }
    assert document["account"] == await (await client.get(ME, headers=account.headers)).json()
    (session,) = document["sessions"]
    assert session["ip"] == "127.0.0.1"
    assert "user.register" in {event["action"] for event in document["audit_events"]}
    text = json.dumps(document)
    for secret in (PASSWORD, "argon2", account.tokens["refresh_token"]):
        assert secret not in text


async def test_grace_period_is_no_shorter_if_clocks_go_forward(
    start_app: StartApp, conn: Any
) -> None:
    """Those of the server's time zone, a few days after the deletion."""
    day = (datetime.now(UTC) + timedelta(days=3)).timetuple().tm_yday % 365 + 1
    zone = f"AAA0BBB,J{day},J{(day + 200) % 365 + 1}"
    name = await conn.fetchval("select current_database()")
    await conn.execute(f"alter database {name} set timezone to '{zone}'")
    client = await start_app()
    await delete(client, await register(client))
    assert await conn.fetchval("select purge_at - updated_at from users") == timedelta(days=30)


@pytest.mark.asvs("7.4.2")
async def test_sign_in_undoes_a_deletion(client: Client, settings: Settings, conn: Any) -> None:
    account = await register(client)
    email = account.profile["email"]
    await next_mail(settings.data_dir, email)
    purge_at = (await delete(client, account))["purge_at"]
    await assert_problem(await client.get(ME, headers=account.headers), 401, "invalid_token")
    assert purge_at[:10] in text_of(await next_mail(settings.data_dir, email))
    assert await conn.fetchval("select purge_at - updated_at from users") == timedelta(days=30)
    assert await sign_in(client, account) == 200
    assert await conn.fetchval("select status from users") == "active"
    assert client.app is not None
    await conn.execute("update users set updated_at = now() - interval '40 days'")
    await purge.purge_accounts(client.app)
    assert await conn.fetchval("select count(*) from users") == 1


async def test_purge_removes_all_personal_data(client: Client, conn: Any) -> None:
    account, other = await register(client, name="Ada Lovelace"), await register(client)
    await client.patch(ME, headers=account.headers, json={"name": "Ada King"})
    await delete(client, account)
    await conn.execute("update users set purge_at = now() where status = 'deleting'")
    assert client.app is not None
    await purge.purge_accounts(client.app)
    assert await sign_in(client, account) == 401
    assert await sign_in(client, other) == 200
    tables = await conn.fetch(
        "select tablename from pg_tables where schemaname = 'public' and tablename !~ 'yoyo'"
    )
    left = ""
    for table in tables:
        left += str(await conn.fetch(f'select * from "{table["tablename"]}"'))
    assert account.profile["email"] not in left
    # Not just "Ada", which a hash may contain.
    assert "Lovelace" not in left
    assert "Ada King" not in left
    actions = await conn.fetch(
        "select action, ip from audit_events where subject_id = $1 order by occurred_at, id",
        account.profile["id"],
    )
    assert [row["action"] for row in actions][-2:] == ["user.delete", "user.purge"]
    assert {row["ip"] for row in actions} == {None}
    await register(client, email=account.profile["email"])


async def test_expired_rows_are_deleted(client: Client, conn: Any) -> None:
    await register(client)
    await conn.execute("update sessions set expires_at = now() - interval '1 second'")
    await conn.execute("update action_tokens set expires_at = now() - interval '1 second'")
    assert client.app is not None

    async def forget(connection: Any) -> None:
        assert client.app is not None
        await purge.forget_links(client.app, connection)
        await purge.forget_stored_responses(client.app, connection)

    await purge.forget_sessions(client.app)
    await write(client.app, forget)
    for table in ("sessions", "refresh_tokens", "action_tokens"):
        assert await conn.fetchval(f"select count(*) from {table}") == 0
