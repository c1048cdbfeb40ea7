"""Administration of accounts: access, creation, changes, suspension, deletion and sessions."""

import asyncio
import itertools
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.recovery.links import hash_token
from service.routes import ROUTES
from service.settings import Settings
from tests.support.clients import WITH_JOBS, Client, StartApp
from tests.support.factories import (
    PASSWORD,
    Account,
    assert_problem,
    bearer,
    pointers,
    register,
    register_as,
)
from tests.support.mailbox import next_mail, text_of, token_of
from tests.support.waiting import eventually

USERS = "/api/v1/users"
ME = "/api/v1/users/me"
LOGIN = "/api/v1/auth/login"
UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"

# Administrative fields of a newly registered account.
FRESH = {
    "status": "active",
    "suspended_until": None,
    "suspension_reason": None,
    "purge_at": None,
    "deleted_by_admin": False,
    "has_second_factor": False,
    "version": 1,
}


def url_of(account: Account, rest: str = "") -> str:
    return f"{USERS}/{account.profile['id']}{rest}"


async def sign_in(client: Client, account: Account) -> Any:
    credentials = {"email": account.profile["email"], "password": account.password}
    return await client.post(LOGIN, json=credentials)


def administrative_routes() -> list[tuple[str, str, str]]:
    return [
        (route.method, route.path, route.access.__name__)
        for route in ROUTES
        if route.access.__name__ in ("support", "admin")
    ]


@pytest.mark.asvs("8.2.1", "8.2.2", "8.3.1")
@pytest.mark.parametrize("role", ["user", "support", "admin"])
async def test_administrative_routes_require_their_role(client: Client, role: str) -> None:
    """Callers without the role are refused; callers with it get past the guard."""
    caller = await register_as(client, role)
    for method, path, access in administrative_routes():
        url = re.sub(r"{[^}]*}", UNKNOWN_ID, path)
        response = await client.request(method, url, headers=caller.headers)
        if role == "admin" or (role == "support" and access == "support"):
            assert response.status not in (401, 403, 405, 500), (method, path)
        elif role == "user" and "{user_id}" in path:
            await assert_problem(response, 404, "not_found")
        else:
            await assert_problem(response, 403, "forbidden")


@pytest.mark.parametrize("path", ["not-an-id", "me2", "01890000-0000-7000-8000-00000000000g"])
async def test_path_without_a_valid_id_is_a_404(client: Client, path: str) -> None:
    admin = await register_as(client, "admin")
    response = await client.get(f"{USERS}/{path}", headers=admin.headers)
    await assert_problem(response, 404, "not_found")


async def test_unknown_account_is_a_404_and_leaves_no_event(client: Client, conn: Any) -> None:
    admin = await register_as(client, "admin")
    headers = {**admin.headers, "If-Match": "*"}
    before = await conn.fetchval("select count(*) from audit_events")
    for method, rest, body in [
        ("GET", "", None),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/suspend", {"reason": "spam"}),
        ("POST", "/reinstate", None),
        ("POST", "/password-reset", None),
        ("GET", "/sessions", None),
        ("DELETE", "/sessions", None),
        ("DELETE", f"/sessions/{UNKNOWN_ID}", None),
    ]:
        url = f"{USERS}/{UNKNOWN_ID}{rest}"
        response = await client.request(method, url, headers=headers, json=body)
        await assert_problem(response, 404, "not_found")
    assert await conn.fetchval("select count(*) from audit_events") == before


