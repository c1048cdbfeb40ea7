"""Conditional requests: If-Match and If-None-Match on every resource with an ETag (RFC 9110 §13)."""

from typing import Any

import pytest
from aiohttp import ClientResponse
from multidict import CIMultiDict

from service.http.descriptions import is_revalidated
from service.routes import ROUTES
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, assert_problem, register, register_as
from tests.support.wire import connected, get
from tests.support.worlds import OF_WORLDS, ids_of_each

ME = "/api/v1/users/me"
OTHER = "/api/v1/users/{user_id}"
# Resources with an ETag.
TAGGED = [route.path for route in ROUTES if is_revalidated(route)]
# Requests that change an account, if the preconditions hold.
CHANGES: list[tuple[str, str, Any]] = [
    ("PATCH", ME, {"name": "new"}),
    ("PUT", ME, {"name": "new"}),
    ("DELETE", ME, {"password": PASSWORD}),
    ("POST", f"{ME}/deletion", {"password": PASSWORD}),
    ("PATCH", OTHER, {"name": "new"}),
    ("DELETE", OTHER, None),
    ("DELETE", f"{OTHER}/sessions", None),
    ("POST", f"{OTHER}/suspend", {"reason": "spam"}),
    ("POST", f"{OTHER}/reinstate", None),
    ("POST", f"{OTHER}/password-reset", None),
]
OF_THE_CONTENT = {"content-type", "content-encoding", "content-length"}
OF_ONE_RESPONSE = {"date", "x-request-id"}
MALFORMED = (
    *("1", '"1', '1"', "W/1", 'w/"1"', '"a b"', '"1" "2"', '"1"; "2"', '*, "1"', '"1", *'),
    *("**", "'1'", '"1"x', '"1",x', "W/", '""1""'),
)


@pytest.fixture
async def admin(client: Client) -> Account:
    await register_as(client, "admin")
    return await register_as(client, "admin")


async def ids_in(client: Client, path: str, account: Account) -> dict[str, str]:
    """Return the values of the path's parameters for what belongs to the account."""
    ids = {"user_id": account.profile["id"]}
    return ids | (await ids_of_each(client, account) if OF_WORLDS.search(path) else {})


async def send(
    client: Client, method: str, path: str, account: Account, body: Any = None, **headers: str
) -> ClientResponse:
    """Send a request about the account, with header names written with underscores."""
    url = path.format(**await ids_in(client, path, account))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.request(method, url, headers={**account.headers, **named}, json=body)


def test_accounts_and_documentation_have_etags() -> None:
    assert {ME, OTHER, "/openapi.json", "/docs", "/docs/page.css"} <= {*TAGGED}


