"""Headers of every response, and what other origins may read (CORS)."""

import itertools
import re
from collections.abc import Iterable

import pytest
from aiohttp import ClientResponse
from yarl import URL

from service.context import LIFECYCLE
from service.http.route import spellings
from service.routes import ROUTES
from service.settings import Rate
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, register, register_as
from tests.support.logbook import logged

APP = "https://app.example"
OTHER = "http://localhost:3000"
ALLOWED = frozenset({APP, OTHER})
UNLISTED = (
    *("https://evil.example", "https://app.example.evil.example", "https://evilapp.example"),
    *("https://sub.app.example", "http://app.example", "https://app.example:8443"),
    *("https://APP.example", "https://app.example/", f"{APP}, {OTHER}", f"{APP} {OTHER}"),
    *("null", "*", "", "https://app"),
)
CACHED = {
    "/.well-known/jwks.json": "public, max-age=300",
    "/.well-known/webauthn": "public, max-age=3600",
    "/openapi.json": "public, no-cache",
    **{
        route.path: "public, no-cache"
        for route in ROUTES
        if "service.docs" in route.handler.__module__
    },
}
CORS = re.compile("access-control-|vary", re.IGNORECASE)


def cors_of(response: ClientResponse) -> list[str]:
    return [name for name in response.headers if CORS.match(name)]


def assert_secure(response: ClientResponse) -> None:
    headers = response.headers
    assert headers.getall("X-Content-Type-Options") == ["nosniff"]
    assert headers.getall("Referrer-Policy") == ["no-referrer"]
    assert headers.getall("Cross-Origin-Resource-Policy") == ["same-origin"]
    (policy,) = headers.getall("Content-Security-Policy")
    directives = policy.split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"} <= {*directives}
    assert "unsafe" not in policy
    path = response.url.path.rstrip("/") or "/"
    is_page = path in ("/", "/docs") and response.method != "OPTIONS" and response.status == 200
    assert (len(directives) > 3) == is_page
    expected = CACHED.get(path, "no-store") if response.status == 200 else "no-store"
    assert headers.getall("Cache-Control") == [expected], path
    assert headers.getall("Server") == ["shinkei"]
    assert "Set-Cookie" not in headers


@pytest.mark.asvs(
    "3.2.1",
    "3.3.1",
    "3.3.2",
    "3.3.3",
    "3.3.4",
    "3.4.3",
    "3.4.4",
    "3.4.5",
    "3.4.6",
    "14.2.2",
    "14.3.2",
)
async def test_every_response_has_security_headers(client: Client) -> None:
    """Call every route anonymously and as an admin without a body, then a few with one."""
    statuses = set()
    owner = await register_as(client, "admin")
    for route, anonymous in itertools.product(ROUTES, (True, False)):
        me = await client.get("/api/v1/users/me", headers=owner.headers)
        if me.status != 200:
            # The last request ended the session.
            owner = await register_as(client, "admin")
        path = route.path.replace("{user_id}", owner.profile["id"])
        path = re.sub(r"{[^}]*}", "01890000-0000-7000-8000-000000000000", path)
        headers = {} if anonymous else owner.headers
        response = await client.request(route.method, path, headers=headers)
        assert_secure(response)
        statuses.add(response.status)
    owner = await register(client)
    for method, path, body in (
        ("HEAD", "/api/v1/users/me", None),
        ("OPTIONS", "/api/v1/users/me", None),
        ("POST", "/api/v1/auth/login", {"email": "nobody@example.com", "password": PASSWORD}),
        ("POST", "/api/v1/auth/register", {"email": "new@example.com", "password": PASSWORD}),
        ("POST", "/api/v1/auth/password/forgot", {"email": owner.profile["email"]}),
        ("POST", "/api/v1/auth/login", {"email": "x" * 70_000}),
        ("GET", "/nothing", None),
        ("GET", f"/nothing?{'malformed' * 1000}", None),
        ("POST", "/api/v1/auth/logout", None),
    ):
        response = await client.request(method, path, json=body, headers=owner.headers)
        assert_secure(response)
        statuses.add(response.status)
    assert statuses >= {200, 201, 202, 204, 400, 401, 404, 405, 413}


