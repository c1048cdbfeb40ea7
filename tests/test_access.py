"""Access control: every route, called by every kind of caller."""

from typing import Any

import pytest

from service.auth.guards import anyone, optionally_signed_in, signed_in, support
from service.http.descriptions import description_of
from service.http.route import Route
from service.routes import ROUTES
from tests.support.clients import Client
from tests.support.factories import Account, register, register_as
from tests.support.state import everything
from tests.support.worlds import OF_WORLDS, ids_of_each

CALLERS = ("anonymous", "user", "other user", "support", "admin")
LOGOUT = "/api/v1/auth/logout"


def expected(route: Route, caller: str) -> int | None:
    """Return the status of the refusal, or None if the guard lets the caller through."""
    if route.access is anyone:
        return None
    if route.access is optionally_signed_in:
        return 401 if route.path == LOGOUT and caller == "anonymous" else None
    if caller == "anonymous":
        return 401
    if route.access is signed_in:
        # An id belongs to the owner, and nobody else learns that it exists.
        return 404 if "_id}" in route.path and caller != "user" else None
    if caller == "admin" or (caller == "support" and route.access is support):
        return None
    return 404 if caller != "support" and "{user_id}" in route.path else 403


@pytest.mark.asvs("3.5.3")
async def test_every_route_checks_every_caller(client: Client, conn: Any) -> None:
    """Requests have no body, so that callers past the guard change nothing except by DELETE.

    Only those below a world have one: the service looks for the world after it has read the body.
    """
    owner = await register(client)
    others = {
        caller: await register_as(client, role_of(caller))
        for caller in CALLERS
        if caller not in ("anonymous", "user")
    }
    untouched: dict[str, str] = {}
    for route in ROUTES:
        for caller in CALLERS:
            accounts = {**others, "user": owner}
            headers = accounts[caller].headers if caller in accounts else {}
            session_id = await conn.fetchval(
                "select id from sessions where user_id = $1", owner.profile["id"]
            )
            ids = {"user_id": owner.profile["id"], "session_id": session_id}
            if of_world := OF_WORLDS.search(route.path):
                untouched = untouched or await ids_of_each(client, owner, fresh=True)
                ids |= untouched
            path = route.path.format(**ids) + ("?q=lamp" if route.path.endswith("/search") else "")
            refused = expected(route, caller)
            before = await everything(conn) if refused else None
            body = description_of(route.handler).example if of_world else None
            response = await client.request(route.method, path, headers=headers, json=body)
            cell = (route.method, route.path, caller, response.status, await response.text())
            if refused:
                assert response.status == refused, cell
                assert await everything(conn) == before, cell
            else:
                assert response.status not in (401, 403, 404, 405, 500), cell
                owner, untouched = await renewed(client, owner, "user"), {}
                if caller in others:
                    others[caller] = await renewed(client, others[caller], role_of(caller))


def role_of(caller: str) -> str:
    return caller.removeprefix("other ")


async def renewed(client: Client, account: Account, role: str) -> Account:
    """Return the account, or a new one if the last request ended its session or deleted it."""
    response = await client.get("/api/v1/users/me", headers=account.headers)
    return account if response.status == 200 else await register_as(client, role)