async def test_known_version_is_not_sent_again(client: Client, admin: Account) -> None:
    for path in TAGGED:
        tag = (await send(client, "GET", path, admin)).headers["ETag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', f',"other" ,\t,W/{tag},', "*"):
            for method in ("GET", "HEAD"):
                response = await send(client, method, path, admin, If_None_Match=known)
                assert (response.status, await response.read()) == (304, b""), (path, known)


async def test_304_has_the_headers_of_the_200_except_those_of_its_content(
    start_app: StartApp,
) -> None:
    origin = "https://app.example"
    client = await start_app(cors_origins=frozenset({origin}))
    admin = await register_as(client, "admin")
    for path in TAGGED:
        whole = headers_of(await send(client, "GET", path, admin, Origin=origin))
        again = await send(client, "GET", path, admin, Origin=origin, If_None_Match="*")
        assert again.status == 304
        assert headers_of(again) == [each for each in whole if each[0] not in OF_THE_CONTENT]
        assert {"etag", "cache-control", "vary"} <= {name for name, _ in headers_of(again)}


def headers_of(response: ClientResponse) -> list[tuple[str, str]]:
    named = [(name.lower(), value) for name, value in response.headers.items()]
    return sorted(each for each in named if each[0] not in OF_ONE_RESPONSE)


async def test_connection_continues_after_a_304(client: Client) -> None:
    known = get("/openapi.json", **{"If-None-Match": "*"})
    async with connected(client) as wire:
        wire.writer.write(known + known + get("/health/live", Connection="close"))
        received = await wire.reader.read()
    responses = received.split(b"HTTP/1.1 ")[1:]
    assert [response[:3] for response in responses] == [b"304", b"304", b"200"]
    assert all(response.endswith(b"\r\n\r\n") for response in responses[:2])


async def test_unknown_version_is_sent(client: Client, admin: Account) -> None:
    for path in TAGGED:
        response = await send(client, "GET", path, admin, If_None_Match='W/"other"')
        assert response.status == 200, path


async def test_unusual_lists_of_etags_are_read(client: Client) -> None:
    account = await register(client)
    for known in ('""', '"*"', '"1,1"', '"é"', "", ",", '"7" ,, "8"'):
        headers = {**account.headers, "If-None-Match": known}
        # The description asks clients for a simpler form.
        response = await client.get(ME, headers=headers, middlewares=())
        assert response.status == 200, known


async def test_changed_account_is_sent_again(client: Client) -> None:
    account = await register(client)
    before = await send(client, "GET", ME, account)
    await send(client, "PATCH", ME, account, {"name": "new"})
    after = await send(client, "GET", ME, account, If_None_Match=before.headers["ETag"])
    assert (after.status, (await after.json())["name"]) == (200, "new")


async def test_version_is_confirmed_only_to_those_who_may_read_it(client: Client) -> None:
    account = await register(client)
    response = await client.get(ME, headers={"If-None-Match": "*"})
    await assert_problem(response, 401, "not_signed_in")
    response = await send(client, "GET", OTHER, account, If_None_Match="*")
    await assert_problem(response, 404, "not_found")


async def test_if_none_match_prevents_the_change_of_a_known_version(
    client: Client, admin: Account
) -> None:
    for method, path, body in CHANGES:
        for known in ('"1"', 'W/"1"', '"7", "1"', "*"):
            response = await send(
                client, method, path, admin, body, If_Match='"1"', If_None_Match=known
            )
            problem = await assert_problem(response, 412, "precondition_failed")
            assert "If-None-Match" in problem["detail"]
    assert await (await send(client, "GET", ME, admin)).json() == admin.profile


async def test_if_match_prevents_the_change_of_another_version(
    client: Client, admin: Account
) -> None:
    for method, path, body in CHANGES:
        response = await send(client, method, path, admin, body, If_Match='"7"')
        await assert_problem(response, 412, "precondition_failed")
    assert await (await send(client, "GET", ME, admin)).json() == admin.profile


async def test_change_is_made_if_both_preconditions_hold(client: Client, admin: Account) -> None:
    for method, path, body in CHANGES:
        changed = await register_as(client, "admin")
        response = await send(
            client, method, path, changed, body, If_Match='"1"', If_None_Match='"7"'
        )
        assert response.status in (200, 202, 204), await response.text()


async def test_if_match_comes_before_if_none_match(client: Client) -> None:
    account = await register(client)
    for if_match, if_none_match, status in [
        ('"7"', "*", 412),
        ('"7"', '"7"', 412),
        ('"1"', "*", 304),
        ('"1"', '"7"', 200),
    ]:
        response = await send(
            client, "GET", ME, account, If_Match=if_match, If_None_Match=if_none_match
        )
        assert response.status == status, (if_match, if_none_match)


async def test_malformed_if_none_match_does_not_prevent_a_read(
    client: Client, admin: Account
) -> None:
    for path in TAGGED:
        for malformed in MALFORMED:
            url = path.format(**await ids_in(client, path, admin))
            headers = {**admin.headers, "If-None-Match": malformed}
            # The description asks clients for valid ETags.
            response = await client.get(url, headers=headers, middlewares=())
            assert response.status == 200, (path, malformed)


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
async def test_malformed_etags_are_rejected(client: Client, admin: Account, name: str) -> None:
    reads = [("GET", path, None) for path in TAGGED] if name == "If-Match" else []
    requests = [(*each, "1") for each in [*reads, *CHANGES]]
    requests += [(*CHANGES[0], value) for value in MALFORMED]
    for method, path, body, value in requests:
        response = await send(client, method, path, admin, body, **{"If-Match": "*", name: value})
        problem = await assert_problem(response, 400, "invalid_etag")
        assert problem["detail"].startswith(name), value


async def test_lines_of_if_none_match_are_one_list(client: Client) -> None:
    account = await register(client)
    lines = [("If-None-Match", '"7"'), ("If-None-Match", 'W/"1"')]
    headers = CIMultiDict([*account.headers.items(), *lines])
    assert (await client.get(ME, headers=headers)).status == 304


async def test_empty_if_match_matches_nothing(client: Client) -> None:
    account = await register(client)
    response = await send(client, "PATCH", ME, account, {"name": "new"}, If_Match="")
    await assert_problem(response, 412, "precondition_failed")


async def test_resources_without_etag_ignore_preconditions(client: Client, admin: Account) -> None:
    for path in ("/api/v1/users", f"{ME}/sessions", "/health/live", "/.well-known/jwks.json"):
        response = await send(client, "GET", path, admin, If_Match='"7"', If_None_Match="*")
        assert response.status == 200


async def test_weakened_etag_is_refused_with_a_way_out(client: Client) -> None:
    """nginx weakens the ETag of a response that it compresses."""
    account = await register(client)
    response = await send(client, "PATCH", ME, account, {"name": "new"}, If_Match='W/"1"')
    problem = await assert_problem(response, 412, "precondition_failed")
    assert "proxy" in problem["detail"]
    assert "without W/" in problem["detail"]
    again = await send(client, "PATCH", ME, account, {"name": "new"}, If_Match='"1"')
    assert again.status == 200


async def test_weakened_etag_of_an_earlier_version_is_out_of_date(client: Client) -> None:
    account = await register(client)
    response = await send(client, "PATCH", ME, account, {"name": "new"}, If_Match='W/"7"')
    problem = await assert_problem(response, 412, "precondition_failed")
    assert "changed" in problem["detail"]
