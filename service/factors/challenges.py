"""Challenges: of sign-ins that need a second factor, and of passkeys.

A sign-in's challenge is a row, because its tries are counted. The one of a passkey is not stored
when it is issued, so that anyone may ask for any number of them: its id is the challenge itself,
sealed, with the time at which it expires. It is noted once it has been accepted, so it works once.
All times are the database's, because the clocks of two replicas may differ by minutes.
"""

import base64
import hashlib
import secrets
import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from aiohttp import web

from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import read
from service.factors import challenge_queries
from service.factors.webauthn import encode
from service.http.problems import Problem, ProblemType
from service.sealing import SealError, seal, unseal

TTL_S = 5 * 60
# Longer than the clocks of replicas may differ, so that none takes a used one.
USED_FOR_S = 60 * 60
# Of a sign-in that needs a second factor.
TRIES = 5
# Sign-ins of an account that may be in progress at once; older ones end.
IN_PROGRESS_MAX = 10
_CHALLENGE_BYTES = 32
_PURPOSE = "passkey challenges"
_EXPIRES_AT = struct.Struct(">d")
# What a passkey's challenge is for. A registration also names its session.
SIGN_IN = "sign-in"
REGISTRATION = "registration"


class PasskeyChallenge(NamedTuple):
    """``id`` is for the client to send back, ``value`` for its authenticator to sign."""

    id: str
    value: bytes
    expires_at: datetime


def new_token() -> str:
    """Return the challenge of a sign-in: 256 random bits as base64url."""
    return secrets.token_urlsafe(_CHALLENGE_BYTES)


def hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def passkey_challenge_of(token: str) -> bytes:
    """Return what a passkey signs to be the second factor of a sign-in. It works once, too."""
    return hashlib.sha256(b"passkey " + token.encode()).digest()


async def new_passkey_challenge(app: web.Application, purpose: str) -> PasskeyChallenge:
    """Return a challenge for one purpose, such as SIGN_IN."""
    value = secrets.token_bytes(_CHALLENGE_BYTES)
    expires_at = await read(app, challenge_queries.get_time) + timedelta(seconds=TTL_S)
    plain = _EXPIRES_AT.pack(expires_at.timestamp()) + value
    sealed = seal(app[SETTINGS].secret_key, _PURPOSE, purpose, plain)
    return PasskeyChallenge(encode(sealed), value, expires_at)


def open_passkey_challenge(
    app: web.Application, challenge_id: str, purpose: str, refusal: ProblemType
) -> PasskeyChallenge:
    """Return the challenge of the id. Raises ``refusal`` if it is not for this purpose."""
    try:
        sealed = base64.urlsafe_b64decode(challenge_id + "=" * (-len(challenge_id) % 4))
        plain = unseal(app[SETTINGS].secret_keys, _PURPOSE, purpose, sealed)
    except (ValueError, SealError):
        raise Problem(refusal) from None
    # Python ignores characters that base64 does not have, and bits that are to spare.
    if encode(sealed) != challenge_id:
        raise Problem(refusal)
    (expires_at,) = _EXPIRES_AT.unpack(plain[: _EXPIRES_AT.size])
    value = plain[_EXPIRES_AT.size :]
    return PasskeyChallenge(challenge_id, value, datetime.fromtimestamp(expires_at, UTC))


async def use_passkey_challenge(
    conn: Connection, challenge: PasskeyChallenge, refusal: ProblemType
) -> None:
    """Use up the challenge. Raises ``refusal`` if it has been used, or has expired."""
    hashed = hashlib.sha256(challenge.value).digest()
    if not await challenge_queries.use_challenge(conn, hashed, challenge.expires_at, USED_FOR_S):
        raise Problem(refusal)
