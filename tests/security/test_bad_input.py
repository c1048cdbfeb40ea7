"""Invalid input to every operation of the description: refused, with a pointer to it.

Cases are made from ``/openapi.json``, so those of a new route are here by themselves. They run
against one application, and a failure lists all that are wrong.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from aiohttp import ClientResponse

from service.settings import Settings
from tests.support.bad_input import (
    IMPORT,
    Case,
    Expected,
    Text,
    cases_of,
    good_values,
    optional_fields,
    texts_of,
    without,
)
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, register
from tests.support.factors import FACTORS, PASSKEYS, app_of, confirm
from tests.support.operations import (
    Operation,
    Prepared,
    Request,
    Requests,
    Way,
    operations_of,
    read_description,
    ways_of,
)
from tests.support.probes import make_patient
from tests.support.state import everything
from tests.support.steps import sign_in

Choose = Callable[[list[Any]], Iterable[Any]]
# Members of responses, by the field of the request.
SHOWN_AS = {"reason": "suspension_reason"}
# The same request is accepted only once, or a few times. So is one with an email.
ONCE = {"users_start_totp", "users_add_passkey"}
SHOWN = 40


def some(cases: list[Any]) -> list[Any]:
    """Return one in four, chosen by the run's seed."""
    return random.sample(cases, -(-len(cases) // 4))


@pytest.fixture
async def requests(
    start_app: StartApp, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Requests:
    make_patient(monkeypatch)
    client = await start_app(worlds_per_account=1000)
    return Requests(client, settings.data_dir)


async def variants(
    requests: Requests, where: str = ""
) -> AsyncIterator[tuple[Operation, Way, Prepared]]:
    """Yield each operation with a valid request, once for each way to fill its body.

    With ``where``, yield only those that have parameters there, or a body.
    """
    for operation in operations_of(await read_description(requests.client)):
        if where and not (operation.fields if where == "body" else operation.named(where)):
            continue
        for way in ways_of(operation):
            yield operation, way, await requests.prepare(operation, way)


async def received(response: ClientResponse) -> Expected:
    problem = await response.json() if response.status >= 400 else {}
    pointers = frozenset(error["pointer"] for error in problem.get("errors", ()))
    return Expected(response.status, problem.get("code", ""), pointers or None)


async def find_fault(client: Client, case: Case) -> str:
    """Send the request of a case. Return what is wrong with the response, or nothing."""
    try:
        found = await received(await case.request.send(client))
    except AssertionError as error:
        return str(error)
    return "" if found == case.expected else f"expected {case.expected}, got {found}"


def whole(operation: Operation, prepared: Prepared) -> Request:
    """Return the request with all headers that the operation takes."""
    named = {parameter["name"] for parameter in operation.named("header")}
    values = {"Idempotency-Key": prepared.owner.profile["id"], "If-Match": "*"}
    return prepared.request.with_headers(**{name: values[name] for name in named & values.keys()})


@pytest.mark.asvs("3.5.1")
@pytest.mark.parametrize(
    ("choose", "at_least"),
    [(some, 1500), pytest.param(list, 7000, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
async def test_invalid_input_is_refused_and_changes_nothing(
    requests: Requests, conn: Any, choose: Choose, at_least: int
) -> None:
    """The same request without the fault is accepted."""
    wrong: list[str] = []
    count = 0
    async for operation, way, prepared in variants(requests):
        before = await everything(conn)
        for case in choose(list(cases_of(operation, prepared.request, way))):
            count += 1
            if fault := await find_fault(requests.client, case):
                wrong.append(f"{operation.id} {case.place}, {case.fault}: {fault}")
        if await everything(conn) != before:
            wrong.append(f"{operation.id}: a refused request has changed something")
        response = await whole(operation, prepared).send(requests.client)
        if response.status >= 300:
            wrong.append(f"{operation.id} refuses {prepared.request}: {await response.text()}")
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:SHOWN]])
    assert count >= at_least


@pytest.mark.parametrize(
    ("choose", "at_least"),
    [(some, 50), pytest.param(list, 180, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
async def test_optional_fields_can_be_left_out(
    requests: Requests, choose: Choose, at_least: int
) -> None:
    """A rule may ask for one of several. But what a handler cannot do without is required."""
    wrong: list[str] = []
    count = 0
    async for operation, way, prepared in variants(requests, "body"):
        request = prepared.request
        for path in choose(list(optional_fields(operation, request))):
            count += 1
            changed = request._replace(body=without(request.body, path))
            response = await changed.send(requests.client)
            if response.status >= 500:
                wrong.append(f"{operation.id} without {path}: {await response.text()}")
            if response.status < 300:
                request = (await requests.prepare(operation, way)).request
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:SHOWN]])
    assert count >= at_least


async def find_change(client: Client, operation: Operation, text: Text) -> str:
    """Send a text, and read it again. Return what is wrong, or nothing."""
    response = await text.request.send(client)
    if response.status >= 300:
        return await response.text()
    shown = await response.json()
    location = response.headers.get("Location")
    if operation.path.startswith((FACTORS, PASSKEYS)):
        found = await find_name(client, operation, text.request, shown)
        return "" if found == text.text else f"stored as {found!r}"
    if operation.id == IMPORT:
        location = f"{location}/export"
    elif (found := place_in(shown.get("user", shown), text.place)) != text.text:
        return f"the response has {found!r}"
    if location or operation.method != "POST":
        path = location or text.request.path.removesuffix("/reasoning")
        again = await client.get(path, headers=text.request.headers)
        found = place_in(await again.json(), text.place)
        return "" if found == text.text else f"stored as {found!r}"
    return ""


async def find_name(
    client: Client, operation: Operation, request: Request, shown: dict[str, Any]
) -> str:
    """Return the name of the factor that the response is about, as the list has it."""
    headers = dict(request.headers)
    if operation.id == "users_start_totp":
        app = app_of(shown)
        assert (await confirm(client, headers, app, app.code())).status == 200
    factors = await (await client.get(FACTORS, headers=headers)).json()
    name: str = next(each["name"] for each in factors["items"] if each["id"] == shown["id"])
    return name


def place_in(document: Any, path: tuple[Any, ...]) -> Any:
    """Return the member of a response that a field of a request ends up in."""
    for part in path:
        document = document[SHOWN_AS.get(part, part)]
    return document


@pytest.mark.parametrize(
    ("choose", "at_least"),
    [(some, 80), pytest.param(list, 300, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
async def test_texts_are_stored_as_sent(requests: Requests, choose: Choose, at_least: int) -> None:
    wrong: list[str] = []
    count = 0
    async for operation, _, prepared in variants(requests, "body"):
        for text in choose(list(texts_of(operation, prepared.request))):
            count += 1
            sent = text
            if operation.id in ONCE or "email" in (prepared.request.body or {}):
                again = await requests.prepare(operation)
                sent = text.put_into(again.request)
            if fault := await find_change(requests.client, operation, sent):
                wrong.append(f"{operation.id} {text.place}, {text.name}: {fault}")
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:SHOWN]])
    assert count >= at_least


async def test_every_listed_value_of_a_parameter_is_accepted(requests: Requests) -> None:
    wrong: list[str] = []
    count = 0
    async for operation, _, prepared in variants(requests, "query"):
        for parameter in operation.named("query") if operation.method == "GET" else ():
            for value in good_values(parameter["schema"]):
                count += 1
                pairs = {**dict(parse_qsl(prepared.request.query)), parameter["name"]: value}
                request = prepared.request._replace(query=urlencode(pairs))
                response = await request.send(requests.client)
                expected = 400 if parameter["name"] == "cursor" else 200
                if response.status != expected:
                    wrong.append(f"{operation.id} {request.query}: {await response.text()}")
    assert not wrong, "\n".join(wrong[:SHOWN])
    assert count >= 60


# As sent, and otherwise: what a service may have made of it.
PASSWORDS = {
    "spaces before": (f"   {PASSWORD}", PASSWORD),
    "spaces after": (f"{PASSWORD}   ", PASSWORD),
    "two spaces between": (PASSWORD.replace(" ", "  "), PASSWORD),
    "line break": (f"{PASSWORD}\n", PASSWORD),
    "emoji": (f"👩\u200d🚀 {PASSWORD}", f"👩🚀 {PASSWORD}"),
    "skin tone": (f"👍🏽 {PASSWORD}", f"👍 {PASSWORD}"),
    "combining characters": (f"{PASSWORD} e\u0301", f"{PASSWORD} e"),
    "right to left": (f"سيدة שלום {PASSWORD}", PASSWORD),
    "bidi control": (f"\u202e{PASSWORD}", PASSWORD),
    "zero-width space": (f"{PASSWORD}\u200b", PASSWORD),
    "control character": (f"{PASSWORD}\x01", PASSWORD),
    "capitals": (PASSWORD.upper(), PASSWORD),
    "percent sign": (f"{PASSWORD} %41", f"{PASSWORD} A"),
    "plus sign": (PASSWORD.replace(" ", "+"), PASSWORD),
    "entity": (f"{PASSWORD} &amp;", f"{PASSWORD} &"),
    "backslash": (f"{PASSWORD} \\u0041", f"{PASSWORD} A"),
    "256 characters": ((PASSWORD * 20)[:255] + "x", (PASSWORD * 20)[:255]),
    "beyond 72 bytes": (PASSWORD * 3 + "x", PASSWORD * 3 + "y"),
}


async def test_password_is_taken_exactly_as_sent(client: Client) -> None:
    """Neither trimmed, cut, decoded nor folded."""
    wrong = []
    for name, (password, other) in PASSWORDS.items():
        account = await register(client, password=password)
        exactly = (await sign_in(client, account, password)).status
        otherwise = (await sign_in(client, account, other)).status
        if (exactly, otherwise) != (200, 401):
            wrong.append(f"{name}: {exactly} as sent, {otherwise} otherwise")
    assert not wrong, "\n".join(wrong)
