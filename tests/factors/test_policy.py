"""REQUIRE_SECOND_FACTOR: what a session that is short of it may do."""

from typing import Any, NamedTuple

import pytest

from service.auth.guards import anyone, optionally_signed_in
from service.http.route import Route
from service.routes import ROUTES
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, bearer, register, register_as
from tests.support.factors import add_passkey, add_totp, prove, sign_in_with, sign_in_with_passkey
from tests.support.state import everything
from tests.support.steps import is_signed_in, refresh, send, sign_in, sign_in_again

PRIVATE = [route for route in ROUTES if route.access not in (anyone, optionally_signed_in)]
# To enrol, and to prove a second factor. Refreshing and signing out are not in PRIVATE.
ALLOWED = {
    "POST /api/v1/auth/reauthenticate",
    "GET /api/v1/users/me/factors",
    "POST /api/v1/users/me/factors/totp",
    "POST /api/v1/users/me/factors/{factor_id}/confirm",
    "POST /api/v1/users/me/passkeys/options",
    "POST /api/v1/users/me/passkeys",
}


class Case(NamedTuple):
    """A policy, a role, and whether that policy asks such an account for a second factor."""

    policy: str
    role: str
    is_asked: bool


CASES = [
    Case("none", "user", is_asked=False),
    Case("none", "admin", is_asked=False),
    Case("admins", "user", is_asked=False),
    Case("admins", "support", is_asked=False),
    Case("admins", "admin", is_asked=True),
    Case("all", "user", is_asked=True),
    Case("all", "support", is_asked=True),
    Case("all", "admin", is_asked=True),
]


def path_of(route: Route, account: Account) -> str:
    """Return the path with ids that belong to nothing but the account."""
    path = route.path
    for part in path.split("/"):
        if part.startswith("{"):
            path = path.replace(part, account.profile["id"])
    return path


async def request(client: Client, route: Route, account: Account) -> Any:
    return await client.request(route.method, path_of(route, account), headers=account.headers)


@pytest.mark.asvs("6.3.3", "8.2.1")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.policy}, {case.role}")
async def test_a_session_short_of_the_policy_may_only_enrol(
    start_app: StartApp, conn: Any, case: Case
) -> None:
    client = await start_app(require_second_factor=case.policy)
    account = await register_as(client, case.role)
    refused = set()
    for route in PRIVATE:
        before = await everything(conn)
        response = await request(client, route, account)
        if "enrolment_required" in await response.text():
            refused.add(f"{route.method} {route.path}")
            await assert_problem(response, 403, "enrolment_required")
            assert await everything(conn) == before, route.path
        elif not case.is_asked and not await is_signed_in(client, account):
            # It deleted its own account, or ended its sessions.
            account = await register_as(client, case.role)
    everywhere = {f"{route.method} {route.path}" for route in PRIVATE}
    assert everywhere > ALLOWED
    assert refused == (everywhere - ALLOWED if case.is_asked else set())


@pytest.mark.parametrize("case", [case for case in CASES if case.is_asked], ids=str)
async def test_a_session_that_has_not_proved_the_factor_is_asked_to(
    start_app: StartApp, conn: Any, case: Case
) -> None:
    """As one that a replica of an earlier version has opened."""
    client = await start_app(require_second_factor=case.policy)
    account = await register_as(client, case.role)
    await conn.execute("update users set has_second_factor = true")
    challenge = 'Bearer error="insufficient_user_authentication", acr_values="aal2"'
    for route in PRIVATE:
        response = await request(client, route, account)
        if f"{route.method} {route.path}" not in ALLOWED:
            await assert_problem(response, 401, "insufficient_authentication")
            assert response.headers["WWW-Authenticate"] == challenge, route.path


async def test_an_account_enrols_in_the_session_that_was_refused(start_app: StartApp) -> None:
    client = await start_app(require_second_factor="all")
    account = await register(client)
    assert not await is_signed_in(client, account)
    app = await add_totp(client, account.headers)
    assert await is_signed_in(client, account)
    assert await is_signed_in(client, await sign_in_with(client, account, code=app.code(1)))


