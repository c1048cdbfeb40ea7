"""Refresh tokens: opaque, and stored only as a hash."""

import hashlib
import secrets


def new_refresh_token() -> str:
    """256 random bits as base64url."""
    return secrets.token_urlsafe(32)


def hash_refresh_token(token: str) -> bytes:
    """SHA-256: with 256 random bits there is nothing to guess that a slow hash would protect."""
    return hashlib.sha256(token.encode()).digest()
