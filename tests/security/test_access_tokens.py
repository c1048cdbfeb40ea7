"""Access tokens with something wrong: refused, while the same token without it is accepted."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from service.auth.signing_keys import signing_key
from tests.support.attacks import Attack, carry_out
from tests.support.clients import SECRET_KEY, Client
from tests.support.factories import Account, bearer, register
from tests.support.factors import add_totp
from tests.support.operations import Request
from tests.support.tokens import ME, parts
from tests.support.worlds import NO_ONE

Json = dict[str, Any]
Sign = Callable[[bytes], bytes]
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(document: object) -> str:
    """Encode a part of a token; text is taken as JSON already."""
    return b64((document if isinstance(document, str) else json.dumps(document)).encode())


def token_of(header: object, claims: object, sign: Sign) -> str:
    signed = f"{compact(header)}.{compact(claims)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def signer(key: ec.EllipticCurvePrivateKey) -> Sign:
    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


class Signing:
    """An account's token in parts, the service's key, and a stranger's."""

    def __init__(self, account: Account, own: ec.EllipticCurvePrivateKey, published: Json) -> None:
        self.token: str = account.tokens["access_token"]
        self.header, self.claims = parts(account)
        self.own, self.published = own, published
        self.stranger = ec.generate_private_key(ec.SECP256R1())

    @property
    def stranger_jwk(self) -> Json:
        numbers = self.stranger.public_key().public_numbers()
        point = {name: b64(getattr(numbers, name).to_bytes(32, "big")) for name in "xy"}
        thumb = json.dumps({"crv": "P-256", "kty": "EC", **point}, separators=(",", ":"))
        kid = b64(hashlib.sha256(thumb.encode()).digest())
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, **point}

    def by_us(self, header: object = None, claims: object = None) -> str:
        return token_of(header or self.header, claims or self.claims, signer(self.own))


@pytest.fixture
async def signing(client: Client) -> Signing:
    account = await register(client)
    assert client.app is not None
    own = (await signing_key(client.app)).get_op_key("sign")
    keys = await (await client.get("/.well-known/jwks.json")).json()
    return Signing(account, own, keys["keys"][0])


def reading(token: str) -> Request:
    return Request("GET", ME, headers=bearer(token))


async def refuse(client: Client, tokens: Mapping[str, tuple[str, str]], at_least: int) -> None:
    """Assert that each first token is refused, and each second one accepted."""
    attacks = (
        Attack(name, reading(token), reading(twin), 401, "invalid_token")
        for name, (token, twin) in tokens.items()
    )
    await carry_out(client, attacks, at_least=at_least)


UNSIGNED: tuple[Any, ...] = (
    "none",
    "None",
    "NONE",
    "nOnE",
    " none",
    "none ",
    "none\0",
    "",
    None,
    0,
    [],
    ["none"],
)


@pytest.mark.asvs("9.1.1", "9.1.2")
async def test_unsigned_tokens_are_refused(client: Client, signing: Signing) -> None:
    """RFC 8725 section 2.1."""
    kept = signing.token.rpartition(".")[2]
    tokens = {}
    for algorithm in UNSIGNED:
        for signature in ("", kept, "AA"):
            header = {**signing.header, "alg": algorithm}
            forged = f"{compact(header)}.{compact(signing.claims)}.{signature}"
            tokens[f"alg {algorithm!r}, signature {signature[:2]!r}"] = forged, signing.token
    await refuse(client, tokens, 36)


