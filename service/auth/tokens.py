"""Access tokens: ES256-signed JWTs (RFC 7519, RFC 9068).

ES256 rather than Ed25519, because every gateway and library verifies it; the name ``Ed25519``
(RFC 9864) is still too new for many of them.
"""

import functools
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
import uuid_utils.compat as uuid_utils
from aiohttp import web
from asyncpg.pgproto.pgproto import UUID

from service.auth.bearer import Bearer
from service.auth.signing_keys import (
    ALGORITHM,
    KEY_RING,
    LEEWAY_S,
    look_again,
    signing_key,
    verifying_keys,
)
from service.context import SETTINGS
from service.http.problems import Problem, ProblemType

if TYPE_CHECKING:
    from joserfc import jwt
    from joserfc.jwk import ECKey
    from joserfc.jws import JWSRegistry

INVALID_ACCESS_TOKEN = ProblemType(
    401,
    "invalid_token",
    "This access token is invalid or has expired.",
    {"WWW-Authenticate": 'Bearer error="invalid_token"'},
)

TOKEN_TYPE = "at+jwt"  # noqa: S105
# Ours are about 550 characters long; nothing longer is parsed.
TOKEN_MAX_LENGTH = 2048
# Verified tokens that are remembered, at about 1 KiB each.
VERIFIED_MAX = 16_384


_NEVER_VERIFIED: tuple[float, Bearer | None] = (0.0, None)


class _UnknownKeyError(Exception):
    """The token names a key that the ring has not."""

    def __init__(self, key_id: str) -> None:
        super().__init__()
        self.key_id = key_id


async def sign_access_token(app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID) -> str:
    """A token good for ``access_token_ttl_s``, or until its session ends, whichever is first."""
    key = await signing_key(app)
    from joserfc import jwt

    settings = app[SETTINGS]
    now = int(time.time())
    return jwt.encode(
        {"alg": ALGORITHM, "kid": key.kid, "typ": TOKEN_TYPE},
        {
            "iss": settings.token_issuer,
            "aud": settings.token_issuer,
            "sub": str(user_id),
            "sid": str(session_id),
            "iat": now,
            "exp": now + settings.access_token_ttl_s,
            "jti": str(uuid_utils.uuid7()),
        },
        key,
        registry=_registry(),
    )


@functools.cache
def _registry() -> "JWSRegistry":
    # Imported here, as in the functions that use it: 30 ms, which commands need not wait for.
    from joserfc.jws import JWSRegistry

    return JWSRegistry(algorithms=[ALGORITHM])


async def token_response(
    app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID, refresh_token: str
) -> dict[str, object]:
    """What a sign-in or a refresh answers (RFC 6749 §5.1)."""
    return {
        "access_token": await sign_access_token(app, user_id, session_id),
        "token_type": "bearer",
        "expires_in": app[SETTINGS].access_token_ttl_s,
        "refresh_token": refresh_token,
    }


def find_verified(app: web.Application, token: str) -> Bearer | None:
    """What the token says, if it was verified before and is good still.

    What a token says cannot change, so one that was verified is remembered until it expires or a
    key is revoked: 1 µs instead of 130. Whether its session is alive is asked of the database each
    time.
    """
    ring = app[KEY_RING]
    expires_at, bearer = ring.verified.get(token, _NEVER_VERIFIED)
    if expires_at < time.time():
        return None
    ring.hits += 1
    return bearer


async def verify_access_token(app: web.Application, token: str) -> Bearer:
    """Check signature, type, issuer, audience and times. Raises Problem 401 for any other token."""
    ring = app[KEY_RING]
    ring.misses += 1
    expires_at, bearer = await _verify(app, token)
    verified = ring.verified
    if len(verified) >= VERIFIED_MAX:
        # The one that was verified first: the others are further from their end, as a rule.
        del verified[next(iter(verified))]
    verified[token] = expires_at, bearer
    return bearer


async def _verify(app: web.Application, token: str) -> tuple[float, Bearer]:
    """What the token says, and until when (Unix time).

    The key is found by ``kid`` in our own ring only: ``jwk``, ``jku`` and ``x5u`` in a token are
    never followed, and ES256 is the only algorithm (RFC 8725 §3.1).
    """
    from joserfc import jws, jwt
    from joserfc.errors import JoseError

    keys = await verifying_keys(app)
    settings = app[SETTINGS]
    refused = Problem(INVALID_ACCESS_TOKEN)
    if len(token) > TOKEN_MAX_LENGTH:
        raise refused
    claims_are = jwt.JWTClaimsRegistry(
        leeway=LEEWAY_S,
        iss={"essential": True, "value": settings.token_issuer},
        aud={"essential": True, "value": settings.token_issuer},
        sub={"essential": True},
        exp={"essential": True},
    )

    def accept(header: Mapping[str, Any], claims: dict[str, Any]) -> tuple[float, Bearer]:
        if header.get("typ") != TOKEN_TYPE:
            raise refused
        claims_are.validate(claims)
        return (
            claims["exp"] + LEEWAY_S,
            Bearer(UUID(claims["sub"]), UUID(claims["sid"])),
        )

    try:
        try:
            decoded = _decode(token, keys)
        except _UnknownKeyError as error:
            # What no key could make good need not wait for one.
            unverified = jws.extract_compact(token.encode())
            accept(unverified.headers(), orjson.loads(unverified.payload))
            decoded = _decode(token, await look_again(app, error.key_id))
        return accept(decoded.header, decoded.claims)
    except (
        *(JoseError, _UnknownKeyError),
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
    ):
        # What a stranger may put into a token's three parts has no end; none of it is our fault.
        raise refused from None


def _decode(token: str, keys: "dict[str, ECKey]") -> "jwt.Token":
    """Header and claims of a token whose signature is by one of the keys."""
    from joserfc import jwt

    def find_key(signature: Any) -> "ECKey":
        key_id = signature.headers()["kid"]
        key = keys.get(key_id)
        if key is None:
            raise _UnknownKeyError(key_id)
        return key

    return jwt.decode(token, find_key, registry=_registry())
