"""Tokens, keys and versions that were used, changed or meant for something else."""

import asyncio
from typing import Any

import pytest

from service.settings import Settings
from tests.support.attacks import Attack, carry_out, changed, report
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, bearer, register
from tests.support.operations import Request, Requests, operations_of, read_description
from tests.support.steps import (
    NEW_PASSWORD,
    is_signed_in,
    link_about,
    mail_reset,
    refresh,
    reset,
    send,
    sign_in_again,
)

REFRESH = "/api/v1/auth/refresh"


@pytest.mark.asvs("7.2.3", "9.2.2")
async def test_changed_refresh_tokens_are_refused(client: Client) -> None:
    account = await register(client)
    token = account.tokens["refresh_token"]
    tokens = [*changed(token), ("access token", account.tokens["access_token"][:512], 401, "")]
    wrong: list[str] = []
    for name, text, status, _ in tokens:
        response = await client.post(REFRESH, json={"refresh_token": text})
        code = "invalid_refresh_token" if status == 401 else "invalid_fields"
        problem = await response.json()
        if (response.status, problem.get("code")) != (status, code):
            wrong.append(f"{name}: {response.status} {problem}")
        # A retry gets the same successor, so the token itself is still accepted.
        if (await refresh(client, token)).status != 200:
            wrong.append(f"{name}: the token itself is refused")
    report(wrong, len(tokens), 34)


@pytest.mark.asvs("9.2.2", "10.4.5")
async def test_replayed_refresh_token_ends_its_family_alone(client: Client) -> None:
    """Whichever of its ancestors is replayed. Another session of the account continues."""
    wrong: list[str] = []
    for depth in range(1, 6):
        account = await register(client)
        other = await sign_in_again(client, account)
        family = [account.tokens]
        for _ in range(depth + 1):
            response = await refresh(client, family[-1]["refresh_token"])
            family.append(await response.json())
        if (await refresh(client, family[depth - 1]["refresh_token"])).status != 401:
            wrong.append(f"replay at depth {depth} is accepted")
        for tokens in family:
            if (await refresh(client, tokens["refresh_token"])).status != 401:
                wrong.append(f"depth {depth}: a refresh token lives on")
            me = await client.get("/api/v1/users/me", headers=bearer(tokens["access_token"]))
            if me.status != 401:
                wrong.append(f"depth {depth}: an access token lives on")
        if (await refresh(client, other.tokens["refresh_token"])).status != 200:
            wrong.append(f"depth {depth}: another session has ended")
    report(wrong, 5, 5)


async def test_parallel_refreshes_make_no_fork(client: Client) -> None:
    for _ in range(5):
        token = (await register(client)).tokens["refresh_token"]
        responses = await asyncio.gather(*(refresh(client, token) for _ in range(2)))
        successors = {(await each.json())["refresh_token"] for each in responses}
        assert len(successors) == 1


@pytest.mark.asvs("6.4.3")
async def test_changed_links_are_refused(client: Client, settings: Settings) -> None:
    """On each route that takes a mailed token. The token itself is accepted at the end."""
    account = await register(client)
    email = account.profile["email"]
    token = await link_about(settings.data_dir, email, "Confirm your email address")
    other = await mail_reset(client, settings.data_dir, account)
    routes: dict[str, tuple[str, dict[str, str]]] = {
        "/auth/links/inspect": (token, {}),
        "/auth/email/verify": (token, {"password": PASSWORD}),
        "/auth/password/reset": (other, {"password": NEW_PASSWORD}),
    }
    wrong: list[str] = []
    count = 0
    for path, (link, proof) in routes.items():
        meant_for_another = other if link == token else token
        tokens = [*changed(link)]
        if path != "/auth/links/inspect":
            tokens.append(("of another purpose", meant_for_another, 401, "invalid"))
        tokens += [
            ("refresh token", account.tokens["refresh_token"], 401, "invalid"),
            ("access token", account.tokens["access_token"][:512], 401, "invalid"),
        ]
        for name, text, status, _ in tokens:
            count += 1
            response = await send(client, "POST", path, {"token": text, **proof})
            problem = await response.json()
            expected = (400, "invalid_token") if status == 401 else (422, "invalid_fields")
            if (response.status, problem.get("code")) != expected:
                wrong.append(f"{path}, {name}: {response.status} {problem}")
        response = await send(client, "POST", path, {"token": link, **proof})
        if response.status >= 300:
            wrong.append(f"{path} refuses the link itself: {await response.text()}")
    for again in ("/auth/password/reset",):
        count += 1
        response = await send(client, "POST", again, {"token": other, "password": NEW_PASSWORD})
        if response.status != 400:
            wrong.append(f"{again} takes a link twice")
    report(wrong, count, 105)