@pytest.mark.asvs("9.1.1", "9.1.2")
async def test_public_key_is_no_secret_to_sign_with(client: Client, signing: Signing) -> None:
    """RFC 8725 section 2.1: a key of one algorithm, used for another."""
    public = signing.own.public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    point = serialization.PublicFormat.UncompressedPoint
    pem = public.public_bytes(serialization.Encoding.PEM, spki)
    secrets = {
        "PEM": pem,
        "PEM without its last line break": pem.strip(),
        "DER": public.public_bytes(serialization.Encoding.DER, spki),
        "point": public.public_bytes(serialization.Encoding.X962, point),
        "JWK": json.dumps(signing.published).encode(),
        "compact JWK": json.dumps(signing.published, separators=(",", ":")).encode(),
        "x": signing.published["x"].encode(),
        "kid": signing.published["kid"].encode(),
        "SECRET_KEY": SECRET_KEY.encode(),
        "nothing": b"",
    }
    tokens = {}
    for name, secret in secrets.items():
        for algorithm in ("HS256", "HS384", "HS512"):
            digest = f"sha{algorithm[2:]}"

            def sign(message: bytes, secret: bytes = secret, digest: str = digest) -> bytes:
                return hmac.digest(secret, message, digest)

            header = {**signing.header, "alg": algorithm}
            forged = token_of(header, signing.claims, sign)
            tokens[f"{algorithm} with {name}"] = forged, signing.by_us()
    await refuse(client, tokens, 30)


# Members of a header that names a key, and what a client could put there.
def named_keys(jwk: Json) -> dict[str, Json]:
    return {
        "jwk": {"jwk": jwk},
        "jwk and its kid": {"jwk": jwk, "kid": "mine"},
        "jku": {"jku": "http://127.0.0.1:9/jwks.json"},
        "jku of another port": {"jku": "http://127.0.0.1:9/a?b#c", "x5u": "https://127.0.0.1/"},
        "x5u": {"x5u": "http://127.0.0.1:9/key.pem"},
        "x5c": {"x5c": [base64.b64encode(b"certificate").decode()]},
        "x5t": {"x5t": "thumbprint", "x5t#S256": "thumbprint"},
        "jwk, jku and x5u": {
            "jwk": jwk,
            "jku": "http://127.0.0.1:9/",
            "x5u": "http://127.0.0.1:9/",
        },
        "nothing": {},
    }


@pytest.mark.asvs("9.1.1", "9.1.3")
async def test_key_comes_from_the_service_whatever_the_header_names(
    client: Client, signing: Signing
) -> None:
    """RFC 8725 section 3.10. The twin has the same header, but our signature."""
    tokens = {}
    for name, named in named_keys(signing.stranger_jwk).items():
        header = {**named, **signing.header}
        forged = token_of(header, signing.claims, signer(signing.stranger))
        tokens[f"a stranger's key, {name}"] = forged, signing.by_us(header)
    stranger_kid = {**signing.header, "kid": signing.stranger_jwk["kid"]}
    forged = token_of(stranger_kid, signing.claims, signer(signing.stranger))
    tokens["a stranger's kid"] = forged, signing.by_us()
    await refuse(client, tokens, 10)


def wrong_headers(header: Json) -> Iterator[tuple[str, object]]:
    """Yield headers that are refused even if the service's own key has signed them."""
    for algorithm in (
        *("HS256", "ES384", "ES512", "ES256K", "RS256", "PS256", "EdDSA", "Ed25519", "es256"),
        *("ES256 ", "", None, 7, ["ES256"], {"ES256": 1}),
    ):
        yield f"alg {algorithm!r}", {**header, "alg": algorithm}
    for kind in ("JWT", "jwt", "rt+jwt", "id_token", "logout+jwt", "", None, 7, ["at+jwt"]):
        yield f"typ {kind!r}", {**header, "typ": kind}
    for kid in (
        *(
            "",
            None,
            7,
            ["a"],
            {"kid": "a"},
            "../../../../etc/passwd",
            "/dev/null",
            "file:///dev/null",
        ),
        *("' or '1'='1", "x' union select 'secret' --", "$(id)", "| cat /etc/passwd", "%00", "\0"),
        *("http://127.0.0.1:9/key", "é", header["kid"] + " ", header["kid"] + "\0"),
        *(header["kid"][:-1], header["kid"] + "A", "*", "0"),
    ):
        yield f"kid {kid!r}", {**header, "kid": kid}
    for crit in (["exp"], ["b64"], ["exp", "kid"], "exp", None, 7, {"exp": 1}):
        yield f"crit {crit!r}", {**header, "crit": crit}
    for member in ("keys", "jwks", "key", "pem", "secret"):
        yield f"member {member}", {**header, member: "x"}
    yield "jku of a file", {**header, "jku": "file:///etc/passwd"}
    yield (
        "unknown extension",
        {**header, "crit": ["http://example.com/x"], "http://example.com/x": 1},
    )
    yield "payload not encoded", {**header, "b64": False, "crit": ["b64"]}
    for name in ("alg", "typ", "kid"):
        yield f"no {name}", {key: value for key, value in header.items() if key != name}
    text = json.dumps(header)
    yield "alg twice", f'{text[:-1]}, "alg": "none"}}'
    yield "typ twice", f'{text[:-1]}, "typ": "JWT"}}'
    yield "an array", [header]
    yield "a text", json.dumps("header")
    yield "no JSON", text[:-1]
    yield "single quotes", text.replace('"', "'")


