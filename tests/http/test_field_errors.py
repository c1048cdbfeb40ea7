"""Errors of fields: their codes, how many are listed, and how large a body may unfold."""

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from marshmallow import Schema

import service
from service.admin.schemas import FoldedEmail
from service.http.descriptions import description_of
from service.http.field_errors import CODES, field_errors
from service.http.fields import UuidText
from service.routes import ROUTES
from tests.support.clients import Client
from tests.support.factories import PASSWORD, assert_problem, register, register_as
from tests.support.worlds import create_world

REGISTER = "/api/v1/auth/register"
ME = "/api/v1/users/me"
USERS = "/api/v1/users"
WORLDS_IMPORT = "/api/v1/worlds/import"
OTHER = "01890000-0000-7000-8000-000000000001"
NO_ONE = "01890000-0000-7000-8000-000000000000"
AUDIT = "/api/v1/audit-events"
EMAIL = "ada.lovelace@example.com"
GOOD = "weaves algebraic patterns"


def new(**changed: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", REGISTER, {"email": EMAIL, "password": GOOD, **changed}


def mine(**settings: Any) -> tuple[str, str, dict[str, Any]]:
    return "PATCH", ME, {"settings": settings}


def event(**changed: Any) -> tuple[str, str, dict[str, Any]]:
    values = {"t": 1, "type": "minor", "summary": "A bell.", **changed}
    return "POST", "/api/v1/worlds/{world_id}/events", values


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else []


def document(**event: Any) -> dict[str, Any]:
    """Return a world to import, with one event."""
    event = {"id": NO_ONE, "t": 1, "type": "major", "summary": "Dawn", **event}
    return {"version": "1.0", "world": {"name": "Orrery"}, "world_events": [event]}


PRODUCES: list[tuple[str, tuple[str, str, Any]]] = [
    ("invalid_characters", new(name="nul\0")),
    ("invalid_characters", new(name="\ud800")),
    ("invalid_characters", new(name="two\nlines")),
    ("invalid_characters", mine(**{"nul\0": 1})),
    ("invalid_choice", mine(ui_theme="pink")),
    ("invalid_choice", ("POST", USERS, {"email": EMAIL, "role": "king"})),
    ("invalid_email", new(email="ada")),
    ("invalid_language", mine(language="in english")),
    ("invalid_number", mine(size=2**53 + 1)),
    ("invalid_number", mine(size=1e300)),
    ("invalid_text", mine(llm_provider="x" * 201)),
    ("invalid_time", ("POST", f"{USERS}/{{id}}/suspend", {"reason": "spam", "until": "today"})),
    ("invalid_type", new(name=5)),
    ("invalid_type", ("PATCH", ME, {"settings": []})),
    ("invalid_type", ("PATCH", ME, [])),
    ("invalid_url", mine(llm_base_url="ftp://example.com")),
    (
        "not_in_future",
        ("POST", f"{USERS}/{{id}}/suspend", {"reason": "x", "until": "2020-01-01T00:00:00Z"}),
    ),
    ("not_found", event(caused_by_ids=["01890000-0000-7000-8000-000000000000"])),
    ("null", new(email=None)),
    ("required", ("POST", REGISTER, {"email": EMAIL})),
    ("too_common", new(password="password123password123")),
    ("too_deep", mine(deep=nested(33))),
    ("too_large", mine(large="x" * 20_000)),
    ("too_long", new(password="x" * 257)),
    ("too_long", new(password="\ufdfa" * 15)),
    ("too_long", new(email="a" * 250 + "@example.com")),
    ("too_many", event(tags=["x"] * 21)),
    ("too_personal", new(password="adalovelace-lovelace-x")),
    ("too_short", new(password="vX9!mQ2#pL")),
    ("too_short", new(password="")),
    ("too_short", new(password="\ufdfa")),
    ("unknown_field", new(surprise=1)),
    (
        "exclusive",
        (
            "POST",
            "/api/v1/auth/email/verify",
            {"token": "x" * 43, "password": PASSWORD, "new_password": PASSWORD},
        ),
    ),
    ("not_found", ("POST", WORLDS_IMPORT, document(caused_by_ids=[OTHER]))),
    ("too_many", ("POST", WORLDS_IMPORT, document(tags=["x"] * 21))),
    ("duplicate", ("GET", f"{USERS}?limit=1&limit=2", None)),
    ("invalid_choice", ("GET", f"{USERS}?status=dead", None)),
    ("invalid_json", ("GET", f"{USERS}?settings=x", None)),
    ("invalid_number", ("GET", f"{USERS}?limit=many", None)),
    ("invalid_time", ("GET", f"{USERS}?created_after=today", None)),
    ("invalid_type", ("GET", f"{USERS}?settings=1", None)),
    ("invalid_uuid", ("GET", f"{AUDIT}?subject_id=1", None)),
    ("unknown_field", ("GET", f"{USERS}?surprise=1", None)),
    ("unsearchable", ("GET", f"{USERS}?q=---", None)),
]


async def test_each_error_of_a_field_has_its_code(client: Client) -> None:
    account = await register_as(client, "admin")
    world = await create_world(client, account)
    for code, (method, path, body) in PRODUCES:
        url = path.format(id=account.profile["id"], world_id=world.body["id"])
        response = await client.request(method, url, headers=account.headers, json=body)
        problem = await response.json(content_type=None)
        assert [error["code"] for error in problem.get("errors", ())] == [code], (path, problem)


def test_each_code_is_produced() -> None:
    assert {code for code, _ in PRODUCES} == CODES.keys()


def test_each_error_that_we_raise_is_declared_with_a_code() -> None:
    """A text given to ValidationError directly would have none."""
    bare = [
        f"{path.name}:{node.lineno}"
        for path in Path(service.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "ValidationError"
        and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
    ]
    assert bare == []


VALUES = ["", "x", "x" * 10_000, "\0", "\ud800", 0, 1.5, True, None, [], {}, ["x"], {"x": None}]


@pytest.mark.parametrize(
    "schema",
    {
        type(schema): schema
        for route in ROUTES
        for schema in (description_of(route.handler).body, description_of(route.handler).query)
        if schema is not None and not description_of(route.handler).streams_body
    }.values(),
    ids=lambda schema: type(schema).__name__,
)
def test_each_field_answers_every_wrong_value_with_a_code(schema: Schema) -> None:
    """Queries hold text only. A streamed body is never loaded as a whole."""
    texts_only = any(isinstance(field, FoldedEmail | UuidText) for field in schema.fields.values())
    for value in VALUES:
        if isinstance(value, str) or not (texts_only or {"cursor", "q"} & schema.fields.keys()):
            for name in [*schema.fields, "surprise"]:
                for message in schema.validate({name: value}).values():
                    found = field_errors_of(message)
                    assert found <= CODES.keys()


def field_errors_of(messages: Any) -> set[str]:
    from marshmallow import ValidationError

    return {error.code for error in field_errors(ValidationError(messages), "#").errors}


async def send_gzip(client: Client, headers: dict[str, str], body: bytes) -> ClientResponse:
    sent = {**headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    return await client.patch(ME, headers=sent, data=gzip.compress(body))


async def test_a_problem_lists_at_most_twenty_errors_and_says_so(client: Client) -> None:
    account = await register(client)
    body = {f"field{number}": 1 for number in range(30)}
    response = await client.patch(ME, headers=account.headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert len(problem["errors"]) == 20
    assert problem["detail"].endswith("These are the first 20.")


async def test_twenty_errors_are_all_of_them(client: Client) -> None:
    account = await register(client)
    body = {f"field{number}": 1 for number in range(20)}
    response = await client.patch(ME, headers=account.headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert problem["detail"] == "Some fields are missing or invalid."


async def test_many_faulty_settings_are_listed_up_to_twenty(client: Client) -> None:
    account = await register(client)
    body = {"settings": {"list": ["\0"] * 1000}}
    response = await client.patch(ME, headers=account.headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert len(problem["errors"]) == 20


async def test_a_known_field_is_checked_however_many_unknown_ones_precede_it(
    client: Client,
) -> None:
    account = await register(client)
    body = {**{f"field{number}": 1 for number in range(15)}, "name": 5, "settings": []}
    response = await client.patch(ME, headers=account.headers, json=body)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert {"#/name", "#/settings"} <= {error["pointer"] for error in problem["errors"]}


async def test_a_small_compressed_body_gets_a_small_response(client: Client) -> None:
    account = await register(client)
    members = ",".join(f'"{number:05}":1' for number in range(6500)).encode()
    response = await send_gzip(client, account.headers, b"{" + members + b"}")
    assert len(await response.read()) < 4096
    await assert_problem(response, 413, "content_too_large")


async def test_a_long_name_is_repeated_in_part(client: Client) -> None:
    account = await register(client)
    response = await client.patch(ME, headers=account.headers, json={"x" * 50_000: 1})
    assert len(await response.read()) < 1024
    await assert_problem(response, 422, "invalid_fields")


@pytest.mark.parametrize("body", [b'{"name":"' + b"x" * 60_000 + b'"}', b" " * 60_000 + b"{}"])
async def test_a_body_compressed_beyond_any_use_is_rejected(client: Client, body: bytes) -> None:
    account = await register(client)
    assert len(gzip.compress(body)) < 200
    response = await send_gzip(client, account.headers, body)
    await assert_problem(response, 413, "content_too_large")


async def test_a_well_compressed_body_is_accepted(client: Client) -> None:
    account = await register(client)
    notes = {f"note{number}": "the same text " * 10 for number in range(90)}
    body = json.dumps({"settings": notes}).encode()
    response = await send_gzip(client, account.headers, body)
    assert response.status == 200


@pytest.mark.parametrize(("count", "status"), [(1990, 200), (2001, 413)])
async def test_the_number_of_values_in_a_body_is_limited(
    client: Client, count: int, status: int
) -> None:
    account = await register(client)
    response = await client.patch(
        ME, headers=account.headers, json={"settings": {"list": [1] * count}}
    )
    assert response.status == status


@pytest.mark.parametrize(("count", "status"), [(780, 200), (911, 413)])
async def test_the_number_of_numbers_with_many_digits_is_limited(
    client: Client, count: int, status: int
) -> None:
    account = await register(client)
    body = {"settings": {"list": [0.12345678901234568] * count}}
    response = await client.patch(ME, headers=account.headers, json=body)
    assert response.status == status


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("0.12345678901234568", 200),
        ("0.12345678901234567", 422),
        ("0.123456789012345680000", 200),
        ("0.00001234567890123456", 200),
        ("0.000012345678901234567", 422),
        ("1.234567890123456E-7", 200),
        ("1.23456789012345678e-7", 422),
        ("1.5e-14", 200),
        ("0.00000000000000000", 200),
        ("0e99", 200),
        ("0.1e-400", 422),
    ],
)
async def test_numbers_that_a_float_would_change_are_rejected(
    client: Client, number: str, status: int
) -> None:
    account = await register(client)
    headers = {**account.headers, "Content-Type": "application/json"}
    body = f'{{"settings": {{"size": {number}}}}}'
    response = await client.patch(ME, headers=headers, data=body)
    assert response.status == status


async def test_commas_and_brackets_in_texts_are_not_counted_as_values(client: Client) -> None:
    account = await register(client)
    text = ',[{"\\' * 2000
    response = await client.patch(ME, headers=account.headers, json={"settings": {"text": text}})
    assert (await response.json())["settings"]["text"] == text


@pytest.mark.parametrize("number", ["9" * 401, "-" + "9" * 4000, "0." + "1" * 4000])
async def test_absurdly_long_numbers_are_rejected(client: Client, number: str) -> None:
    account = await register(client)
    headers = {**account.headers, "Content-Type": "application/json"}
    body = f'{{"settings": {{"size": {number}}}}}'
    response = await client.patch(ME, headers=headers, data=body)
    await assert_problem(response, 400, "malformed_json")


async def test_deep_nesting_is_rejected_before_it_is_parsed(client: Client) -> None:
    account = await register(client)
    headers = {**account.headers, "Content-Type": "application/json"}
    body = '{"settings":{"x":' + "[" * 100 + "]" * 100 + "}}"
    response = await client.patch(ME, headers=headers, data=body)
    await assert_problem(response, 400, "malformed_json")
