"""``POST /auth/register``."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, pointers, register

REGISTER = "/api/v1/auth/register"


async def test_only_one_of_two_concurrent_registrations_of_an_email_wins(client: Client) -> None:
    bodies = [
        {"email": "same@example.com", "password": PASSWORD},
        {"email": "SAME@EXAMPLE.COM", "password": PASSWORD},
    ]
    responses = await asyncio.gather(*(client.post(REGISTER, json=body) for body in bodies))
    assert sorted(response.status for response in responses) == [201, 409]
    refused = next(response for response in responses if response.status == 409)
    await assert_problem(refused, 409, "email_taken")


async def test_only_one_of_fifty_concurrent_registrations_of_an_email_wins(
    client: Client, conn: Any
) -> None:
    body = {"email": "same@example.com", "password": PASSWORD}
    responses = await asyncio.gather(*(client.post(REGISTER, json=body) for _ in range(50)))
    assert sorted(response.status for response in responses) == [201] + [409] * 49
    assert await conn.fetchval("select count(*) from users") == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada@example.com", "ADA@example.com"),
        ("jörg@example.com", "JÖRG@example.com"),
        ("straße@example.com", "STRASSE@example.com"),
        ("ada@bücher.example.com", "ada@xn--bcher-kva.example.com"),
        ("e\u0301ve@example.com", "éve@example.com"),
    ],
)
async def test_email_is_unique_regardless_of_case(client: Client, first: str, second: str) -> None:
    await register(client, email=first)
    response = await client.post(REGISTER, json={"email": second, "password": PASSWORD})
    await assert_problem(response, 409, "email_taken")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada@straße.example.com", "ada@strasse.example.com"),
        ("ada@κόσμος.example.com", "ada@κόσμοσ.example.com"),
        ("ada@xn--strae-oqa.example.com", "ada@STRASSE.example.com"),
    ],
)
async def test_domains_that_dns_tells_apart_are_different_emails(
    client: Client, first: str, second: str
) -> None:
    await register(client, email=first)
    account = await register(client, email=second)
    assert account.profile["email"] == second.lower()


@pytest.mark.parametrize(
    ("registered", "typed"),
    [
        ("ada@straße.example.com", "ADA@xn--strae-oqa.example.com"),
        ("ada@xn--strae-oqa.example.com", "ada@STRAßE.example.com"),
        ("ada@straße.example.com", "ada@STRAẞE.example.com"),
        ("ada@κόσμοσ.example.com", "ada@ΚΌΣΜΟΣ.example.com"),
        ("γιώργος@example.com", "ΓΙΏΡΓΟΣ@example.com"),
    ],
)
async def test_email_is_found_by_every_spelling(
    client: Client, registered: str, typed: str
) -> None:
    account = await register(client, email=registered)
    credentials = {"email": typed, "password": account.password}
    assert (await client.post("/api/v1/auth/login", json=credentials)).status == 200


async def test_dotless_i_is_a_different_letter(client: Client) -> None:
    await register(client, email="mike@example.com")
    account = await register(client, email="mıke@example.com")
    assert account.profile["email"] == "mıke@example.com"


INVALID_EMAILS: list[Any] = [
    "",
    "ada",
    "ada@",
    "@example.com",
    "ada@localhost",
    " ada@example.com",
    "ada@example.com\n",
    "ada\0@example.com",
    "\ud800@example.com",
    "Ada <ada@example.com>",
    "a" * 65 + "@example.com",
    "a@" + "b" * 250 + ".com",
    "a\u202eb@example.com",
    7,
    None,
    ["ada@example.com"],
    {"email": "ada@example.com"},
]


async def test_invalid_emails_are_rejected(client: Client) -> None:
    for email in INVALID_EMAILS:
        response = await client.post(REGISTER, json={"email": email, "password": PASSWORD})
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {"#/email"}, email


@pytest.mark.asvs("6.2.1")
@pytest.mark.parametrize(
    "password", ["", "short", "14 characters.", "x" * 257, "nul\0" * 5, "\udfff" * 15, 7, None, []]
)
async def test_invalid_passwords_are_rejected(client: Client, password: Any) -> None:
    response = await client.post(REGISTER, json={"email": "a@example.com", "password": password})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}


@pytest.mark.asvs("6.2.5", "6.2.8", "6.2.9")
@pytest.mark.parametrize(
    "password",
    [
        "   leading and trailing   ",
        "👩‍💻 émojis e\u0301 العربية",
        "zq7! " + "granite lantern eats nine pickles " * 7,
    ],
)
async def test_any_long_password_works(client: Client, password: str) -> None:
    account = await register(client, password=password)
    credentials = {"email": account.profile["email"], "password": password}
    response = await client.post("/api/v1/auth/login", json=credentials)
    assert response.status == 200
    credentials["password"] = password[:-1]
    response = await client.post("/api/v1/auth/login", json=credentials)
    assert response.status == 401, "no part of a password is cut off"


@pytest.mark.asvs("6.2.1")
async def test_minimum_password_length_is_a_setting(start_app: StartApp) -> None:
    client = await start_app(password_min_length=8)
    await register(client, password="8 x Wörd")


@pytest.mark.asvs("6.4.2")
async def test_missing_and_unknown_fields_are_named(client: Client) -> None:
    response = await client.post(REGISTER, json={"e-mail": "a@example.com", "role": "admin"})
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/email", "#/password", "#/e-mail", "#/role"}


async def test_secrets_are_stored_as_hashes_only(client: Client, conn: Any) -> None:
    account = await register(client)
    stored = ""
    for table in ("users", "sessions", "refresh_tokens", "signing_keys"):
        stored += str(await conn.fetch(f"select * from {table}"))
    assert "$argon2id$" in stored
    for secret in (PASSWORD, account.tokens["refresh_token"], account.tokens["access_token"]):
        assert secret not in stored


@pytest.mark.asvs("6.2.4", "6.2.12")
@pytest.mark.parametrize(
    "password",
    [
        "passwordpassword",
        "QWERTYUIOPasdfgh",
        "1234567890123456",
        "Countess Lovelace!",
        "lovelace@example.com",
    ],
)
async def test_common_and_personal_passwords_are_rejected(client: Client, password: str) -> None:
    """Both registration and password change reject them."""
    body = {"email": "lovelace@example.com", "password": password, "name": "Countess Lovelace"}
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}
    account = await register(client, email=body["email"], name=body["name"])
    change = {"current_password": PASSWORD, "password": password}
    response = await client.post("/api/v1/users/me/password", json=change, headers=account.headers)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}


async def test_long_words_of_the_name_are_found_before_their_parts(client: Client) -> None:
    body = {
        "email": "lovelace@example.com",
        "password": "annabella+annabella",
        "name": "Anna Annabella",
    }
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/password"}


@pytest.mark.asvs("6.2.8")
async def test_passwords_are_case_sensitive(client: Client) -> None:
    account = await register(client)
    credentials = {"email": account.profile["email"], "password": PASSWORD.upper()}
    assert (await client.post("/api/v1/auth/login", json=credentials)).status == 401