@pytest.mark.asvs("6.4.1")
async def test_admin_creates_an_account_without_a_password(client: Client, conn: Any) -> None:
    admin = await register_as(client, "admin")
    body = {"email": "Ada@Example.com", "name": "Ada", "role": "support", "settings": {"a": 1}}
    response = await client.post(USERS, headers=admin.headers, json=body)
    assert response.status == 201, await response.text()
    user = await response.json()
    assert uuid.UUID(user["id"]).version == 7
    assert response.headers["Location"] == f"{USERS}/{user['id']}"
    assert response.headers["ETag"] == '"1"'
    assert user == {
        **FRESH,
        "id": user["id"],
        "email": "Ada@example.com",
        "email_verified": False,
        "name": "Ada",
        "role": "support",
        "settings": {"a": 1},
        "created_at": user["created_at"],
        "updated_at": user["created_at"],
    }
    again = await client.get(response.headers["Location"], headers=admin.headers)
    assert await again.json() == user

    hashed = await conn.fetchval("select password_hash from users where id = $1", user["id"])
    assert hashed is None
    token = await conn.fetchrow(
        "select purpose, email, expires_at - created_at as ttl from action_tokens"
        " where user_id = $1",
        user["id"],
    )
    assert dict(token) == {
        "purpose": "password_reset",
        "email": "Ada@example.com",
        "ttl": timedelta(minutes=30),
    }


async def test_create_rejects_a_taken_email(client: Client, conn: Any) -> None:
    admin = await register_as(client, "admin")
    body = {"email": admin.profile["email"].upper()}
    response = await client.post(USERS, headers=admin.headers, json=body)
    await assert_problem(response, 409, "email_taken")
    assert await conn.fetchval("select count(*) from users") == 1
    assert (
        await conn.fetchval("select count(*) from audit_events where action = 'user.create'") == 0
    )


INVALID_ACCOUNTS: list[tuple[dict[str, Any], str]] = [
    ({}, "#/email"),
    ({"email": "nonsense"}, "#/email"),
    ({"email": "a@example.com", "password": PASSWORD}, "#/password"),
    ({"email": "a@example.com", "role": "root"}, "#/role"),
    ({"email": "a@example.com", "role": None}, "#/role"),
    ({"email": "a@example.com", "name": "nul\0"}, "#/name"),
    ({"email": "a@example.com", "settings": {"ui_theme": "pink"}}, "#/settings/ui_theme"),
    ({"email": "a@example.com", "status": "active"}, "#/status"),
]


async def test_create_rejects_invalid_fields(client: Client) -> None:
    admin = await register_as(client, "admin")
    for body, pointer in INVALID_ACCOUNTS:
        response = await client.post(USERS, headers=admin.headers, json=body)
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {pointer}


async def test_support_reads_an_account(client: Client) -> None:
    support = await register_as(client, "support")
    account = await register(client, name="Grace")
    response = await client.get(url_of(account), headers=support.headers)
    assert response.status == 200
    assert await response.json() == {**account.profile, **FRESH}
    assert response.headers["ETag"] == '"1"'


async def test_changing_a_setting_from_1_to_true_is_a_change(client: Client, conn: Any) -> None:
    admin = await register_as(client, "admin")
    account = await register(client)
    for version, value in enumerate((1, True), 1):
        headers = {**admin.headers, "If-Match": f'"{version}"'}
        body = {"settings": {"beta": value}}
        response = await client.patch(url_of(account), headers=headers, json=body)
        assert response.status == 200
    assert '"settings":{"beta":true}' in await response.text()
    recorded = await conn.fetch(
        "select after::text from audit_events where action = 'user.update' order by id"
    )
    assert [row["after"] for row in recorded] == [
        '{"settings": {"beta": 1}}',
        '{"settings": {"beta": true}}',
    ]


async def test_change_merges_settings_and_increments_the_version(client: Client) -> None:
    admin = await register_as(client, "admin")
    account = await register(client, name="Grace")

    async def change(version: int, body: dict[str, Any]) -> Any:
        headers = {**admin.headers, "If-Match": f'"{version}"'}
        response = await client.patch(url_of(account), headers=headers, json=body)
        assert response.status == 200, await response.text()
        user = await response.json()
        assert response.headers["ETag"] == f'"{user["version"]}"'
        return user

    body = {
        "name": "Grace Hopper",
        "role": "support",
        "email_verified": True,
        "settings": {"language": "en", "mine": {"a": 1, "b": 2}},
    }
    changed = await change(1, body)
    assert changed["updated_at"] > account.profile["updated_at"]
    assert changed == {
        **account.profile,
        **FRESH,
        **body,
        "version": 2,
        "updated_at": changed["updated_at"],
    }
    assert await change(2, body) == changed, "an unchanged account keeps its version"
    changed = await change(2, {"settings": {"mine": {"a": None}, "language": None}})
    assert changed["settings"] == {"mine": {"b": 2}}
    changed = await change(3, {"email_verified": False})
    assert (changed["email_verified"], changed["version"]) == (False, 4)


