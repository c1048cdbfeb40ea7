"""Second factors of other accounts: who may read and remove them, and what that ends."""

import json
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import pytest

from service.factors import totp
from service.settings import Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, register, register_as
from tests.support.factors import (
    add_passkey,
    add_totp,
    age_proofs,
    answer,
    ask_for_challenge,
    sign_in_with,
    sign_in_with_passkey,
    start_totp,
)
from tests.support.logbook import logged
from tests.support.mailbox import next_mail, text_of
from tests.support.state import everything
from tests.support.steps import RESET, is_signed_in, mails, send, sign_in

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"
REMOVED = "A second factor was removed from your account"


def path_of(account: Account, factor_id: str = "") -> str:
    return f"/users/{account.profile['id']}/factors" + (f"/{factor_id}" if factor_id else "")


async def list_factors(client: Client, by: Account, path: str) -> dict[str, Any]:
    response = await send(client, "GET", path, by=by)
    assert response.status == 200, await response.text()
    listed: dict[str, Any] = await response.json()
    return listed


async def removals(conn: Any) -> list[dict[str, Any]]:
    """Return the recorded removals, oldest first."""
    rows = await conn.fetch(
        "select actor_id::text, subject_id::text, before from audit_events"
        " where action = 'factor.remove' order by id"
    )
    return [{**row, "before": json.loads(row["before"])} for row in rows]


@pytest.mark.parametrize("role", ["support", "admin"])
async def test_staff_see_what_the_owner_sees(client: Client, role: str) -> None:
    reader, owner = await register_as(client, role), await register(client)
    assert await list_factors(client, reader, path_of(owner)) == {
        "items": [],
        "recovery_codes_left": 0,
    }
    await add_totp(client, owner.headers)
    await add_passkey(client, owner.headers, name="Phone")
    listed = await list_factors(client, reader, path_of(owner))
    assert listed == await list_factors(client, owner, "/users/me/factors")
    assert [factor["type"] for factor in listed["items"]] == ["totp", "passkey"]
    assert listed["recovery_codes_left"] == 10


async def test_only_administrators_with_a_recent_proof_remove_factors(
    client: Client, conn: Any
) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app = await add_totp(client, owner.headers)
    paths = [path_of(owner), path_of(owner, app.factor_id)]
    support = await register_as(client, "support")
    for path in paths:
        await assert_problem(await send(client, "DELETE", path, by=support), 403, "forbidden")
        await assert_problem(await send(client, "DELETE", path, by=owner), 404, "not_found")
    await age_proofs(client)
    for path in paths:
        refused = await send(client, "DELETE", path, by=admin)
        await assert_problem(refused, 401, "insufficient_authentication")
        assert 'acr_values="aal1", max_age=600' in refused.headers["WWW-Authenticate"]
    assert await conn.fetchval("select count(*) from factors") == 1


async def test_an_administrator_with_a_second_factor_proves_that_one(client: Client) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    await add_totp(client, owner.headers)
    await add_totp(client, admin.headers)
    await age_proofs(client)
    path = "/auth/reauthenticate"
    proved = await send(client, "POST", path, {"password": admin.password}, by=admin)
    assert proved.status == 200
    refused = await send(client, "DELETE", path_of(owner), by=admin)
    await assert_problem(refused, 401, "insufficient_authentication")
    assert 'acr_values="aal2", max_age=600' in refused.headers["WWW-Authenticate"]


@pytest.mark.asvs("6.4.4", "6.5.6", "7.4.5")
async def test_removing_all_ends_sessions_and_asks_for_the_password_alone(
    client: Client, conn: Any, settings: Settings
) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app = await add_totp(client, owner.headers)
    authenticator = await add_passkey(client, owner.headers)
    other = await sign_in_with(client, owner, code=app.code(1))
    await mails(settings.data_dir, conn)
    response = await send(client, "DELETE", path_of(owner), by=admin)
    assert (response.status, await response.text()) == (204, "")
    for account in (owner, other):
        assert not await is_signed_in(client, account)
    assert (await sign_in(client, owner)).status == 200
    await assert_problem(await sign_in_with_passkey(client, authenticator), 401, "unknown_passkey")
    for table in ("factors", "recovery_codes", "sign_in_challenges"):
        assert await conn.fetchval(f"select count(*) from {table}") == 0
    assert await conn.fetchval("select count(*) from users where recovery_key is not null") == 0


