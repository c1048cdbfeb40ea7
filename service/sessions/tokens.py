"""Opaque refresh tokens: each works once, and only its hash is stored."""

import base64
import hashlib
import hmac
import secrets

from service.sealing import derive_key


def new_refresh_token() -> str:
    """Return a session's first refresh token: 256 random bits as base64url."""
    return secrets.token_urlsafe(32)


def next_refresh_token(token: str, secret_key: str) -> str:
    """Derive the successor of ``token``.

    Derivation lets a client whose response was lost receive the same successor again. The database
    never has to store a usable token.
    """
    digest = hmac.digest(derive_key(secret_key, "refresh tokens"), token.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def hash_refresh_token(token: str) -> bytes:
    """Return the SHA-256 hash. 256 random bits cannot be guessed, so a slow hash adds nothing."""
    return hashlib.sha256(token.encode()).digest()
