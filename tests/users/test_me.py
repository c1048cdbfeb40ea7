"""``/users/me``: the owner's own account."""

import asyncio
import operator
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from service.http.fields import NUMBER_LIMITS
from service.json_codec import same
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers, register

ME = "/api/v1/users/me"


async def test_registration_creates_a_user(client: Client) -> None:
    response = await client.post(
        "/api/v1/auth/register",
        json={"email": "Ada@Example.com", "password": "an analytical engine", "name": "Ada"},
    )
    assert response.status == 201
    body = await response.json()
    user = body.pop("user")
    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    assert uuid.UUID(user.pop("id")).version == 7
    created_at, updated_at = user.pop("created_at"), user.pop("updated_at")
    assert created_at == updated_at
    assert created_at.endswith("Z")
    assert user == {
        "email": "Ada@example.com",
        "email_verified": False,
        "name": "Ada",
        "role": "user",
        "settings": {},
    }


async def test_owner_reads_the_profile(client: Client) -> None:
    account = await register(client, name="Grace")
    response = await client.get(ME, headers=account.headers)
    assert response.status == 200
    assert await response.json() == account.profile
    assert response.headers["ETag"] == '"1"'
    assert response.headers["Cache-Control"] == "no-store"


async def test_owner_updates_the_profile(client: Client) -> None:
    account = await register(client, name="Grace")
    change = {"name": "Grace Hopper", "settings": {"language": "en", "ui_theme": "dark"}}
    response = await client.patch(ME, headers=account.headers, json=change)
    assert response.status == 200
    updated = await response.json()
    assert updated["updated_at"] > account.profile["updated_at"]
    assert updated == {**account.profile, **change, "updated_at": updated["updated_at"]}
    assert response.headers["ETag"] == '"2"'
    again = await client.get(ME, headers=account.headers)
    assert await again.json() == updated


async def test_patch_merges_settings_and_put_replaces_them(client: Client) -> None:
    account = await register(client)

    async def change(method: str, settings: dict[str, Any]) -> object:
        response = await client.request(
            method, ME, headers=account.headers, json={"settings": settings}
        )
        assert response.status == 200, await response.text()
        return (await response.json())["settings"]

    first = {"language": "fr", "editor": {"font": "serif", "size": 12}}
    assert await change("PATCH", first) == first
    merged = {"language": "fr", "editor": {"size": 14}, "llm_base_url": "https://llm.example"}
    assert (
        await change(
            "PATCH",
            {"editor": {"font": None, "size": 14}, "llm_base_url": "https://llm.example"},
        )
        == merged
    )
    assert await change("PATCH", {"editor": None, "llm_base_url": None}) == {"language": "fr"}
    assert await change("PUT", {"llm_base_url": None}) == {"llm_base_url": None}
    assert await change("PUT", {}) == {}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_empty_text_of_an_llm_setting_is_stored_as_null(client: Client, method: str) -> None:
    account = await register(client)
    keys = ("llm_provider", "llm_model", "llm_base_url")
    for values in (dict.fromkeys(keys, "https://llm.example"), dict.fromkeys(keys, "")):
        response = await client.request(
            method, ME, headers=account.headers, json={"settings": values}
        )
        assert response.status == 200, await response.text()
    assert (await response.json())["settings"] == dict.fromkeys(keys)
    assert response.headers["ETag"] == '"3"'


async def test_llm_settings_may_be_null(client: Client) -> None:
    account = await register(client)
    settings = {"llm_provider": None, "llm_model": None, "llm_base_url": None}
    response = await client.put(ME, headers=account.headers, json={"settings": settings})
    assert (await response.json())["settings"] == settings