@pytest.mark.asvs("6.3.7")
async def test_the_owner_is_told_of_a_removal(client: Client, settings: Settings) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    email = owner.profile["email"]
    await add_totp(client, owner.headers)
    await send(client, "DELETE", path_of(owner), by=admin)
    # Mails are sent concurrently.
    assert REMOVED in [(await next_mail(settings.data_dir, email))["Subject"] for _ in range(3)]


async def test_each_removed_factor_is_recorded(client: Client, conn: Any) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    await add_totp(client, owner.headers)
    await add_passkey(client, owner.headers)
    listed = await list_factors(client, owner, "/users/me/factors")
    await send(client, "DELETE", path_of(owner), by=admin)
    found = await removals(conn)
    assert {event["actor_id"] for event in found} == {admin.profile["id"]}
    assert {event["subject_id"] for event in found} == {owner.profile["id"]}
    assert sorted(event["before"]["factor_id"] for event in found) == sorted(
        factor["id"] for factor in listed["items"]
    )
    assert sorted(event["before"]["type"] for event in found) == ["passkey", "totp"]


async def test_removing_one_leaves_the_others_and_the_recovery_codes(
    client: Client, conn: Any
) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app, lost = await add_totp(client, owner.headers), await add_totp(client, owner.headers)
    response = await send(client, "DELETE", path_of(owner, lost.factor_id), by=admin)
    assert response.status == 204
    assert not await is_signed_in(client, owner)
    problem = await ask_for_challenge(client, owner)
    assert problem["factors"] == ["totp", "recovery_code"]
    refused = await answer(client, problem["challenge"], code=lost.code(1))
    await assert_problem(refused, 401, "wrong_code")
    assert (await answer(client, problem["challenge"], code=app.code(1))).status == 200
    assert [event["before"]["factor_id"] for event in await removals(conn)] == [lost.factor_id]


async def test_recovery_codes_go_with_the_last_factor(client: Client) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app = await add_totp(client, owner.headers)
    response = await send(client, "DELETE", path_of(owner, app.factor_id), by=admin)
    assert response.status == 204
    listed = await list_factors(client, admin, path_of(owner))
    assert listed == {"items": [], "recovery_codes_left": 0}
    assert (await sign_in(client, owner)).status == 200


async def test_a_removal_ends_sign_ins_in_progress(client: Client) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app, lost = await add_totp(client, owner.headers), await add_totp(client, owner.headers)
    problem = await ask_for_challenge(client, owner)
    await send(client, "DELETE", path_of(owner, lost.factor_id), by=admin)
    refused = await answer(client, problem["challenge"], code=app.code(1))
    await assert_problem(refused, 401, "invalid_challenge")


async def test_an_account_without_factors_keeps_its_sessions(
    client: Client, conn: Any, settings: Settings
) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    assert (await send(client, "DELETE", path_of(owner), by=admin)).status == 204
    assert await is_signed_in(client, owner)
    assert await removals(conn) == []
    assert REMOVED not in {subject for _, subject in await mails(settings.data_dir, conn)}


async def test_what_is_not_a_factor_of_the_account_is_not_found(client: Client, conn: Any) -> None:
    admin = await register_as(client, "admin")
    owner, other = await register(client), await register(client)
    of_other = await add_totp(client, other.headers)
    pending = await start_totp(client, owner.headers)
    nobody = f"/users/{UNKNOWN_ID}/factors"
    for method, path in (
        ("GET", nobody),
        ("DELETE", nobody),
        ("DELETE", f"{nobody}/{of_other.factor_id}"),
        ("DELETE", path_of(owner, of_other.factor_id)),
        ("DELETE", path_of(owner, pending.factor_id)),
        ("DELETE", path_of(owner, UNKNOWN_ID)),
    ):
        await assert_problem(await send(client, method, path, by=admin), 404, "not_found")
    assert await conn.fetchval("select count(*) from factors") == 2
    assert await is_signed_in(client, owner)


async def test_factors_change_the_version_of_the_account_as_administrators_see_it(
    client: Client,
) -> None:
    """Only the first and the last, because only they change what the account shows."""
    owner, admin = await register(client), await register_as(client, "admin")
    account = f"/users/{owner.profile['id']}"
    tags, shown = [], []

    async def look() -> None:
        response = await send(client, "GET", account, by=admin)
        tags.append(response.headers["ETag"])
        shown.append((await response.json())["has_second_factor"])

    await look()
    app = await add_totp(client, owner.headers)
    await look()
    await add_totp(client, owner.headers)
    await look()
    await send(client, "DELETE", path_of(owner, app.factor_id), by=admin)
    await look()
    await send(client, "DELETE", path_of(owner), by=admin)
    await look()
    assert tags == ['"1"', '"2"', '"2"', '"2"', '"3"']
    assert shown == [False, True, True, True, False]


