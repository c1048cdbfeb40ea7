"""Access control: every route, called by every kind of caller."""

import uuid
from typing import Any

import pytest

from service.auth.guards import (
    aal2,
    admin,
    admin_recently,
    anyone,
    optionally_signed_in,
    support,
)
from service.factors.codes import SECRET_PURPOSE
from service.http.descriptions import description_of
from service.http.route import Route
from service.routes import ROUTES
from service.sealing import seal
from tests.support.clients import SECRET_KEY, Client
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
    if caller == "anonymous" or route.access is aal2:
        return 401
    if route.access in (support, admin, admin_recently):
        if caller == "admin" or (caller == "support" and route.access is support):
            return None
        return 404 if caller != "support" and "{user_id}" in route.path else 403
    # An id belongs to the owner, and nobody else learns that it exists.
    return 404 if "_id}" in route.path and caller != "user" else None


@pytest.mark.asvs("3.5.3")
async def test_every_route_checks_every_caller(client: Client, conn: Any) -> None:
    """Requests have no body, so that callers past the guard change nothing except by DELETE.

    Only those below a world or a factor have one: the service looks for these after it has read the
    body. All sessions are recent and of level 1: see factors/test_assurance.py for others.
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
            of_factor = "{factor_id}" in route.path
            if of_factor:
                ids["factor_id"] = await insert_factor(conn, owner, "/confirm" not in route.path)
            if of_world := OF_WORLDS.search(route.path):
                untouched = untouched or await ids_of_each(client, owner, fresh=True)
                ids |= untouched
            path = route.path.format(**ids) + ("?q=lamp" if route.path.endswith("/search") else "")
            refused = expected(route, caller)
            before = await everything(conn) if refused else None
            described = description_of(route.handler)
            body = described.example if of_world or of_factor else None
            response = await client.request(route.method, path, headers=headers, json=body)
            cell = (route.method, route.path, caller, response.status, await response.text())
            if refused:
                assert response.status == refused, cell
                assert await everything(conn) == before, cell
            else:
                is_wrong_code = "wrong_code" in cell[4]
                assert response.status not in (401, 403, 404, 405, 500) or is_wrong_code, cell
                owner, untouched = await renewed(client, owner, "user"), {}
                if caller in others:
                    others[caller] = await renewed(client, others[caller], role_of(caller))


def role_of(caller: str) -> str:
    return caller.removeprefix("other ")


async def renewed(client: Client, account: Account, role: str) -> Account:
    """Return the account, or a new one if the last request ended its session or deleted it."""
    response = await client.get("/api/v1/users/me", headers=account.headers)
    return account if response.status == 200 else await register_as(client, role)


async def insert_factor(conn: Any, owner: Account, confirmed: bool) -> str:
    """Insert an app that makes no codes, for its id."""
    factor_id = uuid.uuid4()
    secret = b"0123456789abcdef0123"
    await conn.execute(
        """
        insert into factors (id, user_id, type, name, sealed_secret, confirmed_at)
        values ($1, $2, 'totp', 'an app', $3, case when $4 then now() end)
        """,
        factor_id,
        owner.profile["id"],
        seal(SECRET_KEY, SECRET_PURPOSE, str(factor_id), secret),
        confirmed,
    )
    return str(factor_id)
