"""Helpers to take apart, build and try access tokens."""

import base64
import json
from typing import Any

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, bearer

ME = "/api/v1/users/me"


async def ask(client: Client, token: str) -> int:
    response = await client.get(ME, headers=bearer(token))
    if response.status != 200:
        await assert_problem(response, 401, "invalid_token")
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    return response.status


def parts(account: Account) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and claims of the account's access token."""
    head, body, _ = account.tokens["access_token"].split(".")
    return decode(head), decode(body)


def decode(part: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def encode(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


async def published(client: Client) -> list[str]:
    response = await client.get("/.well-known/jwks.json")
    return [key["kid"] for key in (await response.json())["keys"]]


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of an access token, without checking it."""
    return decode(token.split(".")[1])
