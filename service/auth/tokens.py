"""Access tokens: ES256-signed JWTs (RFC 7519, RFC 9068), and the keys that sign them.

ES256 rather than Ed25519, because every gateway and library verifies it; the name ``Ed25519``
(RFC 9864) is still too new for many of them.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
import orjson
import uuid_utils.compat as uuid_utils
from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from service.auth import queries
from service.database import read, write
from service.errors import Problem, not_signed_in
from service.keys import KEY_RING, SETTINGS
from service.logs import log
from service.sealing import SealError, seal, unseal
from service.settings import SettingsError

ALGORITHM = "ES256"
TOKEN_TYPE = "at+jwt"  # noqa: S105
# Ours are about 550 characters long; nothing longer is parsed.
TOKEN_MAX_LENGTH = 2048
LEEWAY_S = 10
_PURPOSE = "signing keys"
_REGISTRY = JWSRegistry(algorithms=[ALGORITHM])


class Bearer(NamedTuple):
    """What a verified access token says: whose it is, and in which session."""

    user_id: uuid.UUID
    session_id: uuid.UUID


@dataclass(slots=True)
class KeyRing:
    """The newest key signs; all of them verify. Empty until the database could be read."""

    keys: dict[str, ECKey] = field(default_factory=dict)
    newest: ECKey | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


async def key_ring_context(app: web.Application) -> AsyncIterator[None]:
    """Load the keys at start where the database is migrated, at the first request otherwise."""
    app[KEY_RING] = KeyRing()
    try:
        await _load_keys(app)
    except Problem as error:
        log.warning("signing keys not loaded yet", cause=type(error.__cause__).__name__)
    yield


async def public_keys(app: web.Application) -> list[dict[str, Any]]:
    """The verifying keys as a JWK set's members (RFC 7517)."""
    await _load_keys(app)
    return [
        {**key.as_dict(private=False), "use": "sig", "alg": ALGORITHM}
        for key in app[KEY_RING].keys.values()
    ]


async def sign_access_token(app: web.Application, user_id: uuid.UUID, session_id: uuid.UUID) -> str:
    """A token good for ``access_token_ttl_s``, or until its session ends, whichever is first."""
    key = await _load_keys(app)
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
        registry=_REGISTRY,
    )


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


async def verify_access_token(app: web.Application, token: str) -> Bearer:
    """Check signature, type, issuer, audience and times. Raises Problem 401 for any other token.

    The key is found by ``kid`` in our own ring only: ``jwk``, ``jku`` and ``x5u`` in a token are
    never followed, and ES256 is the only algorithm (RFC 8725 §3.1).
    """
    await _load_keys(app)
    ring = app[KEY_RING]
    settings = app[SETTINGS]
    refused = not_signed_in("The access token is not valid, or no longer.", "invalid_token")
    if len(token) > TOKEN_MAX_LENGTH:
        raise refused
    claims_are = jwt.JWTClaimsRegistry(
        # Replicas' clocks differ a little.
        leeway=LEEWAY_S,
        iss={"essential": True, "value": settings.token_issuer},
        aud={"essential": True, "value": settings.token_issuer},
        sub={"essential": True},
        exp={"essential": True},
    )
    try:
        decoded = jwt.decode(
            token,
            lambda signature: ring.keys[signature.headers()["kid"]],
            registry=_REGISTRY,
        )
        if decoded.header.get("typ") != TOKEN_TYPE:
            raise refused
        claims_are.validate(decoded.claims)
        return Bearer(uuid.UUID(decoded.claims["sub"]), uuid.UUID(decoded.claims["sid"]))
    except (JoseError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # What a stranger may put into a token's three parts has no end; none of it is our fault.
        raise refused from None


async def _load_keys(app: web.Application) -> ECKey:
    """The signing key; on first use, read from the database or made there.

    Raises Problem 503 while the database cannot be read, and SettingsError where SECRET_KEY is not
    the one that the keys were stored under.
    """
    ring = app[KEY_RING]
    if ring.newest is not None:
        return ring.newest
    secret_key = app[SETTINGS].secret_key
    async with ring.loading:
        if ring.newest is not None:
            return ring.newest
        rows = await read(app, queries.list_signing_keys) or await write(
            app, _create_first_key, secret_key
        )
        keys = [_decrypt_key(row, secret_key) for row in rows]
        ring.keys = {str(key.kid): key for key in keys}
        ring.newest = keys[0]
    return ring.newest


async def _create_first_key(conn: Any, secret_key: str) -> list[asyncpg.Record]:
    """Make a key unless another replica just did; the table's lock lets one of them through."""
    await queries.lock_signing_keys(conn)
    rows = await queries.list_signing_keys(conn)
    if rows:
        return rows
    key = ECKey.generate_key("P-256", auto_kid=True)
    await queries.insert_signing_key(conn, str(key.kid), _encrypt_key(key, secret_key))
    return await queries.list_signing_keys(conn)


def _encrypt_key(key: ECKey, secret_key: str) -> bytes:
    return seal(secret_key, _PURPOSE, str(key.kid), orjson.dumps(key.as_dict(private=True)))


def _decrypt_key(row: asyncpg.Record, secret_key: str) -> ECKey:
    try:
        plain = unseal(secret_key, _PURPOSE, row["id"], row["encrypted_key"])
    except SealError:
        raise SettingsError(
            "SECRET_KEY: expected the one that this database's signing keys were stored under"
        ) from None
    return ECKey.import_key(orjson.loads(plain))
