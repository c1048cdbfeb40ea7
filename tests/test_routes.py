"""Public routes and general responses, checked over the whole route table."""

import re

import pytest

from service.auth.guards import anyone, optionally_signed_in
from service.http.route import spellings
from service.routes import ROUTES
from tests.support.clients import Client
from tests.support.factories import assert_problem, register

PUBLIC = {
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/health/startup"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/.well-known/webauthn"),
    ("GET", "/docs"),
    ("GET", "/docs/page.js"),
    ("GET", "/docs/session.js"),
    ("GET", "/docs/factors.js"),
    ("GET", "/docs/page.css"),
    ("GET", "/docs/swagger-ui.js"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/openapi.json"),
    ("POST", "/api/v1/auth/register"),
    ("POST", "/api/v1/auth/login"),
    ("POST", "/api/v1/auth/second-factor"),
    ("POST", "/api/v1/auth/second-factor/options"),
    ("POST", "/api/v1/auth/passkey"),
    ("POST", "/api/v1/auth/passkey/options"),
    ("POST", "/api/v1/auth/refresh"),
    ("POST", "/api/v1/auth/password/forgot"),
    ("POST", "/api/v1/auth/password/reset"),
    ("POST", "/api/v1/auth/email/verify/resend"),
    ("POST", "/api/v1/auth/email/revert"),
    ("POST", "/api/v1/auth/links/inspect"),
}
# Accept another proof than an access token: a refresh token, or a mailed link with a password.
OPTIONAL = {
    ("POST", "/api/v1/auth/logout"),
    ("POST", "/api/v1/auth/email/verify"),
}


@pytest.mark.asvs("6.3.4")
def test_public_routes_are_exactly_those_listed() -> None:
    assert {(route.method, route.path) for route in ROUTES if route.access is anyone} == PUBLIC


def test_access_token_is_optional_exactly_where_listed() -> None:
    optional = {
        (route.method, route.path) for route in ROUTES if route.access is optionally_signed_in
    }
    assert optional == OPTIONAL


@pytest.mark.asvs("6.4.2")
async def test_router_contains_exactly_the_route_table(client: Client) -> None:
    assert client.app is not None
    registered = {
        (route.method, route.resource.canonical.rstrip("/") or "/")
        for route in client.app.router.routes()
        if route.resource
    }
    listed = {(route.method, route.path) for route in ROUTES}
    listed |= {("HEAD", path) for method, path in listed if method == "GET"}
    assert registered == listed


@pytest.mark.asvs("3.5.1", "8.2.1")
async def test_every_private_route_requires_sign_in(client: Client) -> None:
    pairs = [(route, path) for route in ROUTES for path in spellings(route.path)]
    for route, spelling in pairs:
        path = re.sub(r"{[^}]*}", "01890000-0000-7000-8000-000000000000", spelling)
        response = await client.request(route.method, path)
        if (route.method, route.path) in PUBLIC:
            assert response.status not in (401, 403, 404, 405, 500), path
        elif (route.method, route.path) in OPTIONAL:
            assert response.status in (400, 401), path
        else:
            await assert_problem(response, 401, "not_signed_in")


async def test_unknown_paths_and_methods_are_rejected(client: Client) -> None:
    for path in ("/nothing", "/api/v1", "/api/v1/users/me//", "/%00", "/%ff"):
        await assert_problem(await client.get(path), 404, "not_found")
    response = await client.delete("/api/v1/auth/login")
    await assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


async def test_request_id_is_accepted_or_generated_and_returned(client: Client) -> None:
    sane = "trace-1.of_ours"
    response = await client.get("/health/live", headers={"X-Request-ID": sane})
    assert response.headers["X-Request-ID"] == sane
    made = set()
    for insane in ("", "a b", "x" * 129, "é", '"><script>', "a;b"):
        response = await client.get("/nothing", headers={"X-Request-ID": insane})
        problem = await response.json(content_type=None)
        assert problem["request_id"] == response.headers["X-Request-ID"]
        made.add(problem["request_id"])
    assert len(made) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in made)


async def test_server_header_does_not_reveal_the_software(client: Client) -> None:
    response = await client.get("/health/live")
    assert response.headers["Server"] == "shinkei"


async def test_head_is_get_without_a_body(client: Client) -> None:
    account = await register(client)
    get = await client.get("/api/v1/users/me", headers=account.headers)
    head = await client.head("/api/v1/users/me", headers=account.headers)
    assert head.status == 200
    assert await head.read() == b""
    assert head.headers["ETag"] == get.headers["ETag"]
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