@pytest.mark.asvs("9.1.1", "9.1.2", "9.2.2")
async def test_wrong_headers_are_refused_even_if_signed(client: Client, signing: Signing) -> None:
    tokens = {
        name: (signing.by_us(header), signing.by_us())
        for name, header in wrong_headers(signing.header)
    }
    await refuse(client, tokens, 60)


def wrong_claims(claims: Json, other: Json) -> Iterator[tuple[str, object]]:
    now = int(time.time())
    times: tuple[Any, ...] = (now + 60, now + 1e6, str(now), "now", [], {})
    for name in ("iss", "aud", "sub", "sid", "exp"):
        yield f"no {name}", {key: value for key, value in claims.items() if key != name}
        for value in (None, 7, True, [], {}, "", " ", ["x"], {"x": 1}, "x" * 500):
            if (name, value) != ("exp", True):
                yield f"{name} {str(value)[:20]!r}", {**claims, name: value}
    for exp in (now - 11, 0, -1, str(now + 900), "never", [now + 900], 1e-9):
        yield f"exp {exp!r}", {**claims, "exp": exp}
    for nbf in times:
        yield f"nbf {nbf!r}", {**claims, "nbf": nbf}
    for name in ("iss", "aud"):
        for value in (
            "Shinkei",
            "shinkei ",
            "shinkei\0",
            "https://shinkei",
            "shinkei.evil.example",
        ):
            yield f"{name} {value!r}", {**claims, name: value}
    yield "aud of others", {**claims, "aud": ["another", "yet another"]}
    for name in ("sub", "sid"):
        for value in (
            *("me", NO_ONE, f"{{{claims[name]}}}", f"urn:uuid:{claims[name]}", claims[name] + "\0"),
            *(claims[name] + " ", f"{claims[name]}' or '1'='1", [claims[name]], claims[name][:-1]),
        ):
            if not str(value).startswith(("{", "urn:")):
                yield f"{name} {value!r}", {**claims, name: value}
        yield f"{name} of another account", {**claims, name: other[name]}
    yield "sub and sid exchanged", {**claims, "sub": claims["sid"], "sid": claims["sub"]}
    text = json.dumps(claims)
    yield "infinite exp", text.replace(f'"exp": {claims["exp"]}', '"exp": Infinity')
    yield "NaN for exp", text.replace(f'"exp": {claims["exp"]}', '"exp": NaN')
    yield "an array", [claims]
    yield "a text", json.dumps("claims")
    yield "null", "null"
    yield "a number", "7"
    yield "no JSON", text[:-1]
    yield "nested", "[" * 1000


@pytest.mark.asvs("9.2.1", "9.2.2", "9.2.3", "10.3.1", "10.3.2")
async def test_wrong_claims_are_refused_even_if_signed(client: Client, signing: Signing) -> None:
    other = parts(await register(client))[1]
    tokens = {
        name: (signing.by_us(claims=claims), signing.by_us())
        for name, claims in wrong_claims(signing.claims, other)
    }
    now = int(time.time())
    late = signing.by_us(claims={**signing.claims, "exp": now - 60})
    early = signing.by_us(claims={**signing.claims, "exp": now + 60})
    tokens["expired"] = late, early
    await refuse(client, tokens, 90)


