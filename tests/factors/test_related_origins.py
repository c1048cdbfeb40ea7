"""Browsers learn which origins may use this site's passkeys."""

import json

import pytest

from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem

PATH = "/.well-known/webauthn"


async def test_origins_are_listed_and_cached(client: Client) -> None:
    response = await client.get(PATH)
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    assert await response.json() == {"origins": ["https://app.example", "https://other.example"]}


@pytest.mark.parametrize(
    ("public_origin", "origins"),
    [("https://accounts.example", ["https://accounts.example"]), ("https://192.0.2.1", [])],
)
async def test_public_origin_is_the_only_one_by_default(
    start_app: StartApp, public_origin: str, origins: list[str]
) -> None:
    client = await start_app(rp_id="", rp_origins=frozenset(), public_origin=public_origin)
    assert json.loads(await (await client.get(PATH)).read()) == {"origins": origins}


async def test_it_can_only_be_read(client: Client) -> None:
    await assert_problem(await client.post(PATH), 405, "method_not_allowed")