@pytest.mark.asvs("3.4.1")
async def test_hsts_is_sent_if_the_public_origin_is_https(
    client: Client, start_app: StartApp
) -> None:
    assert "Strict-Transport-Security" not in (await client.get("/health/live")).headers
    client = await start_app(public_origin=APP)
    for path in ("/health/live", "/api/v1/users/me", "/nothing"):
        response = await client.get(path)
        assert response.headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.asvs("3.4.2")
async def test_no_origin_gets_cors_headers_by_default(client: Client) -> None:
    account = await register(client)
    asks = {"Origin": APP, "Access-Control-Request-Method": "GET"}
    for method in ("GET", "OPTIONS"):
        response = await client.request(
            method, "/api/v1/users/me", headers={**account.headers, **asks}
        )
        assert response.status == (200 if method == "GET" else 403)
        assert cors_of(response) == []


async def preflight(client: Client, path: str, origin: str, **headers: str) -> ClientResponse:
    asks = {"Origin": origin, "Access-Control-Request-Method": "PATCH", **headers}
    return await client.options(path, headers=asks)


def methods_of(path: str) -> Iterable[str]:
    methods = {route.method for route in ROUTES if route.path == path}
    return methods | ({"HEAD"} if "GET" in methods else set())


async def test_preflight_succeeds_on_every_route(start_app: StartApp) -> None:
    client = await start_app(cors_origins=ALLOWED)
    for path, origin in itertools.product({route.path for route in ROUTES}, sorted(ALLOWED)):
        concrete = re.sub(r"{[^}]*}", "01890000-0000-7000-8000-000000000000", path)
        for spelling in spellings(concrete):
            response = await preflight(client, spelling, origin)
            assert (response.status, await response.read()) == (204, b""), path
            assert response.headers["Access-Control-Allow-Origin"] == origin
            assert response.headers["Access-Control-Max-Age"] == "7200"
            assert response.headers["Vary"] == "Origin"
            methods = response.headers["Access-Control-Allow-Methods"].split(", ")
            assert set(methods) == methods_of(path)
            assert_secure(response)


def allowed_headers(response: ClientResponse) -> set[str]:
    return set(response.headers["Access-Control-Allow-Headers"].lower().split(", "))


ALLOWED_HEADERS = {
    *("authorization", "baggage", "content-type", "idempotency-key", "if-match", "if-none-match"),
    *("sentry-trace", "traceparent", "tracestate", "x-request-id"),
}


async def test_preflight_allows_the_headers_of_the_api_and_of_tracing(start_app: StartApp) -> None:
    client = await start_app(cors_origins=ALLOWED)
    response = await preflight(client, "/api/v1/users/me", APP)
    assert allowed_headers(response) == ALLOWED_HEADERS


async def test_preflight_also_allows_the_headers_of_the_setting(start_app: StartApp) -> None:
    client = await start_app(cors_origins=ALLOWED, cors_headers=frozenset({"X-Datadog-Trace-Id"}))
    response = await preflight(client, "/api/v1/users/me", APP)
    assert allowed_headers(response) == {*ALLOWED_HEADERS, "x-datadog-trace-id"}


async def test_listed_origins_can_read_the_file_name_of_an_export(start_app: StartApp) -> None:
    client = await start_app(cors_origins=ALLOWED)
    account = await register(client)
    headers = {**account.headers, "Origin": APP}
    response = await client.get("/api/v1/users/me/export", headers=headers)
    assert "Content-Disposition" in response.headers
    exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert "Content-Disposition" in exposed


@pytest.mark.asvs("3.5.2")
async def test_cors_rejects_requests_that_are_not_preflights(start_app: StartApp) -> None:
    client = await start_app(cors_origins=ALLOWED)
    response = await preflight(client, "/nothing", APP)
    await assert_problem(response, 404, "not_found")
    for headers in ({}, {"Origin": APP}, {"Access-Control-Request-Method": "GET"}):
        response = await client.options("/api/v1/users/me", headers=headers)
        await assert_problem(response, 405, "method_not_allowed")
        assert "Access-Control-Allow-Methods" not in response.headers


