"""The OpenAPI document is complete, well-formed and accurate."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
from marshmallow import Schema
from multidict import CIMultiDict
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.app import create_app
from service.http.descriptions import description_of
from service.http.fields import NUMBER_LIMITS
from service.openapi.document import document
from service.routes import ROUTES
from service.settings import Settings
from tests.support.any_json import LEAST, MOST
from tests.support.clients import Client
from tests.support.described import (
    DESCRIBED,
    Response,
    checks_of,
    compile_schema,
    document_of_defaults,
    find_faults,
    find_invalid,
)
from tests.support.factories import PASSWORD, register
from tests.support.schemas import row_schemas
from tools.errors import problems


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document_of_defaults()["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.mark.asvs("6.3.4")
def test_document_describes_exactly_the_routes() -> None:
    assert [name for name, _ in operations()] == [f"{r.method} {r.path}" for r in ROUTES]


def test_document_starts_with_openapi_info_and_servers() -> None:
    assert list(document_of_defaults())[:3] == ["openapi", "info", "servers"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_document_is_valid_openapi() -> None:
    errors = list(OpenAPIV31SpecValidator(document_of_defaults()).iter_errors())
    assert not errors, errors


def test_every_operation_has_a_unique_id_and_a_summary() -> None:
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(set(ids)) == len(ids)
    for name, operation in operations():
        assert operation["summary"].endswith("."), name
        assert operation["tags"], name


def test_protected_operations_declare_their_security() -> None:
    for route, (_, operation) in zip(ROUTES, operations(), strict=True):
        public = route.access.__name__ == "anyone"
        optional = route.access.__name__ == "optionally_signed_in"
        ways: list[dict[str, list[str]]] = [{}, {"access_token": []}]
        assert operation["security"] == ([] if public else ways if optional else ways[1:])
        assert ("401" in operation["responses"]) or public


def test_every_declared_problem_is_described() -> None:
    declared = {(kind.status, kind.code) for kind in problems()}
    described = {
        (int(name.removeprefix("Problem")[:3]), code)
        for name, response in document_of_defaults()["components"]["responses"].items()
        for code in response["content"]["application/problem+json"]["examples"]
    }
    # Any path may return these, so the document describes them once in its introduction.
    assert declared - described == {
        (403, "origin_not_allowed"),
        (405, "method_not_allowed"),
        (414, "target_too_long"),
        (417, "expectation_failed"),
        (431, "headers_too_large"),
        (500, "internal_error"),
        (501, "method_not_implemented"),
        (501, "transfer_coding_not_implemented"),
        (505, "http_version_not_supported"),
    }
    assert described <= declared


def test_request_examples_are_valid() -> None:
    for route in ROUTES:
        described = description_of(route.handler)
        assert (described.body is None) == (described.example is None), route
        if described.body is not None:
            described.body.load(dict(described.example or {}))
            reference = f"#/components/schemas/{schema_name(described.body)}"
            assert not find_invalid({"$ref": reference}, described.example)


def schema_name(schema: Schema) -> str:
    return type(schema).__name__.removesuffix("Schema")


def test_response_examples_are_valid() -> None:
    responses = document_of_defaults()["components"]["responses"].values()
    own = (response for _, each in operations() for response in each["responses"].values())
    checked = 0
    for response in itertools.chain(responses, own):
        for content in response.get("content", {}).values():
            examples = [each["value"] for each in content.get("examples", {}).values()]
            for example in [*examples, content.get("example", examples)]:
                if example is not examples:
                    assert not find_invalid(content["schema"], example), example
                    checked += 1
    assert checked > 50


def test_response_schemas_require_all_of_their_fields() -> None:
    shapes = document_of_defaults()["components"]["schemas"]
    dumped = [schema for schema in row_schemas() if schema_name(schema()) in shapes]
    assert len(dumped) > 5
    for schema in dumped:
        shape = shapes[schema_name(schema())]
        assert set(shape["required"]) == set(shape["properties"]) == set(schema().fields)
        assert shape["additionalProperties"] is False


def test_every_component_is_referenced() -> None:
    whole = document_of_defaults()
    text = json.dumps(whole)
    for kind in ("schemas", "responses", "headers"):
        for name in whole["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


def test_routes_that_accept_an_idempotency_key_say_so() -> None:
    described = {
        operation["operationId"]
        for _, operation in operations()
        if any(parameter.get("name") == "Idempotency-Key" for parameter in operation["parameters"])
    }
    assert described == {
        "admin_create_user",
        "admin_reinstate_user",
        "admin_reset_password",
        "admin_suspend_user",
        "recovery_forgot_password",
        "recovery_resend_verification",
        "recovery_reset_password",
        "recovery_verify_email",
        "recovery_revert_email",
        "users_add_passkey",
        "users_change_email",
        "users_change_password",
        "users_confirm_totp",
        "users_make_recovery_codes",
        "users_start_totp",
        "users_register",
        "worlds_clone_story",
        "worlds_create_beat",
        "worlds_create_event",
        "worlds_create_story",
        "worlds_create_world",
        "worlds_duplicate_world",
        "worlds_import_world",
    }


def test_exact_schema_of_settings_has_the_limits_of_the_service() -> None:
    """The document gives them in words only, so the tests and the fuzzer have a schema for it."""
    assert (LEAST, MOST) == NUMBER_LIMITS
    place = {"$ref": "#/components/schemas/Settings"}
    valid: list[object] = [0, 1e-15, -(2**53), "a", [None, {"b": True}]]
    assert not find_invalid(place, {"key": valid})
    invalid: list[object] = [1e-16, 2**54, "\0", ["\0"], {"\0": 1}]
    assert all(find_invalid(place, {"key": value}) for value in invalid)


def test_minimum_password_length_follows_the_setting() -> None:
    schemas = document(ROUTES, Settings(password_min_length=20))["components"]["schemas"]
    assert schemas["Register"]["properties"]["password"]["minLength"] == 20
    assert schemas["Login"]["properties"]["password"]["minLength"] == 1


@pytest.mark.parametrize(("required", "status"), [(False, "201"), (True, "202")])
def test_registration_has_only_the_response_that_the_setting_chooses(
    required: bool, status: str
) -> None:
    """Clients generated from both would have to tell an account from nothing."""
    paths = document(ROUTES, Settings(require_email_verification=required))["paths"]
    responses = paths["/api/v1/auth/register"]["post"]["responses"]
    assert [each for each in responses if each < "400"] == [status]


async def test_document_is_served_with_an_etag(client: Client) -> None:
    response = await client.get("/openapi.json")
    assert await response.json() == document_of_defaults()
    assert response.headers["Cache-Control"] == "public, no-cache"
    tag = response.headers["ETag"]
    for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await client.get("/openapi.json", headers={"If-None-Match": given})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    changed = await client.get("/openapi.json", headers={"If-None-Match": '"other"'})
    assert changed.status == 200
    head = await client.head("/openapi.json")
    assert head.headers["Content-Length"] == response.headers["Content-Length"]


async def test_undescribed_response_fails_the_check(client: Client) -> None:
    """Feed altered responses to the check that every test client runs."""
    account = await register(client)
    path = "/api/v1/users/me"
    response = await client.get(path, headers=account.headers)
    good = Response("GET", path, 200, response.headers, await response.read())
    assert find_faults(good) == []
    body = json.loads(good.body)
    for wrong in (
        good._replace(status=206),
        good._replace(body=json.dumps({**body, "surprise": 1}).encode()),
        good._replace(body=json.dumps({**body, "role": None}).encode()),
        good._replace(body=json.dumps({"id": body["id"]}).encode()),
        good._replace(headers=without(good, "ETag")),
        good._replace(headers=without(good, "X-Request-ID")),
        good._replace(headers=CIMultiDict(without(good, "ETag"), ETag="not quoted")),
        good._replace(headers=CIMultiDict(good.headers, Location="/")),
        good._replace(headers=CIMultiDict({**good.headers, "Content-Type": "text/html"})),
        good._replace(method="POST"),
    ):
        assert find_faults(wrong), wrong
    refused = await client.get(path)
    problem = Response("GET", path, 401, refused.headers, await refused.read())
    assert find_faults(problem) == []
    other = problem.body.replace(b"not_signed_in", b"too_many_requests")
    assert find_faults(problem._replace(body=other))
    assert find_faults(problem._replace(status=403))


async def test_accepted_request_that_the_document_forbids_fails_the_check(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await register(client)
    schema = document_of_defaults()["components"]["schemas"]["ReplaceProfile"]
    path = "/api/v1/users/me"
    await client.put(path, headers=account.headers, json={"name": "Ada L."})
    monkeypatch.setitem(schema["properties"]["name"], "maxLength", 3)
    compile_schema.cache_clear()
    with pytest.raises(AssertionError, match="users_replace_me accepted"):
        await client.put(path, headers=account.headers, json={"name": "Ada L."})
    compile_schema.cache_clear()


async def test_response_of_other_settings_fails_the_check(
    settings: Settings, aiohttp_client: Any
) -> None:
    app = create_app(dataclasses.replace(settings, require_email_verification=True))
    client = await aiohttp_client(app, middlewares=checks_of(settings))
    body = {"email": "ada@example.com", "password": PASSWORD}
    with pytest.raises(AssertionError, match="status 202 is not listed"):
        await client.post("/api/v1/auth/register", json=body)


def test_checks_follow_every_setting_that_the_document_depends_on() -> None:
    read = set()

    class Watched(Settings):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("__"):
                read.add(name)
            return super().__getattribute__(name)

    document(ROUTES, Watched())
    assert read == set(DESCRIBED)


def without(response: Response, name: str) -> CIMultiDict[str]:
    headers = CIMultiDict(response.headers)
    del headers[name]
    return headers