async def test_if_match_of_an_old_version_removes_nothing(client: Client) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    app = await add_totp(client, owner.headers)
    for path in (path_of(owner), path_of(owner, app.factor_id)):
        stale = await send(client, "DELETE", path, by=admin, headers={"If-Match": '"1"'})
        await assert_problem(stale, 412, "precondition_failed")
    assert await is_signed_in(client, owner)
    current = await send(client, "DELETE", path_of(owner), by=admin, headers={"If-Match": '"2"'})
    assert current.status == 204


async def test_the_last_passkey_of_an_account_without_a_password_can_be_removed(
    client: Client, conn: Any, settings: Settings
) -> None:
    """Its owner gets in by a link, which the administrator sends."""
    owner, admin = await register(client), await register_as(client, "admin")
    await add_passkey(client, owner.headers)
    await conn.execute(
        "update users set password_hash = null, email_verified_at = now() where id = $1",
        owner.profile["id"],
    )
    assert (await send(client, "DELETE", path_of(owner), by=admin)).status == 204
    account = f"/users/{owner.profile['id']}"
    response = await send(client, "POST", f"{account}/password-reset", by=admin)
    assert response.status == 202
    while True:
        mail = await next_mail(settings.data_dir, owner.profile["email"])
        if "#token=" in text_of(mail) and mail["Subject"] == RESET:
            break


@pytest.mark.parametrize("all_of_them", [True, False])
async def test_the_rules_of_owners_hold_for_the_factors_of_the_administrator_who_asks(
    start_app: StartApp, conn: Any, all_of_them: bool
) -> None:
    client = await start_app(require_second_factor="admins")
    admin, other = await register_as(client, "admin"), await register_as(client, "admin")
    for account in (admin, other):
        await add_passkey(client, account.headers)
    (passkey,) = (await list_factors(client, admin, "/users/me/factors"))["items"]
    path = path_of(admin, "" if all_of_them else passkey["id"])
    before = await everything(conn)
    refused = await send(client, "DELETE", path, by=admin)
    await assert_problem(refused, 409, "last_second_factor")
    assert await everything(conn) == before
    await conn.execute("update users set password_hash = null")
    before = await everything(conn)
    await assert_problem(await send(client, "DELETE", path, by=admin), 409, "last_way_in")
    assert await everything(conn) == before
    assert (await send(client, "DELETE", path, by=other)).status == 204


async def test_secrets_are_in_no_response_event_or_log(client: Client, conn: Any) -> None:
    owner, admin = await register(client), await register_as(client, "admin")
    with logged() as events:
        app = await add_totp(client, owner.headers)
        authenticator = await add_passkey(client, owner.headers)
        await sign_in_with(client, owner, code=app.code(1))
        assert app.recovery_codes is not None
        await sign_in_with(client, owner, recovery_code=app.recovery_codes[0])
        account = f"/users/{owner.profile['id']}"
        texts = []
        for by, path in (
            (admin, path_of(owner)),
            (admin, account),
            (admin, f"{account}/sessions"),
            (admin, "/users"),
            (owner, "/users/me/factors"),
            (owner, "/users/me/export"),
        ):
            response = await send(client, "GET", path, by=by)
            assert response.status == 200
            texts.append(await response.text())
        await send(client, "DELETE", path_of(owner), by=admin)
        response = await send(client, "GET", "/audit-events?limit=200", by=admin)
        texts.append(await response.text())
    texts.append(json.dumps(events))
    texts.append(
        json.dumps(
            [list(row) for row in await conn.fetch("select * from audit_events")], default=str
        )
    )
    credential_id = authenticator.credential_id
    secrets = [
        *app.recovery_codes,
        totp.to_base32(app.secret),
        *(value.hex() for value in (app.secret, credential_id, authenticator.user_handle)),
        *(b64encode(value).decode()[:24] for value in (app.secret, credential_id)),
        *(urlsafe_b64encode(value).decode()[:24] for value in (app.secret, credential_id)),
    ]
    assert len(events) >= 10
    for text in texts:
        assert [secret for secret in secrets if secret in text] == []