def spoilt(signing: Signing, other: str) -> Iterator[tuple[str, str]]:
    """Yield texts that are no longer the token that was issued."""
    token = signing.token
    head, body, signature = token.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = raw[:32], raw[32:]
    for name, forged in {
        "of zeros": bytes(64),
        "of ones": (1).to_bytes(32, "big") * 2,
        "of the order": ORDER.to_bytes(32, "big") * 2,
        "of 255s": b"\xff" * 64,
        "turned round": s + r,
        "cut": raw[:-1],
        "longer": raw + b"\0",
        "with a zero before": b"\0" + raw,
        "in half": r,
        "twice": raw * 2,
        "in DER": signing.own.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256())),
        "with another hash": signing.own.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA512())),
        "of the claims alone": signer(signing.own)(body.encode()),
        "of the decoded text": signer(signing.own)(base64.urlsafe_b64decode(body + "==")),
        "of another case": signer(signing.own)(f"{head}.{body}".lower().encode()),
    }.items():
        yield f"signature {name}", f"{head}.{body}.{b64(forged)}"
    flipped = bytes([raw[0] ^ 1]) + raw[1:]
    yield "signature with a flipped bit", f"{head}.{body}.{b64(flipped)}"
    yield "signature in hexadecimal", f"{head}.{body}.{raw.hex()}"
    yield "signature dropped", f"{head}.{body}."
    yield "signature and its dot dropped", f"{head}.{body}"
    yield "signature of another token", f"{head}.{body}.{other.rpartition('.')[2]}"
    yield "claims of another token", f"{head}.{other.split('.')[1]}.{signature}"
    yield (
        "header with spaces",
        f"{compact(json.dumps(signing.header, indent=1))}.{body}.{signature}",
    )
    spaced = compact(json.dumps(signing.claims, indent=1))
    yield "claims with spaces", f"{head}.{spaced}.{signature}"
    later = compact({**signing.claims, "exp": signing.claims["exp"] + 900})
    yield "later exp", f"{head}.{later}.{signature}"
    yield "another jti", f"{head}.{compact({**signing.claims, 'jti': NO_ONE})}.{signature}"
    yield "one more claim", f"{head}.{compact({**signing.claims, 'role': 'admin'})}.{signature}"
    yield "parts turned round", f"{signature}.{body}.{head}"
    yield "header twice", f"{head}.{head}.{body}.{signature}"
    yield "five parts", f"{head}.{body}.{signature}.{body}.{signature}"
    yield "dot after it", f"{token}."
    yield "dot before it", f".{token}"
    yield "empty claims", f"{head}..{signature}"
    yield "empty header", f".{body}.{signature}"
    yield "dots", ".."
    yield "lower case", token.lower()
    yield "upper case", token.upper()
    yield "first character cut", token[1:]
    yield "last ten characters cut", token[:-10]
    yield "quotes", f'"{token}"'
    yield "single quotes", f"'{token}'"
    yield "escaped dots", token.replace(".", "%2E")
    yield "encoded again", b64(token.encode())
    yield "two tokens", f"{token},{token}"
    yield "two tokens and a space", f"{token} {token}"
    yield "scheme twice", f"Bearer {token}"
    yield "text after it", f"{token}A" * 2
    yield (
        "JSON serialization",
        json.dumps({"protected": head, "payload": body, "signature": signature}).replace(" ", ""),
    )
    yield "spaces within", f"{head}. {body}.{signature}"
    yield "longer than any", f"{token}{'A' * 3000}"
    yield "thousand dots", "." * 1000


@pytest.mark.asvs("9.1.1", "7.2.1")
async def test_changed_tokens_are_refused(client: Client, signing: Signing) -> None:
    other = (await register(client)).tokens["access_token"]
    tokens = {name: (text, signing.token) for name, text in spoilt(signing, other)}
    await refuse(client, tokens, 50)


