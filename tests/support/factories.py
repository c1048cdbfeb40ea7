"""Accounts for tests, created over HTTP as a client would."""

import itertools
from typing import Any, NamedTuple

from aiohttp import ClientResponse

from tests.support.clients import Client, pool_of

PASSWORD = "a passphrase nobody else has"
_numbers = itertools.count(1)


class Account(NamedTuple):
    """A registered account with its profile, password, sign-in headers and tokens."""

    profile: dict[str, Any]
    password: str
    headers: dict[str, str]
    tokens: dict[str, Any]


async def register(client: Client, **overrides: Any) -> Account:
    """Register and sign in an account with a unique email."""
    body = {"email": f"user{next(_numbers)}@example.com", "password": PASSWORD, **overrides}
    response = await client.post("/api/v1/auth/register", json=body)
    assert response.status == 201, await response.text()
    tokens = await response.json()
    profile = tokens.pop("user")
    return Account(profile, body["password"], bearer(tokens["access_token"]), tokens)


async def register_as(client: Client, role: str, **overrides: Any) -> Account:
    """Register and sign in, then set the role in the database."""
    account = await register(client, **overrides)
    await pool_of(client).execute(
        "update users set role = $2 where id = $1", account.profile["id"], role
    )
    return account._replace(profile={**account.profile, "role": role})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def assert_problem(response: ClientResponse, status: int, code: str) -> dict[str, Any]:
    """Assert that the response is this well-formed problem; return it without ``request_id``."""
    problem: dict[str, Any] = await response.json(content_type=None)
    assert (response.status, problem["code"]) == (status, code), problem
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert problem.pop("request_id") == response.headers["X-Request-ID"]
    assert problem["status"] == status
    more = {"challenge", "factors"} if code == "second_factor_required" else set()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "code"} | more
    if status == 503:
        assert int(response.headers["Retry-After"]) >= 1
    return problem


def pointers(problem: dict[str, Any]) -> set[str]:
    return {error["pointer"] for error in problem["errors"]}
