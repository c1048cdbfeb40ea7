"""Refresh tokens: opaque, each good for one use, and stored only as a hash."""

import base64
import hashlib
import hmac
import secrets

from service.sealing import derive_key


def new_refresh_token() -> str:
    """256 random bits as base64url: the first of a session."""
    return secrets.token_urlsafe(32)


def next_refresh_token(token: str, secret_key: str) -> str:
    """The one token that may follow ``token``.

    It is derived rather than drawn, so that a client whose answer was lost can be given the same
    successor again without the database ever holding a token that could be used.
    """
    digest = hmac.digest(derive_key(secret_key, "refresh tokens"), token.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def hash_refresh_token(token: str) -> bytes:
    """SHA-256: with 256 random bits there is nothing to guess that a slow hash would protect."""
    return hashlib.sha256(token.encode()).digest()