@pytest.mark.asvs("3.4.2")
@pytest.mark.parametrize("origin", UNLISTED)
async def test_unlisted_origins_get_no_cors_headers(start_app: StartApp, origin: str) -> None:
    client = await start_app(cors_origins=ALLOWED)
    account = await register(client)
    for response in (
        await preflight(client, "/api/v1/users/me", origin),
        await client.get("/api/v1/users/me", headers={**account.headers, "Origin": origin}),
        await client.get("/api/v1/users/me", headers={"Origin": origin}),
    ):
        # A shared cache must not serve an unlisted origin's response to a listed one.
        assert cors_of(response) == ["Vary"]
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("cors_origins", [frozenset(), ALLOWED])
async def test_refused_preflight_is_a_403_and_its_origin_is_logged(
    start_app: StartApp, cors_origins: frozenset[str]
) -> None:
    client = await start_app(cors_origins=cors_origins)
    with logged() as events:
        response = await preflight(client, "/api/v1/users/me", "https://evil.example")
    await assert_problem(response, 403, "origin_not_allowed")
    refused, request = events
    assert (refused["event"], refused["level"]) == ("preflight refused", "info")
    assert refused["origin"] == "https://evil.example"
    assert refused["request_id"] == request["request_id"]
    assert request["code"] == "origin_not_allowed"


async def test_logged_origin_is_bounded(client: Client) -> None:
    with logged() as events:
        await preflight(client, "/api/v1/users/me", f"https://{'x' * 5000}.example")
    assert len(events[0]["origin"]) == 200


async def test_listed_origins_can_read_responses_and_errors(start_app: StartApp) -> None:
    client = await start_app(
        cors_origins=ALLOWED,
        throttle_sign_in_per_ip=Rate(1, 60),
    )
    account = await register(client)
    wrong = {"email": "nobody@example.com", "password": PASSWORD}
    me = "/api/v1/users/me"
    page = {"Origin": APP}
    responses = [
        await client.get(me, headers={**account.headers, **page}),
        await client.get("/.well-known/jwks.json", headers=page),
        await client.get(me, headers=page),
        await client.get("/nothing", headers=page),
        await client.delete("/api/v1/auth/login", headers=page),
        await client.post("/api/v1/auth/login", json=wrong, headers=page),
        await client.post("/api/v1/auth/login", json=wrong, headers=page),
        await client.post("/api/v1/auth/login", data="{", headers=page),
    ]
    assert client.app is not None
    client.app[LIFECYCLE].stopping = True
    responses.append(await client.get("/health/ready", headers=page))
    statuses = [response.status for response in responses]
    assert statuses == [200, 200, 401, 404, 405, 401, 429, 415, 503]
    for response in responses:
        headers = response.headers
        assert headers.getall("Access-Control-Allow-Origin") == [APP]
        assert headers.getall("Vary") == ["Origin"]
        assert "Access-Control-Allow-Credentials" not in headers
        exposed = set(headers["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= {
            *("ETag", "Link", "Location", "Retry-After", "traceresponse", "X-Request-ID")
        }
        assert {name for name in headers if name.startswith("RateLimit")} <= exposed
        assert_secure(response)


async def test_search_text_cannot_add_a_link(client: Client) -> None:
    """The Link header repeats the query of its request."""
    admin = await register_as(client, "admin")
    name = 'Ada>; rel="prev", <https://evil.example/\u00e9; x="%0d%0a'
    for _ in range(2):
        await register(client, name=name)
    query = {"q": name, "limit": "1"}
    response = await client.get("/api/v1/users", params=query, headers=admin.headers)
    assert (response.status, list(response.links)) == (200, ["next"])
    link = response.headers["Link"]
    assert (link.isascii(), link.isprintable(), link.count("<"), link.count(">")) == (
        (True, True, 1, 1)
    )
    assert URL(response.links["next"]["url"]).query["q"] == name


@pytest.mark.parametrize("given", ["a b", "a\tb", "é", "a;b", "", "a" * 129])
async def test_malformed_request_id_is_not_repeated(client: Client, given: str) -> None:
    response = await client.get("/health/live", headers={"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])