async def test_an_account_enrols_with_a_passkey_alone(start_app: StartApp) -> None:
    client = await start_app(require_second_factor="all")
    account = await register(client)
    authenticator = await add_passkey(client, account.headers)
    assert await is_signed_in(client, account)
    response = await sign_in_with_passkey(client, authenticator)
    headers = bearer((await response.json())["access_token"])
    assert await is_signed_in(client, account._replace(headers=headers))


async def test_a_session_short_of_the_policy_refreshes_proves_itself_and_signs_out(
    start_app: StartApp,
) -> None:
    client = await start_app(require_second_factor="all")
    account = await register(client)
    assert (await prove(client, account.headers, password=account.password)).status == 200
    response = await refresh(client, account.tokens["refresh_token"])
    assert response.status == 200
    renewed = account._replace(headers=bearer((await response.json())["access_token"]))
    assert (await send(client, "POST", "/auth/logout", by=renewed)).status == 204
    listed = await send(client, "GET", "/users/me/factors", by=renewed)
    await assert_problem(listed, 401, "invalid_token")


async def test_a_new_policy_applies_to_sessions_that_there_are(start_app: StartApp) -> None:
    before = await start_app()
    account, other = await register_as(before, "admin"), await register(before)
    after = await start_app(require_second_factor="admins")
    refused = await send(after, "GET", "/users/me", by=account)
    await assert_problem(refused, 403, "enrolment_required")
    await add_totp(after, account.headers)
    assert await is_signed_in(after, account)
    assert await is_signed_in(after, other)


async def test_an_account_that_becomes_administrator_is_asked_at_once(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(require_second_factor="admins")
    account = await register(client)
    assert await is_signed_in(client, account)
    await conn.execute("update users set role = 'admin'")
    refused = await send(client, "GET", "/users/me", by=account)
    await assert_problem(refused, 403, "enrolment_required")


@pytest.mark.parametrize(("policy", "role"), [("admins", "admin"), ("all", "user")])
async def test_the_last_factor_stays_if_the_policy_asks_for_one(
    start_app: StartApp, conn: Any, policy: str, role: str
) -> None:
    client = await start_app(require_second_factor=policy)
    account = await register_as(client, role)
    app, other = await add_totp(client, account.headers), await add_totp(client, account.headers)
    second = await sign_in_with(client, account, code=app.code(1))
    path = "/users/me/factors"
    removed = await send(client, "DELETE", f"{path}/{other.factor_id}", by=second)
    assert removed.status == 204
    before = await everything(conn)
    refused = await send(client, "DELETE", f"{path}/{app.factor_id}", by=second)
    await assert_problem(refused, 409, "last_second_factor")
    assert await everything(conn) == before
    listed = await (await send(client, "GET", path, by=second)).json()
    assert ([factor["id"] for factor in listed["items"]], listed["recovery_codes_left"]) == (
        [app.factor_id],
        10,
    )


async def test_the_last_factor_goes_if_the_policy_asks_others(start_app: StartApp) -> None:
    client = await start_app(require_second_factor="admins")
    account = await register(client)
    app = await add_totp(client, account.headers)
    removed = await send(client, "DELETE", f"/users/me/factors/{app.factor_id}", by=account)
    assert removed.status == 204
    assert await is_signed_in(client, account)


async def test_an_account_whose_factors_an_administrator_removed_enrols_again(
    start_app: StartApp,
) -> None:
    client = await start_app(require_second_factor="all")
    owner, admin = await register(client), await register_as(client, "admin")
    for account in (owner, admin):
        await add_totp(client, account.headers)
    path = f"/users/{owner.profile['id']}/factors"
    assert (await send(client, "DELETE", path, by=admin)).status == 204
    again = await sign_in_again(client, owner)
    await assert_problem(
        await send(client, "GET", "/users/me", by=again), 403, "enrolment_required"
    )
    await add_totp(client, again.headers)
    assert await is_signed_in(client, again)
    assert (await sign_in(client, owner)).status == 401
