"""Encryption of secrets that the database stores, with keys derived from SECRET_KEY.

While SECRET_KEY is being replaced, there are two keys: ``Settings.secret_keys``, the one that seals
first. Each of them opens.
"""

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class SealError(Exception):
    """The value was sealed with another key, purpose or row, or was altered or cut short."""


@functools.lru_cache(maxsize=64)
def derive_key(secret_key: str, purpose: str) -> bytes:
    """Derive a 32-byte key for one purpose (HKDF-SHA256, RFC 5869)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    kdf = HKDF(hashes.SHA256(), length=32, salt=None, info=f"shinkei {purpose}".encode())
    return kdf.derive(secret_key.encode())


def seal(secret_key: str, purpose: str, bound_to: str, plain: bytes) -> bytes:
    """Encrypt with AES-256-GCM and return nonce and ciphertext; ``bound_to`` names the row."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(secret_key, purpose).encrypt(nonce, plain, bound_to.encode())


def unseal(secret_keys: tuple[str, ...], purpose: str, bound_to: str, sealed: bytes) -> bytes:
    """Decrypt the result of ``seal`` with the first key that opens it. Raises SealError."""
    from cryptography.exceptions import InvalidTag

    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    for secret_key in secret_keys:
        try:
            return _cipher(secret_key, purpose).decrypt(nonce, ciphertext, bound_to.encode())
        except (InvalidTag, ValueError):  # ValueError if too little is left for a nonce
            continue
    raise SealError


def _cipher(secret_key: str, purpose: str) -> "AESGCM":
    # A slow import, which most commands do not need.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(derive_key(secret_key, purpose))
