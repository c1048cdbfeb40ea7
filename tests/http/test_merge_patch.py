"""The media types of PATCH (RFC 5789, RFC 7396)."""

import json
import re

import pytest

from service.routes import ROUTES
from tests.support.clients import Client, StartApp
from tests.support.described import document_of_defaults
from tests.support.factories import assert_problem, register, register_as

ME = "/api/v1/users/me"
MERGE_PATCH = "application/merge-patch+json"
ACCEPTED = "application/merge-patch+json, application/json"
PATCHED = {route.path for route in ROUTES if route.method == "PATCH"}
PROFILES = {"/api/v1/users/me", "/api/v1/users/{user_id}"}


async def test_patch_of_a_profile_takes_a_merge_patch(client: Client) -> None:
    admin = await register_as(client, "admin")
    headers = {**admin.headers, "If-Match": "*"}
    for path in PROFILES:
        url = path.replace("{user_id}", admin.profile["id"])
        for content_type in (MERGE_PATCH, "Application/Merge-Patch+JSON; charset=utf-8"):
            for settings, merged in [({"a": 1, "b": 2}, {"a": 1, "b": 2}), ({"a": None}, {"b": 2})]:
                response = await client.patch(
                    url,
                    headers={**headers, "Content-Type": content_type},
                    data=json.dumps({"settings": settings}),
                )
                assert (await response.json())["settings"] == merged


async def test_patch_of_another_type_is_told_which_are_taken(client: Client) -> None:
    admin = await register_as(client, "admin")
    headers = {**admin.headers, "If-Match": "*", "Content-Type": "application/json-patch+json"}
    for path in PATCHED:
        url = re.sub("{.*?}", admin.profile["id"], path)
        response = await client.patch(url, headers=headers, data=b"[]")
        problem = await assert_problem(response, 415, "unsupported_media_type")
        assert MERGE_PATCH in problem["detail"]
        assert response.headers["Accept-Patch"] == response.headers["Accept"] == ACCEPTED


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", ME), ("POST", "/api/v1/auth/login"), ("DELETE", ME)]
)
async def test_other_methods_take_no_merge_patch(client: Client, method: str, path: str) -> None:
    account = await register(client)
    headers = {**account.headers, "Content-Type": MERGE_PATCH}
    response = await client.request(method, path, headers=headers, data=b"{}")
    await assert_problem(response, 415, "unsupported_media_type")
    assert response.headers["Accept"] == "application/json"
    assert "Accept-Patch" not in response.headers


async def test_resource_names_its_patch_types_in_response_to_options(start_app: StartApp) -> None:
    origin = "https://app.example"
    client = await start_app(cors_origins=frozenset({origin}))
    preflight = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
    for path in {route.path for route in ROUTES}:
        url = re.sub("{.*?}", "01890000-0000-7000-8000-000000000000", path)
        for headers in ({}, preflight):
            response = await client.options(url, headers=headers)
            named = response.headers.get("Accept-Patch")
            assert named == (ACCEPTED if path in PATCHED else None), path


def test_document_names_the_types_of_each_body() -> None:
    for path, methods in document_of_defaults()["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                merging = {MERGE_PATCH} if method == "patch" else set()
                types = set(operation["requestBody"]["content"])
                assert types == {"application/json"} | merging, path