async def test_empty_text_of_other_settings_stays(client: Client) -> None:
    account = await register(client)
    settings = {"mine": "", "of": {"llm_model": ""}}
    response = await client.patch(ME, headers=account.headers, json={"settings": settings})
    assert (await response.json())["settings"] == settings


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_true_differs_from_1(client: Client, method: str) -> None:
    """Python treats them as equal. The order of keys does not matter."""
    account = await register(client)
    texts = ['{"n":1,"of":{"a":[0]}}', '{"n":true,"of":{"a":[0]}}', '{"n":true,"of":{"a":[false]}}']
    for version, settings in enumerate(texts, 2):
        body = f'{{"settings": {settings}}}'
        headers = {**account.headers, "Content-Type": "application/json"}
        response = await client.request(method, ME, headers=headers, data=body)
        assert response.headers["ETag"] == f'"{version}"'
        assert f'"settings":{settings}' in await response.text()
    reordered = {"settings": {"of": {"a": [False]}, "n": True}}
    response = await client.request(method, ME, headers=account.headers, json=reordered)
    assert response.headers["ETag"] == '"4"'


async def test_absent_fields_stay_unchanged(client: Client) -> None:
    account = await register(client, name="Grace")
    for method in ("PATCH", "PUT"):
        response = await client.request(method, ME, headers=account.headers, json={})
        assert await response.json() == account.profile
        assert response.headers["ETag"] == '"1"', "nothing changed, so neither does the version"
    renamed = await client.put(ME, headers=account.headers, json={"name": ""})
    assert (await renamed.json())["name"] == ""


@pytest.mark.parametrize("tag", ['"1"', '"7", "1"', "*"])
async def test_if_match_accepts_the_current_version(client: Client, tag: str) -> None:
    account = await register(client)
    headers = {**account.headers, "If-Match": tag}
    response = await client.patch(ME, headers=headers, json={"name": "new"})
    assert response.status == 200


async def test_if_match_on_several_lines_is_one_list(client: Client) -> None:
    account = await register(client)
    lines = CIMultiDict([*account.headers.items(), ("If-Match", '"7"'), ("If-Match", '"1"')])
    response = await client.patch(ME, headers=lines, json={"name": "new"})
    assert response.status == 200


@pytest.mark.parametrize("tag", ['"2"', 'W/"1"'])
async def test_if_match_rejects_any_other_version(client: Client, tag: str) -> None:
    account = await register(client)
    headers = {**account.headers, "If-Match": tag}
    response = await client.patch(ME, headers=headers, json={"name": "new"})
    await assert_problem(response, 412, "precondition_failed")
    unchanged = await client.get(ME, headers=account.headers)
    assert await unchanged.json() == account.profile


async def test_only_one_concurrent_change_with_the_same_etag_wins(client: Client) -> None:
    account = await register(client)
    headers = {**account.headers, "If-Match": '"1"'}
    responses = await asyncio.gather(
        *(client.patch(ME, headers=headers, json={"name": f"name {n}"}) for n in range(10))
    )
    assert sorted(response.status for response in responses) == [200] + [412] * 9


async def test_concurrent_merges_lose_nothing(client: Client) -> None:
    account = await register(client)
    responses = await asyncio.gather(
        *(
            client.patch(ME, headers=account.headers, json={"settings": {f"key{n}": n}})
            for n in range(20)
        )
    )
    assert {response.status for response in responses} == {200}
    me = await client.get(ME, headers=account.headers)
    assert (await me.json())["settings"] == {f"key{n}": n for n in range(20)}
    assert me.headers["ETag"] == '"21"'


INVALID_SETTINGS: list[tuple[Any, str]] = [
    ({"language": 7}, "#/settings/language"),
    ({"language": "English!"}, "#/settings/language"),
    ({"ui_theme": "pink"}, "#/settings/ui_theme"),
    ({"llm_provider": "x" * 201}, "#/settings/llm_provider"),
    ({"llm_model": ["a"]}, "#/settings/llm_model"),
    ({"llm_base_url": "javascript:alert(1)"}, "#/settings/llm_base_url"),
    ({"llm_base_url": 5}, "#/settings/llm_base_url"),
    ({"llm_base_url": "http://[::1"}, "#/settings/llm_base_url"),
    ({"llm_base_url": "http://exa mple.com"}, "#/settings/llm_base_url"),
    ({"llm_base_url": "http://example.com:99999/"}, "#/settings/llm_base_url"),
    ({"mine": {"deep": "nul \0"}}, "#/settings/mine/deep"),
    ({"mine": [1, "\ud800"]}, "#/settings/mine/1"),
    ({"key\0": 1}, "#/settings/key?"),
    ({"\ud800": 1}, "#/settings/?"),
    ({"a/b~c": {"d": 2**60}}, "#/settings/a~1b~0c/d"),
    ({"big": "x" * 16_384}, "#/settings"),
    ([], "#/settings"),
    (None, "#/settings"),
    ("text", "#/settings"),
]


