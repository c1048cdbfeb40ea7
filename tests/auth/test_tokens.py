"""Access tokens, and the guard that accepts or refuses them."""

import base64
import dataclasses
import json
import time
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from service.app import create_app
from service.auth.signing_keys import KEY_RING, LEEWAY_S, signing_key
from service.settings import Settings, SettingsError
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register
from tests.support.tokens import ME, ask, encode, parts


@pytest.mark.asvs("7.2.2", "9.1.2", "10.3.3")
async def test_token_holds_the_expected_header_and_claims(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    keys = (await (await client.get("/.well-known/jwks.json")).json())["keys"]
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": keys[0]["kid"]}
    assert claims["sub"] == account.profile["id"]
    assert claims["exp"] - claims["iat"] == 900
    assert claims["iss"] == claims["aud"] == "shinkei"
    assert claims["client_id"] == "shinkei"
    jwt.decode(account.tokens["access_token"], ECKey.import_key(keys[0]), algorithms=["ES256"])


async def test_token_names_the_audience_if_it_is_not_the_issuer(start_app: StartApp) -> None:
    names = {"token_issuer": "https://accounts.example", "token_audience": "https://api.example"}
    client = await start_app(**names)
    account = await register(client)
    _, claims = parts(account)
    assert (claims["iss"], claims["aud"]) == tuple(names.values())
    assert await ask(client, account.tokens["access_token"]) == 200


async def test_token_for_another_audience_is_refused(start_app: StartApp) -> None:
    one, two = await start_app(), await start_app(token_audience="https://api.example")
    account = await register(one)
    assert await ask(two, account.tokens["access_token"]) == 401


async def test_published_keys_hold_no_private_part(client: Client) -> None:
    response = await client.get("/.well-known/jwks.json")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    (key,) = (await response.json())["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}


@pytest.mark.parametrize("ahead_s", [60, 300, -60])
async def test_token_signed_by_a_replica_with_another_clock_is_accepted(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """Or before this machine's clock was set back."""
    one, two = await start_app(), await start_app()
    now = time.time
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", lambda: now() + ahead_s)
        account = await register(one)
    assert await ask(two, account.tokens["access_token"]) == 200


@pytest.mark.asvs("9.1.1", "9.1.2", "9.1.3")
async def test_forged_tokens_are_refused(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    signature = account.tokens["access_token"].rpartition(".")[2]
    public = (await (await client.get("/.well-known/jwks.json")).json())["keys"][0]
    stranger = ECKey.generate_key("P-256", auto_kid=True)
    public_bytes = OctKey.import_key(json.dumps(public))
    forged = {
        "alg none": f"{encode({**header, 'alg': 'none'})}.{encode(claims)}.",
        "alg none, signature kept": f"{encode({**header, 'alg': 'none'})}.{encode(claims)}.{signature}",
        "HS256 with the public key": jwt.encode(
            {**header, "alg": "HS256"}, claims, public_bytes, algorithms=["HS256"]
        ),
        "a stranger's key under our kid": jwt.encode(header, claims, stranger),
        "a stranger's kid": jwt.encode({**header, "kid": stranger.kid}, claims, stranger),
        "a stranger's key in the header": jwt.encode(
            {**header, "jwk": stranger.as_dict(private=False)}, claims, stranger
        ),
        "a stranger's key set": f"{encode({**header, 'jku': 'http://127.0.0.1:9/jwks'})}.{encode(claims)}.{signature}",
        "no kid": f"{encode({'alg': 'ES256', 'typ': 'at+jwt'})}.{encode(claims)}.{signature}",
        "kid is a path": f"{encode({**header, 'kid': '../../etc/passwd'})}.{encode(claims)}.{signature}",
        "kid is a list": f"{encode({**header, 'kid': ['a']})}.{encode(claims)}.{signature}",
        "claims changed": f"{encode(header)}.{encode({**claims, 'sub': claims['jti']})}.{signature}",
        "signature cut": account.tokens["access_token"][:-4],
        "signature dropped": account.tokens["access_token"].rpartition(".")[0] + ".",
        "refresh token": account.tokens["refresh_token"],
        "too long": account.tokens["access_token"] + "A" * 4000,
        "nested": "[" * 1500 + ".e30.e30",
        "empty parts": "..",
        "not a token": "x",
    }
    for name, token in forged.items():
        assert await ask(client, token) == 401, name
    assert await ask(client, account.tokens["access_token"]) == 200


@pytest.mark.asvs("9.2.1", "9.2.2", "9.2.3", "10.3.1")
async def test_claims_are_checked_even_if_the_signature_is_valid(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    assert client.app is not None
    key = await signing_key(client.app)
    assert await ask(client, jwt.encode(header, claims, key)) == 200
    now = int(time.time())
    for change in (
        {"exp": now - 11},
        {"exp": None},
        {"exp": "never"},
        {"nbf": now + 60},
        {"iss": "another"},
        {"aud": "another"},
        {"sub": "not a uuid"},
        {"sub": None},
        {"sid": claims["jti"]},
        {"sid": 7},
    ):
        wrong = {name: value for name, value in {**claims, **change}.items() if value is not None}
        assert await ask(client, jwt.encode(header, wrong, key)) == 401, change
    without_sid = {name: value for name, value in claims.items() if name != "sid"}
    assert await ask(client, jwt.encode(header, without_sid, key)) == 401
    assert await ask(client, jwt.encode({**header, "typ": "JWT"}, claims, key)) == 401


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", "bearer\tx"])
async def test_missing_or_malformed_authorization_gets_a_challenge(
    client: Client, header: str | None
) -> None:
    response = await client.get(ME, headers={"Authorization": header} if header else {})
    await assert_problem(response, 401, "not_signed_in")
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_bearer_scheme_is_case_insensitive(client: Client) -> None:
    account = await register(client)
    headers = {"Authorization": f"bEARER {account.tokens['access_token']}"}
    assert (await client.get(ME, headers=headers)).status == 200


@pytest.mark.asvs("9.1.1")
@pytest.mark.property
@given(token=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200))
async def test_arbitrary_text_is_not_a_token(client: Client, token: str) -> None:
    assert await ask(client, token) == 401


@pytest.mark.asvs("7.2.1", "7.4.1")
@pytest.mark.parametrize(
    "ending",
    [
        "delete from sessions",
        "update sessions set expires_at = now()",
        "delete from users",
    ],
)
async def test_token_is_invalid_once_its_session_ends(
    client: Client, conn: Any, ending: str
) -> None:
    account = await register(client)
    other = await register(client)
    assert await ask(client, account.tokens["access_token"]) == 200
    where = "id" if "users" in ending else "user_id"
    await conn.execute(f"{ending} where {where} = $1", account.profile["id"])
    assert await ask(client, account.tokens["access_token"]) == 401
    assert await ask(client, other.tokens["access_token"]) == 200


@pytest.mark.asvs("8.2.2", "10.3.2")
async def test_token_for_another_users_session_is_refused(client: Client) -> None:
    account, other = await register(client), await register(client)
    header, claims = parts(account)
    assert client.app is not None
    key = await signing_key(client.app)
    mixed = {**claims, "sid": parts(other)[1]["sid"]}
    assert await ask(client, jwt.encode(header, mixed, key)) == 401


@pytest.mark.asvs("7.2.1")
async def test_replicas_share_keys_and_sessions(start_app: StartApp, conn: Any) -> None:
    one, two = await start_app(), await start_app()
    account = await register(one)
    assert await ask(two, account.tokens["access_token"]) == 200
    assert await conn.fetchval("select count(*) from signing_keys") == 1


async def test_private_keys_are_stored_encrypted(client: Client, conn: Any) -> None:
    assert client.app is not None
    key = await signing_key(client.app)
    private = str(key.as_dict(private=True)["d"])
    stored = await conn.fetchval("select encrypted_key from signing_keys")
    assert private.encode() not in stored
    assert base64.urlsafe_b64decode(private + "=") not in stored


async def test_start_fails_with_a_different_secret_key(client: Client, settings: Settings) -> None:
    other = dataclasses.replace(settings, secret_key="another secret key, also long enough")
    runner = web.AppRunner(create_app(other))
    try:
        with pytest.raises(SettingsError, match="^SECRET_KEY: expected the value that"):
            await runner.setup()
    finally:
        await runner.cleanup()


async def test_cached_token_still_expires(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    token = (await register(client)).tokens["access_token"]
    assert [await ask(client, token), await ask(client, token)] == [200, 200]
    late = time.time() + 900 + LEEWAY_S
    monkeypatch.setattr(time, "time", lambda: late)
    assert await ask(client, token) == 401


async def test_token_cache_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.auth.tokens.VERIFIED_MAX", 2)
    tokens = [(await register(client)).tokens["access_token"] for _ in range(3)]
    for token in tokens * 2:
        assert await ask(client, token) == 200
    assert client.app is not None
    assert list(client.app[KEY_RING].verified) == tokens[1:]


async def test_refused_tokens_are_not_cached(start_app: StartApp) -> None:
    client = await start_app()
    token = (await register(client)).tokens["access_token"]
    head, body, signature = token.split(".")
    for forged in (f"{head}.{body}.{signature[::-1]}", f"{head}.{body}.", "x", token[:-2]):
        assert await ask(client, forged) == 401
    assert client.app is not None
    assert not client.app[KEY_RING].verified
