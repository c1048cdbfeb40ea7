"""The description of the API: whole, well-formed, and true."""

import itertools
import json
import sys
from typing import Any

import pytest
from marshmallow import Schema
from multidict import CIMultiDict
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.http.descriptions import description_of
from service.http.problems import ProblemType
from service.openapi.document import document
from service.routes import ROUTES
from service.settings import Settings
from tests.support.clients import Client
from tests.support.described import (
    Answer,
    compile_schema,
    document_of_defaults,
    find_faults,
    find_invalid,
)
from tests.support.factories import register
from tests.support.schemas import row_schemas


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document_of_defaults()["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.mark.asvs("6.3.4")
def test_every_route_is_described_and_nothing_else() -> None:
    assert [name for name, _ in operations()] == [f"{r.method} {r.path}" for r in ROUTES]


def test_it_begins_with_what_it_is() -> None:
    assert list(document_of_defaults())[:3] == ["openapi", "info", "servers"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_validator_finds_nothing() -> None:
    errors = list(OpenAPIV31SpecValidator(document_of_defaults()).iter_errors())
    assert not errors, errors


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does() -> None:
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(set(ids)) == len(ids)
    for name, operation in operations():
        assert operation["summary"].endswith("."), name
        assert operation["tags"], name


def test_what_asks_for_a_token_says_so() -> None:
    for route, (_, operation) in zip(ROUTES, operations(), strict=True):
        public = route.access.__name__ == "anyone"
        assert operation["security"] == ([] if public else [{"access_token": []}])
        assert ("401" in operation["responses"]) or public


def test_every_problem_that_the_service_declares_is_described() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith("service.")]
    declared = {
        (kind.status, kind.code)
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, ProblemType)
    }
    described = {
        (int(name.split(".")[0]), code)
        for name, response in document_of_defaults()["components"]["responses"].items()
        for code in problem_schema(response)["properties"]["code"]["enum"]
    }
    # Any path may answer these: see the description's introduction.
    assert declared - described == {(405, "method_not_allowed"), (500, "internal_error")}
    assert described <= declared


def problem_schema(response: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = response["content"]["application/problem+json"]["schema"]
    return schema


def test_examples_of_requests_are_taken_by_the_schemas() -> None:
    for route in ROUTES:
        described = description_of(route.handler)
        assert (described.body is None) == (described.example is None), route
        if described.body is not None:
            described.body.load(dict(described.example or {}))
            reference = f"#/components/schemas/{schema_name(described.body)}"
            assert not find_invalid({"$ref": reference}, described.example)


def schema_name(schema: Schema) -> str:
    return type(schema).__name__.removesuffix("Schema")


def test_examples_of_answers_are_valid() -> None:
    responses = document_of_defaults()["components"]["responses"].values()
    own = (answer for _, each in operations() for answer in each["responses"].values())
    checked = 0
    for response in itertools.chain(responses, own):
        for content in response.get("content", {}).values():
            examples = [each["value"] for each in content.get("examples", {}).values()]
            for example in [*examples, content.get("example", examples)]:
                if example is not examples:
                    assert not find_invalid(content["schema"], example), example
                    checked += 1
    assert checked > 50


def test_answers_of_schemas_have_all_of_their_members() -> None:
    shapes = document_of_defaults()["components"]["schemas"]
    dumped = [schema for schema in row_schemas() if schema_name(schema()) in shapes]
    assert len(dumped) > 5
    for schema in dumped:
        shape = shapes[schema_name(schema())]
        assert set(shape["required"]) == set(shape["properties"]) == set(schema().fields)
        assert shape["additionalProperties"] is False


def test_references_lead_somewhere_and_components_are_used() -> None:
    whole = document_of_defaults()
    text = json.dumps(whole)
    for kind in ("schemas", "responses", "headers"):
        for name in whole["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


def test_the_least_length_of_a_password_is_the_setting() -> None:
    schemas = document(ROUTES, Settings(password_min_length=20))["components"]["schemas"]
    assert schemas["Register"]["properties"]["password"]["minLength"] == 20
    assert schemas["Login"]["properties"]["password"]["minLength"] == 1


async def test_it_is_served_and_revalidated(client: Client) -> None:
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


async def test_an_answer_that_is_not_described_fails_its_test(client: Client) -> None:
    """The check of conftest, given what the service did not say."""
    account = await register(client)
    path = "/api/v1/users/me"
    response = await client.get(path, headers=account.headers)
    good = Answer("GET", path, 200, response.headers, await response.read())
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
    problem = Answer("GET", path, 401, refused.headers, await refused.read())
    assert find_faults(problem) == []
    other = problem.body.replace(b"not_signed_in", b"too_many_requests")
    assert find_faults(problem._replace(body=other))
    assert find_faults(problem._replace(status=403))


async def test_a_request_that_is_not_described_but_taken_fails_its_test(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await register(client)
    schema = document_of_defaults()["components"]["schemas"]["ReplaceProfile"]
    path = "/api/v1/users/me"
    await client.put(path, headers=account.headers, json={"name": "Ada L."})
    monkeypatch.setitem(schema["properties"]["name"], "maxLength", 3)
    compile_schema.cache_clear()
    with pytest.raises(AssertionError, match="users_replace_me took"):
        await client.put(path, headers=account.headers, json={"name": "Ada L."})
    compile_schema.cache_clear()


def without(answer: Answer, name: str) -> CIMultiDict[str]:
    headers = CIMultiDict(answer.headers)
    del headers[name]
    return headers
