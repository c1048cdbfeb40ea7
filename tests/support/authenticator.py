"""A software authenticator with its browser, that can do any one thing wrong.

It takes the options that the service gives, and returns what ``toJSON()`` returns of the credential
(WebAuthn Level 3). Each value that it makes passes through its change, if one of that name is given:
``create(options, origin=lambda origin: "https://evil.example")``.
"""

import functools
import hashlib
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fido2 import cbor
from fido2.cose import CoseKey

RP_ID, ORIGIN = "app.example", "https://app.example"
ES256, EDDSA, RS256 = -7, -8, -257
PRESENT, VERIFIED, BACKUP_ELIGIBLE, BACKED_UP, ATTESTED, EXTENDED = 1, 4, 8, 16, 64, 128
AAGUID = bytes.fromhex("bada5566a7aa401fbd9645619a55120d")
Change = Callable[..., Any]


def encoded(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "==")


@functools.cache
def _rsa_key() -> rsa.RSAPrivateKey:
    """Generate a key once, because that is slow."""
    return rsa.generate_private_key(65537, 2048)


_PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_KEYS: dict[int, Callable[[], _PrivateKey]] = {
    ES256: lambda: ec.generate_private_key(ec.SECP256R1()),
    EDDSA: ed25519.Ed25519PrivateKey.generate,
    RS256: _rsa_key,
}


class Authenticator:
    """Holds one passkey. Its counter rises from ``count`` with each use, unless it is synced (0)."""

    def __init__(self, algorithm: int = ES256, *, origin: str = ORIGIN, count: int = 5) -> None:
        self.origin = origin
        self.count = count
        self.credential_id = os.urandom(32)
        self.user_handle = os.urandom(16)
        self.algorithm = algorithm
        self._key = _KEYS[algorithm]()

    def create(self, options: Mapping[str, Any], **changes: Change) -> dict[str, Any]:
        """Return the RegistrationResponseJSON for creation options."""
        at = functools.partial(_at, changes)
        self.user_handle = decoded(options["user"]["id"])
        cose = CoseKey.for_alg(self.algorithm).from_cryptography_key(self._key.public_key())
        key = at("public_key", cbor.encode(at("cose", dict(cose))))
        credential_id = at("credential_id", self.credential_id)
        attested_id = at("attested_id", credential_id)
        attested = AAGUID + len(attested_id).to_bytes(2, "big") + attested_id + key
        data = self._data(at, options["rp"]["id"], ATTESTED, attested)
        attestation = at("attestation", {"fmt": "none", "attStmt": {}, "authData": data})
        response = {
            "clientDataJSON": encoded(self._client_data(at, "webauthn.create", options)),
            "attestationObject": encoded(at("attestation_bytes", cbor.encode(attestation))),
            "transports": at("transports", ["internal", "hybrid"]),
            # Browsers send more than the service reads.
            "authenticatorData": encoded(data),
            "publicKeyAlgorithm": self.algorithm,
        }
        return _credential(at, credential_id, response)

    def get(self, options: Mapping[str, Any], **changes: Change) -> dict[str, Any]:
        """Return the AuthenticationResponseJSON for request options."""
        at = functools.partial(_at, changes)
        self.count += self.count > 0
        data = self._data(at, options["rpId"], 0, b"")
        client_data = self._client_data(at, "webauthn.get", options)
        signed = at("signed", data + hashlib.sha256(client_data).digest())
        response = {
            "clientDataJSON": encoded(at("sent_client_data", client_data)),
            "authenticatorData": encoded(at("sent_data", data)),
            "signature": encoded(at("signature", self._sign(signed))),
            "userHandle": encoded(at("user_handle", self.user_handle)),
        }
        return _credential(at, at("credential_id", self.credential_id), response)

    def _client_data(self, at: Change, type_: str, options: Mapping[str, Any]) -> bytes:
        members = {
            "type": at("type", type_),
            "challenge": at("challenge", options["challenge"]),
            "origin": at("origin", self.origin),
            "crossOrigin": False,
        }
        text = json.dumps(at("client_data", members), separators=(",", ":"))
        changed: bytes = at("client_data_bytes", text.encode())
        return changed

    def _data(self, at: Change, rp_id: str, more: int, attested: bytes) -> bytes:
        flags = at("flags", PRESENT | VERIFIED | BACKUP_ELIGIBLE | BACKED_UP | more)
        head = hashlib.sha256(at("rp_id", rp_id).encode()).digest() + bytes([flags])
        changed: bytes = at("data", head + at("count", self.count).to_bytes(4, "big") + attested)
        return changed

    def _sign(self, message: bytes) -> bytes:
        match self._key:
            case ec.EllipticCurvePrivateKey():
                return self._key.sign(message, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPrivateKey():
                return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return self._key.sign(message)


def _credential(at: Change, credential_id: bytes, response: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = at(
        "credential",
        {
            "id": at("id", encoded(credential_id)),
            "rawId": at("raw_id", encoded(credential_id)),
            "type": "public-key",
            "response": response,
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {"credProps": {"rk": True}},
        },
    )
    return changed


def _at(changes: Mapping[str, Change], name: str, value: Any) -> Any:
    return changes[name](value) if name in changes else value
