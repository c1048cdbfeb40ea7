"""What belongs to another account, and what no request may set: refused, and nothing changes."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from yarl import URL

from service.settings import Settings
from tests.support.attacks import report
from tests.support.bad_input import walk
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, register
from tests.support.factors import add_totp
from tests.support.operations import (
    Operation,
    Prepared,
    Request,
    Requests,
    operations_of,
    read_description,
)
from tests.support.state import everything
from tests.support.worlds import NO_ONE, create_world, ids_of_each


@pytest.fixture
async def requests(start_app: StartApp, settings: Settings) -> Requests:
    return Requests(await start_app(), settings.data_dir)


async def prepared(requests: Requests, kind: str) -> AsyncIterator[tuple[Operation, Prepared]]:
    """Yield each operation that has ids in its path, or a body, with a valid request."""
    for operation in operations_of(await read_description(requests.client)):
        if operation.fields if kind == "body" else operation.named("path"):
            yield operation, await requests.prepare(operation)


class Stranger(NamedTuple):
    """Another account, with the ids of what belongs to it."""

    account: Account
    ids: dict[str, str]


async def create_stranger(client: Client) -> Stranger:
    account = await register(client)
    sessions = await client.get("/api/v1/users/me/sessions", headers=account.headers)
    ids = {
        **await ids_of_each(client, account),
        "user_id": account.profile["id"],
        "session_id": (await sessions.json())["items"][0]["id"],
        "factor_id": (await add_totp(client, account.headers)).factor_id,
    }
    return Stranger(account, ids)


def reaching_out(operation: Operation, own: Prepared, theirs: Stranger) -> dict[str, Request]:
    """Return requests for what belongs to the other account, by name."""
    names = [parameter["name"] for parameter in operation.named("path")]
    # Administrators may read and change any account, so the caller is one who may not.
    request = own.request
    if "user_id" in names:
        request = request.with_headers(**own.owner.headers)
    of_theirs = operation.path.format(**theirs.ids)
    found = {
        "all ids": request._replace(path=of_theirs),
        "ids in capitals": request._replace(
            path=operation.path.format(**{name: theirs.ids[name].upper() for name in names})
        ),
        "slash at the end": request._replace(path=f"{of_theirs}/"),
    }
    if len(names) > 1:
        for name in names:
            path = operation.path.format(**{**own.ids, name: theirs.ids[name]})
            found[f"{name} alone"] = own.request._replace(path=path)
    return found


@pytest.mark.asvs("8.2.2")
async def test_ids_of_another_account_are_not_found(requests: Requests, conn: Any) -> None:
    """Nor those of its rows in a path of one's own. The twin is the request for one's own."""
    client = requests.client
    theirs = await create_stranger(client)
    wrong: list[str] = []
    count = 0
    async for operation, own in prepared(requests, "path"):
        before = await everything(conn)
        for name, request in reaching_out(operation, own, theirs).items():
            count += 1
            response = await request.send(client)
            text = await response.text()
            if response.status != 404 or "not_found" not in text:
                wrong.append(f"{operation.id}, {name}: {response.status} {text}")
        if await everything(conn) != before:
            wrong.append(f"{operation.id} has changed something")
        response = await own.request.send(client)
        if response.status >= 300:
            wrong.append(f"{operation.id} refuses its owner: {await response.text()}")
    report(wrong, count, 150)


@pytest.mark.asvs("8.2.2")
async def test_ids_of_another_account_are_refused_in_bodies(requests: Requests, conn: Any) -> None:
    client = requests.client
    theirs = await create_stranger(client)
    others: dict[str, list[Any]] = {
        "world_event_id": [theirs.ids["event_id"], theirs.ids["event_id"].upper()],
        "caused_by_ids": [[theirs.ids["event_id"]], [theirs.ids["cause_id"].upper()]],
        "beat_ids": [[theirs.ids["beat_id"]], [theirs.ids["beat_id"].upper()]],
    }
    wrong: list[str] = []
    count = 0
    async for operation, own in prepared(requests, "body"):
        before = await everything(conn)
        for name in others.keys() & own.request.body.keys():
            mixed = (
                [*own.request.body[name], *others[name][0]] if name != "world_event_id" else NO_ONE
            )
            for value in (*others[name], mixed):
                count += 1
                body = {**own.request.body, name: value}
                response = await own.request._replace(body=body).send(client)
                if response.status != (400 if name == "beat_ids" else 422):
                    wrong.append(f"{operation.id}, {name}: {response.status}")
        if await everything(conn) != before:
            wrong.append(f"{operation.id} has changed something")
        if others.keys() & own.request.body.keys():
            response = await own.request.send(client)
            if response.status >= 300:
                wrong.append(f"{operation.id} refuses its owner: {await response.text()}")
    report(wrong, count, 18)


# Names that other services have for what makes a caller mightier.
MIGHTY = {
    "is_admin": True,
    "isAdmin": True,
    "admin": True,
    "is_superuser": True,
    "roles": ["admin"],
    "permissions": ["*"],
    "scope": "admin",
    "user_id": NO_ONE,
    "owner_id": NO_ONE,
    "_method": "DELETE",
    "__proto__": {"role": "admin"},
    "constructor": {"prototype": {"role": "admin"}},
    "$where": "1",
    "*": 1,
}
# Values that the columns and members of responses could be set to.
PLAUSIBLE = {
    "role": "admin",
    "email_verified": True,
    "status": "active",
    "password_hash": "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
    "version": 99,
}


def unsettable(operation: Operation, columns: list[str]) -> dict[str, Any]:
    """Return the members that the operation does not take, each with a value."""
    assert operation.fields is not None
    taken = set(operation.fields["properties"])
    if operation.id.startswith(("users_", "sessions_", "recovery_")):
        # Even if the description should say so, owners do not set these.
        taken -= PLAUSIBLE.keys()
    shown = {path[0] for path, *_ in walk(operation.success, _empty(operation.success), ()) if path}
    names = [*shown, *columns, *(name.upper() for name in taken)]
    values = {name: PLAUSIBLE.get(name, NO_ONE) for name in names}
    return {name: value for name, value in {**values, **MIGHTY}.items() if name not in taken}


def _empty(schema: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(schema.get("properties", ()))


@pytest.mark.asvs("8.2.3")
async def test_what_nobody_may_set_is_refused(requests: Requests, conn: Any) -> None:
    """Members of responses, columns, and other spellings of fields, one at a time."""
    columns = [
        row["column_name"]
        for row in await conn.fetch(
            "select distinct column_name from information_schema.columns"
            " where table_schema = current_schema() and table_name in ('users', 'factors')"
            " order by 1"
        )
    ]
    wrong: list[str] = []
    count = 0
    async for operation, own in prepared(requests, "body"):
        before = await everything(conn)
        for name, value in unsettable(operation, columns).items():
            count += 1
            body = {**own.request.body, name: value}
            response = await own.request._replace(body=body).send(requests.client)
            problem = await response.json() if response.status >= 400 else {}
            pointers = [error["pointer"] for error in problem.get("errors", ())]
            if (response.status, pointers) != (422, [f"#/{name}"]):
                wrong.append(f"{operation.id}, {name}: {response.status} {pointers}")
        if await everything(conn) != before:
            wrong.append(f"{operation.id} has changed something")
        response = await own.request.send(requests.client)
        if response.status >= 300:
            wrong.append(f"{operation.id} refuses {own.request.body}: {await response.text()}")
    report(wrong, count, 1000)


async def test_settings_give_no_rights(client: Client) -> None:
    account = await register(client)
    settings = {**MIGHTY, **PLAUSIBLE, "role": "admin"}
    headers = account.headers
    response = await client.patch("/api/v1/users/me", headers=headers, json={"settings": settings})
    assert (await response.json())["role"] == "user"
    assert (await client.get("/api/v1/users", headers=headers)).status == 403


class List(NamedTuple):
    """A list of which there is more than one row, with the caller who may read it."""

    path: str
    headers: dict[str, str]


async def lists_of(client: Client, requests: Requests) -> dict[str, List]:
    """Create two rows or more for each list that has a cursor; return the lists by path."""
    account = await register(client)
    world = await create_world(client, account)
    await create_world(client, account)
    event, other = await world.add_event(), await world.add_event()
    stories = [await world.add_story() for _ in range(3)]
    for story in stories:
        for at in (event, other, event):
            await world.add_beat(story, world_event_id=at["id"])
    for _ in range(2):
        archived = await world.add_story()
        await world.delete(f"/api/v1/stories/{archived['id']}")
    body = {"email": account.profile["email"], "password": account.password}
    assert (await client.post("/api/v1/auth/login", json=body)).status == 200
    ids = {
        "world_id": world.body["id"],
        "event_id": event["id"],
        "story_id": stories[0]["id"],
        "user_id": account.profile["id"],
    }
    found = {}
    for operation in operations_of(await read_description(client)):
        if any(parameter["name"] == "cursor" for parameter in operation.parameters):
            headers = (await requests.prepare(operation)).request.headers
            own = "/users" not in operation.path or "/me/" in operation.path
            own = own and not operation.path.endswith("/audit-events")
            headers = account.headers if own else dict(headers)
            found[operation.id] = List(operation.path.format(**ids), headers)
    return found


async def cursor_of(client: Client, each: List) -> str:
    """Return the cursor of the second page."""
    response = await client.get(each.path, params={"limit": "1"}, headers=each.headers)
    return URL(response.links["next"]["url"]).query["cursor"]


def forged(cursor: str) -> dict[str, tuple[str, int, str]]:
    """Return other texts than a cursor, with the refusal of each."""
    middle = len(cursor) // 2
    invalid = {
        "first character cut": cursor[1:],
        "last four characters cut": cursor[:-4],
        "a flipped bit": cursor[:middle]
        + ("A" if cursor[middle] != "A" else "B")
        + cursor[middle + 1 :],
        "another first character": ("A" if cursor[0] != "A" else "B") + cursor[1:],
        "swapped case": cursor.swapcase(),
        "turned round": cursor[::-1],
        "twice": cursor + cursor,
        "space": f"{cursor} ",
        "without its seal": cursor[24:],
        "seal of zeros": "A" * 20 + cursor[20:],
        "JSON": '["",["x"]]',
        "offset": "1",
        "SQL": "' or 1=1 --",
        "longest": "A" * 4000,
        "other letters": "é" * 10,
        "a token": "eyJhbGciOiJub25lIn0.e30.",
        "null": "null",
    }
    return {
        **{name: (text, 400, "invalid_cursor") for name, text in invalid.items()},
        "empty": ("", 422, "invalid_fields"),
        "huge": ("A" * 4001, 422, "invalid_fields"),
        "NUL": ("\0", 422, "invalid_fields"),
    }


@pytest.mark.asvs("8.2.2")
async def test_forged_cursors_are_refused(requests: Requests) -> None:
    """On each list. So are those of another list. The list's own is accepted after each."""
    client = requests.client
    lists = await lists_of(client, requests)
    cursors = {name: await cursor_of(client, each) for name, each in lists.items()}
    wrong: list[str] = []
    count = 0
    for name, each in lists.items():
        faulty = forged(cursors[name])
        for other, cursor in cursors.items():
            if other != name:
                faulty[f"of {other}"] = cursor, 400, "cursor_mismatch"
        for fault, (text, *expected) in faulty.items():
            count += 1
            params = {"limit": "1", "cursor": text}
            response = await client.get(each.path, params=params, headers=each.headers)
            code = (await response.json()).get("code") if response.status >= 400 else ""
            if [response.status, code] != expected:
                wrong.append(f"{name}, {fault}: {response.status} {code}")
            params = {"limit": "1", "cursor": cursors[name]}
            if (await client.get(each.path, params=params, headers=each.headers)).status != 200:
                wrong.append(f"{name}, {fault}: its own cursor is refused")
    report(wrong, count, 300)


async def test_cursor_of_another_account_shows_only_ones_own(client: Client) -> None:
    """A cursor is a place in an order, and no right to read."""
    account, other = await register(client), await register(client)
    for each in (account, other):
        for _ in range(3):
            await create_world(client, each)
    worlds = "/api/v1/worlds"
    cursor = await cursor_of(client, List(worlds, account.headers))
    response = await client.get(worlds, params={"cursor": cursor}, headers=other.headers)
    owners = {world["user_id"] for world in await response.json()}
    assert owners <= {other.profile["id"]}