@pytest.mark.asvs("8.2.3")
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"email": "a@example.com"}, "#/email"),
        ({"password": PASSWORD}, "#/password"),
        ({"password_hash": "x"}, "#/password_hash"),
        ({"status": "active"}, "#/status"),
        ({"version": 7}, "#/version"),
        ({"role": "root"}, "#/role"),
        ({"email_verified": "yes"}, "#/email_verified"),
        ({"email_verified": 1}, "#/email_verified"),
        ({"email_verified": None}, "#/email_verified"),
        ({"name": "x\u202ey"}, "#/name"),
        ({"settings": []}, "#/settings"),
        ({"settings": {"language": 7}}, "#/settings/language"),
    ],
)
async def test_change_rejects_invalid_fields(
    client: Client, body: dict[str, Any], pointer: str
) -> None:
    admin = await register_as(client, "admin")
    headers = {**admin.headers, "If-Match": '"1"'}
    response = await client.patch(url_of(admin), headers=headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {pointer}


async def test_change_requires_a_matching_if_match(client: Client) -> None:
    admin = await register_as(client, "admin")
    account = await register(client)
    url, body = url_of(account), {"name": "x"}
    for headers in (admin.headers, {**admin.headers, "If-Match": ""}):
        response = await client.patch(url, headers=headers, json=body)
        await assert_problem(response, 428, "precondition_required")
    for tag in ('"2"', 'W/"1"'):
        headers = {**admin.headers, "If-Match": tag}
        response = await client.patch(url, headers=headers, json=body)
        await assert_problem(response, 412, "precondition_failed")
    unchanged = await client.get(url, headers=admin.headers)
    assert await unchanged.json() == {**account.profile, **FRESH}


async def test_only_one_of_concurrent_changes_with_one_etag_wins(client: Client) -> None:
    admin = await register_as(client, "admin")
    account = await register(client)
    headers = {**admin.headers, "If-Match": '"1"'}
    responses = await asyncio.gather(
        *(
            client.patch(url_of(account), headers=headers, json={"name": f"name {n}"})
            for n in range(10)
        )
    )
    assert sorted(response.status for response in responses) == [200] + [412] * 9


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [("DELETE", "", None), ("POST", "/suspend", {"reason": "spam"}), ("POST", "/reinstate", None)],
)
async def test_optional_if_match_is_honoured(
    client: Client, method: str, rest: str, body: Any
) -> None:
    admin = await register_as(client, "admin")
    account = await register(client)
    for tag, status in (('"7"', 412), ('"1"', 200)):
        headers = {**admin.headers, "If-Match": tag}
        response = await client.request(method, url_of(account, rest), headers=headers, json=body)
        assert response.status == status


@pytest.mark.asvs("8.3.1")
async def test_demotion_takes_effect_immediately_and_keeps_the_session(client: Client) -> None:
    admin, other = await register_as(client, "admin"), await register_as(client, "admin")
    headers = {**admin.headers, "If-Match": '"1"'}
    demoted = await client.patch(url_of(other), headers=headers, json={"role": "user"})
    assert demoted.status == 200
    refused = await client.get(USERS, headers=other.headers)
    await assert_problem(refused, 403, "forbidden")
    assert (await client.get(ME, headers=other.headers)).status == 200