@pytest.mark.asvs("7.2.1", "14.2.1")
async def test_token_is_taken_from_the_header_alone(client: Client) -> None:
    """RFC 6750 section 2: neither from the query nor from a body, and from no other scheme."""
    account = await register(client)
    token = account.tokens["access_token"]
    basic = base64.b64encode(f"{account.profile['email']}:{account.password}".encode()).decode()
    elsewhere: dict[str, Request] = {
        **{
            f"query {name}": Request("GET", ME, f"{name}={token}")
            for name in ("access_token", "token", "authorization", "jwt", "bearer_token", "api_key")
        },
        **{
            f"header {name}": Request("GET", ME, headers={name: value})
            for name, value in {
                "X-Access-Token": token,
                "X-Authorization": f"Bearer {token}",
                "Proxy-Authorization": f"Bearer {token}",
                "X-Auth-Token": token,
                "X-Forwarded-Authorization": f"Bearer {token}",
                "X-Original-Authorization": f"Bearer {token}",
                "X-API-Key": token,
                "X-User-ID": account.profile["id"],
                "X-Forwarded-User": account.profile["email"],
                "X-Remote-User": account.profile["email"],
                "Remote-User": account.profile["email"],
                "From": account.profile["email"],
                "Cookie": f"access_token={token}; Authorization=Bearer {token}; session={token}",
                "Sec-WebSocket-Protocol": f"bearer, {token}",
            }.items()
        },
        **{
            f"scheme {scheme!r}": Request("GET", ME, headers={"Authorization": scheme})
            for scheme in (
                *(token, f"Token {token}", f"JWT {token}", f"Basic {token}", f"Basic {basic}"),
                *(f"Bearer:{token}", f"Bearer={token}", f"Bearer\t{token}", f"Bear {token}"),
                *(f"DPoP {token}", f"Digest {token}", f"Negotiate {token}", f"OAuth {token}"),
                *("Bearer", "", f"Bearer{token}", f"access_token={token}"),
            )
        },
        "body": Request("GET", ME, body=f'{{"access_token": "{token}"}}'.encode()),
        "nothing": Request("GET", ME),
    }
    twin = Request("GET", ME, headers=account.headers)
    attacks = (
        Attack(name, request, twin, 401, "not_signed_in") for name, request in elsewhere.items()
    )
    await carry_out(client, attacks, at_least=38)


@pytest.mark.asvs("9.2.2", "10.3.4")
async def test_claims_of_assurance_open_nothing(client: Client, signing: Signing) -> None:
    """Whoever signed them, what counts is what the session has proved.

    The twin has the same claims, signed by the service, for a session at level 2.
    """
    account = await register(client)
    await add_totp(client, account.headers)
    proved = parts(account)[1]
    now = int(time.time())
    claimed: dict[str, Json] = {
        "acr": {"acr": "aal2"},
        "acr and amr": {"acr": "aal2", "amr": ["pwd", "otp"]},
        "all three": {"acr": "aal2", "amr": ["pwd", "hwk"], "auth_time": now},
        "a later time": {"acr": "aal2", "auth_time": now + 10**6},
        "a higher level": {"acr": "aal3", "amr": ["hwk", "pwd", "otp"]},
        "a number": {"acr": 2, "aal": 2},
        "a level as a word": {"acr": "urn:mace:incommon:iap:silver"},
    }
    codes = "/api/v1/users/me/recovery-codes"
    public = json.dumps(signing.published).encode()
    attacks = []
    for name, more in claimed.items():
        twin = Request("POST", codes, headers=bearer(signing.by_us(claims={**proved, **more})))
        claims = {**signing.claims, **more}
        unsigned = f"{compact({**signing.header, 'alg': 'none'})}.{compact(claims)}."
        for by, token, code in (
            ("nobody", unsigned, "invalid_token"),
            (
                "a stranger",
                token_of(signing.header, claims, signer(signing.stranger)),
                "invalid_token",
            ),
            (
                "the public key",
                token_of(
                    {**signing.header, "alg": "HS256"},
                    claims,
                    lambda message: hmac.digest(public, message, "sha256"),
                ),
                "invalid_token",
            ),
            (
                "the service, for a session at level 1",
                signing.by_us(claims=claims),
                "insufficient_authentication",
            ),
        ):
            wrong = twin._replace(headers=bearer(token))
            attacks.append(Attack(f"{name}, signed by {by}", wrong, twin, 401, code))
    await carry_out(client, attacks, at_least=28)