async def test_negative_zero_is_stored_as_zero(client: Client) -> None:
    """PostgreSQL's numbers have no negative zero, so sending it again changes nothing."""
    account = await register(client)
    headers = {**account.headers, "Content-Type": "application/json"}
    etags = []
    for _ in range(2):
        response = await client.patch(ME, headers=headers, data=b'{"settings": {"n": -0.0}}')
        assert (await response.json())["settings"] == {"n": 0}
        assert b'"n":-0' not in await response.read()
        etags.append(response.headers["ETag"])
    assert etags[0] == etags[1]


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_invalid_settings_are_rejected_with_a_pointer(client: Client, method: str) -> None:
    account = await register(client)
    for settings, pointer in INVALID_SETTINGS:
        response = await client.request(
            method, ME, headers=account.headers, json={"settings": settings}
        )
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {pointer}


@pytest.mark.parametrize(
    "body",
    [
        b'{"settings": {"n": 1e999}}',
        b'{"settings": {"n": 1e-400}}',
        b'{"settings": {"n": 1e9999999999999999999}}',
        # PostgreSQL would print this number, and the next, with hundreds of digits.
        b'{"settings": {"n": 1e308}}',
        b'{"settings": {"n": -1e-300}}',
        b'{"settings": {"n": [0.12345678901234567890123]}}',
        b'{"settings": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
    ],
)
async def test_settings_that_would_be_altered_by_storage_are_rejected(
    client: Client, body: bytes
) -> None:
    account = await register(client)
    headers = {**account.headers, "Content-Type": "application/json"}
    response = await client.patch(ME, headers=headers, data=body)
    await assert_problem(response, 422, "invalid_fields")


async def test_merged_settings_cannot_exceed_the_size_limit(client: Client) -> None:
    account = await register(client)
    statuses = []
    for key in ("first", "second"):
        body = {"settings": {key: "x" * 9000}}
        response = await client.patch(ME, headers=account.headers, json=body)
        statuses.append(response.status)
    assert statuses == [200, 422]


@pytest.mark.asvs("8.2.3")
async def test_owner_cannot_change_protected_fields(client: Client) -> None:
    account = await register(client)
    for field in ("role", "id", "email", "email_verified", "version", "created_at"):
        response = await client.patch(ME, headers=account.headers, json={field: "admin"})
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {f"#/{field}"}


GOOD_NAMES = [
    "שלום עולם",
    "محمد",
    "نام\u200cخانوادگی",
    "👩\u200d💻",
    "e\u0301",
    " spaces ",
    "O'Brien; --",
    "x" * 200,
]


async def test_names_are_returned_as_sent(client: Client) -> None:
    for name in GOOD_NAMES:
        assert (await register(client, name=name)).profile["name"] == name


DECEPTIVE_NAMES: list[Any] = [
    "a\u200bb",
    "a\u200db",
    "é\u200d\u200dé",
    "\u202egnp.exe",
    "line\nbreak",
    "nul\0",
    "\ud83d",
    "\ufeffx",
    "x" * 201,
    7,
    None,
    ["x"],
]


async def test_deceptive_names_are_rejected(client: Client) -> None:
    account = await register(client)
    for name in DECEPTIVE_NAMES:
        response = await client.patch(ME, headers=account.headers, json={"name": name})
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {"#/name"}


_keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.just(0.0)
    | st.floats(*NUMBER_LIMITS)
    | st.floats(*NUMBER_LIMITS).map(operator.neg)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
async def account(client: Client) -> Account:
    return await register(client)


@pytest.mark.property
@given(written=st.dictionaries(_keys, _json, max_size=6))
async def test_settings_are_returned_as_sent(
    client: Client, account: Account, written: dict[str, Any]
) -> None:
    mine = {f"my {key}": value for key, value in written.items()}
    response = await client.put(ME, headers=account.headers, json={"settings": mine})
    assert response.status == 200, await response.text()
    assert same((await response.json())["settings"], mine)
