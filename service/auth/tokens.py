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

from service.auth.assurance import Assurance
from service.auth.bearer import Bearer
from service.auth.signing_keys import (
    ALGORITHM,
    KEY_RING,
    LEEWAY_S,
    reload_for_unknown_key,
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
# The detail of INVALID_ACCESS_TOKEN if the token is good but its session is not live.
SESSION_ENDED = "The session has ended. Sign in again."

TOKEN_TYPE = "at+jwt"  # noqa: S105
# RFC 9068 §2.2 requires the client that asked for the token. Ours have no registration, so all are
# the one that belongs to the service itself.
CLIENT_ID = "shinkei"
# Our own tokens are far shorter; longer ones are not parsed.
TOKEN_MAX_LENGTH = 2048
# Size of the cache of verified tokens.
VERIFIED_MAX = 16_384


_NEVER_VERIFIED: tuple[float, Bearer | None] = (0.0, None)


class _UnknownKeyError(Exception):
    """The token names a key that is not in the ring."""

    def __init__(self, key_id: str) -> None:
        super().__init__()
        self.key_id = key_id


async def sign_access_token(
    app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID, assurance: Assurance
) -> str:
    """Return a token that is valid for ``access_token_ttl_s``, or until its session ends.

    Its ``acr``, ``amr`` and ``auth_time`` say what the session proved when it was issued (RFC 9068
    §2.2.1). This service itself reads that from the database at each request.
    """
    key = await signing_key(app)
    from joserfc import jwt

    settings = app[SETTINGS]
    now = int(time.time())
    return jwt.encode(
        {"alg": ALGORITHM, "kid": key.kid, "typ": TOKEN_TYPE},
        {
            "iss": settings.token_issuer,
            "aud": settings.token_audience,
            "sub": str(user_id),
            "sid": str(session_id),
            "client_id": CLIENT_ID,
            "acr": f"aal{assurance.aal}",
            "amr": assurance.amr,
            "auth_time": int(assurance.proved_at.timestamp()),
            "iat": now,
            "exp": now + settings.access_token_ttl_s,
            "jti": str(uuid_utils.uuid7()),
        },
        key,
        registry=_registry(),
    )


@functools.cache
def _registry() -> "JWSRegistry":
    # A slow import, which most commands do not need.
    from joserfc.jws import JWSRegistry

    return JWSRegistry(algorithms=[ALGORITHM])


async def token_response(
    app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID, assurance: Assurance
) -> dict[str, object]:
    """Return the response body with a new access token (RFC 6749 §5.1), but no refresh token."""
    return {
        "access_token": await sign_access_token(app, user_id, session_id, assurance),
        "token_type": "bearer",
        "expires_in": app[SETTINGS].access_token_ttl_s,
    }


def find_verified(app: web.Application, token: str) -> Bearer | None:
    """Return the cached claims of a token that was verified before, or None.

    A token's claims never change, so they are cached until the token expires or a key is revoked.
    Callers still check on every request that the session has not ended.
    """
    ring = app[KEY_RING]
    expires_at, bearer = ring.verified.get(token, _NEVER_VERIFIED)
    if expires_at < time.time():
        return None
    ring.hits += 1
    return bearer


async def verify_access_token(app: web.Application, token: str) -> Bearer:
    """Check signature, type, issuer, audience and expiry. Raises Problem 401 if one is wrong.

    When the token was issued does not matter (RFC 7519 §4.1.6): the clock of the replica that did
    may be ahead, or ours may have been set back.
    """
    ring = app[KEY_RING]
    ring.misses += 1
    expires_at, bearer = await _verify(app, token)
    verified = ring.verified
    if len(verified) >= VERIFIED_MAX:
        # Drop the token that was verified first: it usually expires first, too.
        del verified[next(iter(verified))]
    verified[token] = expires_at, bearer
    return bearer


async def _verify(app: web.Application, token: str) -> tuple[float, Bearer]:
    """Return the Unix time until which the token is accepted, and its claims.

    ``kid`` selects a key in our own ring; ``jwk``, ``jku`` and ``x5u`` are ignored. ES256 is the
    only accepted algorithm (RFC 8725 §3.1).
    """
    from joserfc import jws, jwt
    from joserfc.errors import JoseError

    keys = await verifying_keys(app)
    settings = app[SETTINGS]
    refused = Problem(INVALID_ACCESS_TOKEN)
    if len(token) > TOKEN_MAX_LENGTH:
        raise refused
    claims_registry = jwt.JWTClaimsRegistry(
        leeway=LEEWAY_S,
        iss={"essential": True, "value": settings.token_issuer},
        aud={"essential": True, "value": settings.token_audience},
        sub={"essential": True},
        exp={"essential": True},
    )

    def accept(header: Mapping[str, Any], claims: dict[str, Any]) -> tuple[float, Bearer]:
        if header.get("typ") != TOKEN_TYPE:
            raise refused
        claims_registry.validate({name: value for name, value in claims.items() if name != "iat"})
        return (
            claims["exp"] + LEEWAY_S,
            Bearer(UUID(claims["sub"]), UUID(claims["sid"])),
        )

    try:
        try:
            decoded = _decode(token, keys)
        except _UnknownKeyError as error:
            # A token with invalid claims is refused without waiting for its key.
            unverified = jws.extract_compact(token.encode())
            accept(unverified.headers(), orjson.loads(unverified.payload))
            decoded = _decode(token, await reload_for_unknown_key(app, error.key_id))
        return accept(decoded.header, decoded.claims)
    except (
        *(JoseError, _UnknownKeyError),
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
    ):
        # A malformed token can raise any of these.
        raise refused from None


def _decode(token: str, keys: "dict[str, ECKey]") -> "jwt.Token":
    """Return header and claims after checking the signature with one of the keys."""
    from joserfc import jwt

    def find_key(signature: Any) -> "ECKey":
        key_id = signature.headers()["kid"]
        key = keys.get(key_id)
        if key is None:
            raise _UnknownKeyError(key_id)
        return key

    return jwt.decode(token, find_key, registry=_registry())