@pytest.mark.asvs("6.4.3")
async def test_reset_link_gives_no_session_and_ends_those_there_are(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    response = await reset(client, token)
    assert (response.status, await response.read()) == (204, b"")
    assert not await is_signed_in(client, account)


def other_versions(current: str) -> dict[str, tuple[str, int, str]]:
    number = int(current.strip('"'))
    stale = {
        "version before": f'"{number - 1}"',
        "version after": f'"{number + 1}"',
        "weak": f"W/{current}",
        "list without it": f'"{number + 1}", W/{current}, "x"',
        "zero before": f'"0{number}"',
        "space within": f'"{number}x"',
        "empty": '""',
        "huge": f'"{"9" * 300}"',
        "other digits": '"\u0661"',
        "star in quotes": '"*"',
        "SQL": "\"1'or'1'='1\"",
    }
    malformed = {
        "no quotes": str(number),
        "single quotes": f"'{number}'",
        "no end": f'"{number}',
        "star in a list": f"{current}, *",
        "two stars": "**",
        "true": "true",
        "quotes within": f'"{current}"',
    }
    return {
        **{name: (text, 412, "precondition_failed") for name, text in stale.items()},
        **{name: (text, 400, "invalid_etag") for name, text in malformed.items()},
    }


async def test_stale_and_malformed_versions_change_nothing(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    """On each route with If-Match. With the current version, the change is made."""
    client = await start_app()
    requests = Requests(client, settings.data_dir)
    wrong: list[str] = []
    count = 0
    for operation in operations_of(await read_description(client)):
        if not any(parameter["name"] == "If-Match" for parameter in operation.parameters):
            continue
        own = await requests.prepare(operation)
        path = own.request.path
        for ending in ("/reasoning", "/deletion", "/suspend", "/reinstate", "/password-reset"):
            path = path.removesuffix(ending)
        if operation.id in ("admin_end_sessions", "admin_remove_factors", "admin_remove_factor"):
            path = f"/api/v1/users/{own.ids['user_id']}"
        read = await client.get(path, headers=own.request.headers)
        current = read.headers["ETag"]
        if not current.strip('"').isdecimal():
            wrong.append(f"{operation.id}: {current}")
            continue
        before = await read.read()
        for name, (text, status, code) in other_versions(current).items():
            count += 1
            response = await own.request.with_headers(If_Match=text).send(client)
            problem = await response.json() if response.status >= 400 else {}
            if (response.status, problem.get("code")) != (status, code):
                wrong.append(f"{operation.id}, {name}: {response.status} {problem}")
        after = await (await client.get(path, headers=own.request.headers)).read()
        if after != before:
            wrong.append(f"{operation.id}: a refused request has changed something")
        response = await own.request.with_headers(If_Match=current).send(client)
        if response.status >= 300:
            wrong.append(f"{operation.id} refuses the current version: {await response.text()}")
    report(wrong, count, 300)


@pytest.fixture
async def account(client: Client) -> Account:
    return await register(client)


async def test_idempotency_key_is_bound_to_its_request(client: Client, account: Account) -> None:
    """To the caller, the path and the body. The twin is the same request with a key of its own."""
    worlds, body = "/api/v1/worlds", {"name": "Orrery"}
    first = Request("POST", worlds, "", {**account.headers, "Idempotency-Key": "key-1"}, body)
    created = await (await first.send(client)).json()
    event = {"t": 1, "type": "minor", "summary": "A bell."}
    others = {
        "another name": first._replace(body={"name": "Orrery "}),
        "another letter": first._replace(body={"name": "orrery"}),
        "one more field": first._replace(body={**body, "tone": "dark"}),
        "other spaces": first._replace(body=b'{"name":"Orrery"}'),
        "escaped letter": first._replace(body=b'{"name": "\\u004frrery"}'),
        "another path": first._replace(path=f"{worlds}/{created['id']}/events", body=event),
        "import": first._replace(
            path=f"{worlds}/import", body={"version": "1.0", "world": {"name": "Orrery"}}
        ),
        "duplicate": first._replace(path=f"{worlds}/{created['id']}/duplicate"),
        "password": first._replace(
            path="/api/v1/users/me/password",
            body={"current_password": PASSWORD, "password": NEW_PASSWORD},
        ),
    }
    attacks = [
        Attack(
            name,
            request,
            request.with_headers(Idempotency_Key=f"of {name}".replace(" ", "-")),
            422,
            "idempotency_key_reused",
        )
        for name, request in others.items()
    ]
    await carry_out(client, attacks, at_least=9)
    again = await first.send(client)
    assert (again.status, (await again.json())["id"]) == (201, created["id"])


async def test_similar_idempotency_keys_are_other_keys(client: Client, account: Account) -> None:
    other = await register(client)
    first = Request(
        "POST", "/api/v1/worlds", "", {**account.headers, "Idempotency-Key": "Key"}, {"name": "x"}
    )
    ids = {(await (await first.send(client)).json())["id"]}
    keys = ["key", "KEY", "Key.", "Key%20", '"Key"', "Ke", "Key,Key", "Key'--", "%4Bey"]
    for key in keys:
        ids.add((await (await first.with_headers(Idempotency_Key=key).send(client)).json())["id"])
    theirs = await first.with_headers(**other.headers).send(client)
    ids.add((await theirs.json())["id"])
    assert len(ids) == len(keys) + 2
    # The client leaves out spaces around a header's value, and so does HTTP.
    assert (await (await first.send(client)).json())["id"] in ids