@pytest.mark.asvs("7.4.2")
async def test_suspension_ends_sessions_and_reinstatement_allows_signing_in(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    more = await (await sign_in(client, account)).json()
    response = await client.post(
        url_of(account, "/suspend"), headers=admin.headers, json={"reason": "spam"}
    )
    assert response.status == 200
    suspended = await response.json()
    assert suspended == {
        **account.profile,
        **FRESH,
        "status": "suspended",
        "suspension_reason": "spam",
        "version": 2,
        "updated_at": suspended["updated_at"],
    }
    for headers in (account.headers, bearer(more["access_token"])):
        refused = await client.get(ME, headers=headers)
        await assert_problem(refused, 401, "invalid_token")
    wrong = await client.post(LOGIN, json={"email": "nobody@example.com", "password": "x"})
    refused = await sign_in(client, account)
    assert await assert_problem(refused, 401, "invalid_credentials") == await assert_problem(
        wrong, 401, "invalid_credentials"
    ), "a suspension looks like a wrong password"

    response = await client.post(url_of(account, "/reinstate"), headers=admin.headers)
    reinstated = await response.json()
    assert reinstated == {
        **account.profile,
        **FRESH,
        "version": 3,
        "updated_at": reinstated["updated_at"],
    }
    again = await client.post(url_of(account, "/reinstate"), headers=admin.headers)
    assert await again.json() == reinstated
    assert (await sign_in(client, account)).status == 200
    refused = await client.get(ME, headers=account.headers)
    await assert_problem(refused, 401, "invalid_token")


async def test_temporary_suspension_ends_by_itself(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    until = datetime.now(UTC) + timedelta(hours=1)
    body = {"reason": "cool down", "until": until.isoformat()}
    response = await client.post(url_of(account, "/suspend"), headers=admin.headers, json=body)
    suspended = await response.json()
    assert suspended["suspended_until"] == until.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert (await sign_in(client, account)).status == 401

    await conn.execute(
        "update users set suspended_until = now() - interval '1 second' where id = $1",
        uuid.UUID(account.profile["id"]),
    )
    later = await start_app(**WITH_JOBS)

    async def reinstated() -> Any:
        shown = await (await later.get(url_of(account), headers=admin.headers)).json()
        return shown if shown["status"] == "active" else None

    shown = await eventually(reinstated)
    assert shown == {**account.profile, **FRESH, "version": 3, "updated_at": shown["updated_at"]}
    event = await conn.fetchrow(
        "select actor_id, request_id from audit_events where action = 'user.reinstate'"
    )
    assert tuple(event) == (None, None)
    assert (await sign_in(client, account)).status == 200


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/reason"),
        ({"reason": ""}, "#/reason"),
        ({"reason": "x" * 501}, "#/reason"),
        ({"reason": "x", "until": "2020-01-01T00:00:00Z"}, "#/until"),
        ({"reason": "x", "until": "0000-01-01T00:00:00Z"}, "#/until"),
        ({"reason": "x", "until": "2999-01-01"}, "#/until"),
        ({"reason": "x", "until": "2999-01-01T00:00:00"}, "#/until"),
        ({"reason": "x", "until": "9999-12-31T23:59:59-23:59"}, "#/until"),
        ({"reason": "x", "until": 4102444800}, "#/until"),
        ({"reason": "x", "until": None}, "#/until"),
    ],
)
async def test_suspend_rejects_invalid_fields(
    client: Client, body: dict[str, Any], pointer: str
) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    url = url_of(account, "/suspend")
    response = await client.post(url, headers=admin.headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {pointer}


@pytest.mark.asvs("7.4.2")
async def test_delete_schedules_a_purge_and_ends_sessions(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    response = await client.delete(url_of(account), headers=admin.headers)
    assert response.status == 200
    deleting = await response.json()
    changed, due = (datetime.fromisoformat(deleting[name]) for name in ("updated_at", "purge_at"))
    assert due - changed == timedelta(days=30)
    assert deleting == {
        **account.profile,
        **FRESH,
        "status": "deleting",
        "purge_at": deleting["purge_at"],
        "deleted_by_admin": True,
        "version": 2,
        "updated_at": deleting["updated_at"],
    }
    refused = await client.get(ME, headers=account.headers)
    await assert_problem(refused, 401, "invalid_token")
    again = await client.delete(url_of(account), headers=admin.headers)
    assert await again.json() == deleting

    url = url_of(account, "/suspend")
    refused = await client.post(url, headers=admin.headers, json={"reason": "x"})
    await assert_problem(refused, 409, "account_deleting")
    response = await client.post(url_of(account, "/reinstate"), headers=admin.headers)
    assert (await response.json())["purge_at"] is None


async def test_suspended_account_cannot_be_deleted(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    await client.post(url_of(account, "/suspend"), headers=admin.headers, json={"reason": "x"})
    response = await client.delete(url_of(account), headers=admin.headers)
    await assert_problem(response, 409, "account_suspended")


async def test_owner_receives_the_password_link_in_their_language(
    client: Client, conn: Any, settings: Settings
) -> None:
    admin = await register_as(client, "admin")
    body = {"email": "ada@example.com", "settings": {"language": "fr"}}
    assert (await client.post(USERS, headers=admin.headers, json=body)).status == 201
    mail = await next_mail(settings.data_dir, "ada@example.com")
    assert text_of(mail).startswith("Bonjour")
    stored = await conn.fetch(
        "select token_hash from action_tokens where purpose = 'password_reset'"
    )
    assert [row["token_hash"] for row in stored] == [hash_token(token_of(mail))]


@pytest.mark.asvs("6.4.6")
async def test_triggered_password_reset_keeps_sessions_and_password(
    client: Client, conn: Any
) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    response = await client.post(url_of(account, "/password-reset"), headers=admin.headers)
    assert (response.status, await response.read()) == (202, b"")
    purpose = await conn.fetchval(
        "select purpose from action_tokens"
        " where user_id = $1 and email = $2 and purpose = 'password_reset'",
        uuid.UUID(account.profile["id"]),
        account.profile["email"],
    )
    assert purpose == "password_reset"
    assert (await client.get(ME, headers=account.headers)).status == 200
    assert (await sign_in(client, account)).status == 200


@pytest.mark.asvs("7.4.5")
async def test_admin_lists_and_ends_the_sessions_of_an_account(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    tokens = [await (await sign_in(client, account)).json() for _ in range(2)]
    url = url_of(account, "/sessions")
    first = await (await client.get(url, headers=admin.headers, params={"limit": 2})).json()
    assert (len(first["items"]), first["has_more"]) == (2, True)
    params = {"limit": 2, "cursor": first["next_cursor"]}
    last = await (await client.get(url, headers=admin.headers, params=params)).json()
    assert (len(last["items"]), last["has_more"], last["next_cursor"]) == (1, False, None)
    sessions = first["items"] + last["items"]
    assert sessions == sorted(sessions, key=lambda session: session["id"], reverse=True)
    assert sessions[0] == {
        "id": sessions[0]["id"],
        "created_at": sessions[0]["created_at"],
        "last_seen_at": sessions[0]["created_at"],
        "expires_at": sessions[0]["expires_at"],
        "user_agent": sessions[0]["user_agent"],
        "ip": sessions[0]["ip"],
        "amr": ["pwd"],
        "acr": "aal1",
    }

    ended = await client.delete(f"{url}/{sessions[0]['id']}", headers=admin.headers)
    assert ended.status == 204
    newest = await client.get(ME, headers=bearer(tokens[1]["access_token"]))
    await assert_problem(newest, 401, "invalid_token")
    assert (await client.get(ME, headers=account.headers)).status == 200
    other = f"{url_of(admin, '/sessions')}/{sessions[1]['id']}"
    await assert_problem(await client.delete(other, headers=admin.headers), 404, "not_found")

    assert (await client.delete(url, headers=admin.headers)).status == 204
    refused = await client.get(ME, headers=account.headers)
    await assert_problem(refused, 401, "invalid_token")
    left = await (await client.get(url, headers=admin.headers)).json()
    assert left == {"items": [], "next_cursor": None, "has_more": False}
    assert (await client.get(ME, headers=admin.headers)).status == 200


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("PATCH", "", {"role": "user"}),
        ("PATCH", "", {"role": "support", "name": "x"}),
        ("DELETE", "", None),
        ("POST", "/suspend", {"reason": "x"}),
    ],
)
async def test_last_administrator_cannot_be_removed(
    client: Client, method: str, rest: str, body: Any
) -> None:
    admin = await register_as(client, "admin")
    suspended = await register_as(client, "admin")
    url = url_of(suspended, "/suspend")
    await client.post(url, headers=admin.headers, json={"reason": "x"})
    headers = {**admin.headers, "If-Match": '"1"'}
    response = await client.request(method, url_of(admin, rest), headers=headers, json=body)
    await assert_problem(response, 409, "last_administrator")
    unchanged = await client.get(url_of(admin), headers=admin.headers)
    assert await unchanged.json() == {**admin.profile, **FRESH}


async def test_concurrent_mutual_demotions_leave_one_administrator(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(db_pool_size=12)
    one, two = await register_as(client, "admin"), await register_as(client, "admin")
    pairs = [(one, two), (two, one)] * 5
    responses = await asyncio.gather(
        *(
            client.patch(
                url_of(target),
                headers={**caller.headers, "If-Match": '"1"'},
                json={"role": "user"},
            )
            for caller, target in pairs
        )
    )
    statuses = sorted(response.status for response in responses)
    assert statuses[0] == 200
    assert set(statuses[1:]) <= {403, 404, 409, 412}
    assert await conn.fetchval("select count(*) from users where role = 'admin'") == 1


@pytest.mark.parametrize("way", ["demote", "suspend", "delete", "all three"])
async def test_concurrent_departures_leave_one_administrator(
    start_app: StartApp, conn: Any, way: str
) -> None:
    client = await start_app(db_pool_size=12)
    admins = [await register_as(client, "admin") for _ in range(10)]
    ways = itertools.cycle(["demote", "suspend", "delete"] if way == "all three" else [way])

    async def leave(account: Account, how: str) -> Any:
        url, headers = url_of(account), {**account.headers, "If-Match": '"1"'}
        if how == "demote":
            return await client.patch(url, headers=headers, json={"role": "user"})
        if how == "suspend":
            return await client.post(f"{url}/suspend", headers=headers, json={"reason": "x"})
        return await client.delete(url, headers=headers)

    responses = await asyncio.gather(
        *(leave(account, how) for account, how in zip(admins, ways, strict=False))
    )
    assert sorted(response.status for response in responses) == [200] * 9 + [409]
    left = "select count(*) from users where role = 'admin' and status = 'active'"
    assert await conn.fetchval(left) == 1


@pytest.mark.asvs("7.4.2")
async def test_suspension_during_sign_in_leaves_no_session(start_app: StartApp, conn: Any) -> None:
    client = await start_app(db_pool_size=12)
    admin = await register_as(client, "admin")
    for _ in range(5):
        account = await register(client)
        await asyncio.gather(
            *(sign_in(client, account) for _ in range(4)),
            client.post(url_of(account, "/suspend"), headers=admin.headers, json={"reason": "x"}),
        )
        sessions = """
            select count(*) from sessions join users on users.id = user_id
            where user_id = $1 and epoch = session_epoch
        """
        assert await conn.fetchval(sessions, uuid.UUID(account.profile["id"])) == 0


async def test_admin_can_delete_an_account_whose_suspension_has_expired(
    client: Client, conn: Any
) -> None:
    """Without waiting for the job that lifts it."""
    account, admin = await register(client), await register_as(client, "admin")
    await conn.execute(
        "update users set status = 'suspended', suspension_reason = 'x', suspended_until = now()"
        " where id = $1",
        account.profile["id"],
    )
    response = await client.delete(url_of(account), headers=admin.headers)
    assert response.status == 200, await response.text()
    deleting = await response.json()
    assert (deleting["status"], deleting["suspension_reason"]) == ("deleting", None)
