"""Passkeys: what browsers are asked, and the checks of what they send (WebAuthn Level 3).

The steps are those of §7.1 and §7.2; this service's own policy comes last. fido2 reads CBOR and
checks signatures. What it accepts beyond the standard is refused here.
"""

import base64
import codecs
import hashlib
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from service.settings import Settings, has_passkeys

if TYPE_CHECKING:
    from fido2.cose import CoseKey

ES256, EDDSA, RS256 = -7, -8, -257
# In the order of preference. Nearly all have the first. Windows Hello has RS256 on some machines.
ALGORITHMS = (ES256, EDDSA, RS256)
# How long the browser waits for its user: the shortest time that §15.1 recommends.
TIMEOUT_S = 300
# §4, "credential ID".
CREDENTIAL_ID_MAX_BYTES = 1023
# The most that is read of each member, several times what browsers send: the work grows faster
# than the size. An attestation with certificates, which is not asked for, may have 6 KiB.
CLIENT_DATA_MAX_BYTES = 4096
ATTESTATION_MAX_BYTES = 8192
AUTHENTICATOR_DATA_MAX_BYTES = 1024
# An RSA key of 4096 bits signs with 512.
SIGNATURE_MAX_BYTES = 1024
# §5.4.3.
USER_HANDLE_MAX_BYTES = 64
TRANSPORTS_MAX = 16

# The refusals: a stable code, and what it says to people.
REFUSALS = {
    "malformed_credential": "This is not a credential as WebAuthn describes it.",
    "wrong_type": "This is the response to another kind of request.",
    "wrong_challenge": "This is the response to another challenge.",
    "wrong_origin": "This passkey was used on a page of another origin.",
    "cross_origin": "This passkey was used in a frame of another page.",
    "wrong_top_origin": "This passkey was used in a frame of a page of another origin.",
    "wrong_rp_id": "This passkey belongs to another site.",
    "not_present": "The authenticator did not confirm that a user was present.",
    "not_verified": "The authenticator did not verify its user, by a PIN or by biometrics.",
    "algorithm_not_offered": "The key is of an algorithm that was not asked for.",
    "backed_up_but_not_eligible": "The passkey is backed up, but says that it never can be.",
    "backup_eligibility_changed": "Whether the passkey can be backed up has changed.",
    "credential_id_too_long": "The passkey's id is longer than 1023 bytes.",
    "credential_id_mismatch": "The ids of the passkey differ.",
    "bad_signature": "The signature is wrong.",
    "counter_fell": "The passkey's counter did not rise. There may be a copy of the passkey.",
}

# Formats of attestation statements (§8 and the IANA registry). We ask for "none" and trust none of
# them. Some clients send one nevertheless: its statement is ignored, which makes it equal to none.
_IGNORED_FORMATS = {
    "android-key",
    "android-safetynet",
    "apple",
    "compound",
    "fido-u2f",
    "packed",
    "tpm",
}
_USER_PRESENT, _USER_VERIFIED, _BACKUP_ELIGIBLE, _BACKED_UP = 0x01, 0x04, 0x08, 0x10
_ATTESTED, _EXTENDED = 0x40, 0x80
_RP_ID_HASH_BYTES, _AAGUID_BYTES = 32, 16
_HEAD_BYTES = _RP_ID_HASH_BYTES + 1 + 4
_BASE64URL = re.compile("[A-Za-z0-9_-]*")
_TRANSPORT = re.compile("[a-z0-9-]{1,32}")


class PasskeyRefused(Exception):
    """A credential is refused. ``code`` is one of REFUSALS."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail or REFUSALS[code]
        super().__init__(self.detail)


class RelyingParty(NamedTuple):
    """The site that passkeys belong to, and the origins of the pages that may use them."""

    id: str
    origins: frozenset[str]


class Credential(NamedTuple):
    """A passkey that a browser may use, and how it reaches the authenticator."""

    credential_id: bytes
    transports: Sequence[str] = ()


class NewPasskey(NamedTuple):
    """A passkey that a registration made. ``public_key`` is a COSE key in CBOR (RFC 9052 §7)."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    backup_eligible: bool
    backed_up: bool
    transports: list[str]
    aaguid: uuid.UUID


class Passkey(NamedTuple):
    """What is stored of a passkey and compared with the next assertion."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    backup_eligible: bool


class Assertion(NamedTuple):
    """What a valid assertion says. ``user_handle`` is None if the client sent none."""

    sign_count: int
    backed_up: bool
    user_handle: bytes | None


class _AuthenticatorData(NamedTuple):
    """Authenticator data (§6.1). ``rest`` is what follows the flags and the counter."""

    flags: int
    sign_count: int
    rest: bytes


def relying_party(settings: Settings) -> RelyingParty | None:
    """Return the site that passkeys belong to, or None if no page of ours could use them."""
    origins = settings.rp_origins or frozenset({settings.public_origin})
    if settings.rp_id:
        return RelyingParty(settings.rp_id, origins)
    if has_passkeys(settings.public_origin):
        return RelyingParty(urlsplit(settings.public_origin).hostname or "", origins)
    return None


def creation_options(
    rp: RelyingParty,
    *,
    user_handle: bytes,
    email: str,
    display_name: str,
    challenge: bytes,
    exclude: Sequence[bytes],
) -> dict[str, Any]:
    """Return the argument of parseCreationOptionsFromJSON, for a passkey that needs no name.

    The authenticator makes none if it has one of ``exclude``, the ids of the account's passkeys.
    """
    return {
        # Deprecated, but required: §5.4.1 suggests the id.
        "rp": {"id": rp.id, "name": rp.id},
        "user": {"id": encode(user_handle), "name": email, "displayName": display_name},
        "challenge": encode(challenge),
        "pubKeyCredParams": [{"type": "public-key", "alg": each} for each in ALGORITHMS],
        "timeout": TIMEOUT_S * 1000,
        "excludeCredentials": [{"type": "public-key", "id": encode(each)} for each in exclude],
        "authenticatorSelection": {
            "residentKey": "required",
            # For clients of Level 1.
            "requireResidentKey": True,
            "userVerification": "required",
        },
        "attestation": "none",
    }


def request_options(
    rp: RelyingParty, challenge: bytes, allow: Sequence[Credential]
) -> dict[str, Any]:
    """Return the argument of parseRequestOptionsFromJSON.

    Without ``allow``, the user chooses among all passkeys for this site.
    """
    return {
        "challenge": encode(challenge),
        "timeout": TIMEOUT_S * 1000,
        "rpId": rp.id,
        "allowCredentials": [
            {
                "type": "public-key",
                "id": encode(each.credential_id),
                **({"transports": list(each.transports)} if each.transports else {}),
            }
            for each in allow
        ],
        "userVerification": "required",
    }


def credential_id_of(credential: Mapping[str, Any]) -> bytes:
    """Return the id of a RegistrationResponseJSON or AuthenticationResponseJSON.

    Raises PasskeyRefused.
    """
    text = credential.get("id")
    if credential.get("type") != "public-key":
        raise _malformed("type")
    credential_id = _decode(text, "id", CREDENTIAL_ID_MAX_BYTES, "credential_id_too_long")
    if not credential_id:
        raise _malformed("id")
    if credential.get("rawId") != text:
        raise PasskeyRefused("credential_id_mismatch")
    return credential_id


def verify_registration(
    rp: RelyingParty, challenge: bytes, credential: Mapping[str, Any]
) -> NewPasskey:
    """Return the passkey of a RegistrationResponseJSON (§7.1). Raises PasskeyRefused."""
    credential_id = credential_id_of(credential)
    response = _response_of(credential)
    client_data = _bytes_of(response, "clientDataJSON", CLIENT_DATA_MAX_BYTES)
    claimed = _read_client_data(rp, "webauthn.create", challenge, client_data)
    attestation = _bytes_of(response, "attestationObject", ATTESTATION_MAX_BYTES)
    data = _read_authenticator_data(rp, _read_attestation(attestation))
    if not data.flags & _ATTESTED:
        raise _malformed("attestationObject")
    length_at = _AAGUID_BYTES + 2
    aaguid, length = data.rest[:_AAGUID_BYTES], data.rest[_AAGUID_BYTES:length_at]
    key_at = length_at + int.from_bytes(length, "big")
    if len(data.rest) <= key_at:
        raise _malformed("attestationObject")
    if key_at - length_at > CREDENTIAL_ID_MAX_BYTES:
        raise PasskeyRefused("credential_id_too_long")
    if data.rest[length_at:key_at] != credential_id:
        raise PasskeyRefused("credential_id_mismatch")
    public_key, extensions = _split_cbor(data.rest[key_at:], "attestationObject")
    _check_extensions(data.flags, extensions, "attestationObject")
    _read_key(public_key)
    _check_policy(claimed, data.flags)
    return NewPasskey(
        credential_id,
        public_key,
        data.sign_count,
        bool(data.flags & _BACKUP_ELIGIBLE),
        bool(data.flags & _BACKED_UP),
        _transports_of(response),
        uuid.UUID(bytes=aaguid),
    )


def verify_assertion(
    rp: RelyingParty, challenge: bytes, credential: Mapping[str, Any], stored: Passkey
) -> Assertion:
    """Return what an AuthenticationResponseJSON of the stored passkey says (§7.2).

    The caller compares the user handle with the account's. Raises PasskeyRefused.
    """
    if credential_id_of(credential) != stored.credential_id:
        raise PasskeyRefused("credential_id_mismatch")
    response = _response_of(credential)
    user_handle = None
    if response.get("userHandle") is not None:
        user_handle = _bytes_of(response, "userHandle", USER_HANDLE_MAX_BYTES)
    client_data = _bytes_of(response, "clientDataJSON", CLIENT_DATA_MAX_BYTES)
    claimed = _read_client_data(rp, "webauthn.get", challenge, client_data)
    signed = _bytes_of(response, "authenticatorData", AUTHENTICATOR_DATA_MAX_BYTES)
    data = _read_authenticator_data(rp, signed)
    if data.flags & _ATTESTED:
        raise _malformed("authenticatorData")
    _check_extensions(data.flags, data.rest, "authenticatorData")
    if bool(data.flags & _BACKUP_ELIGIBLE) != stored.backup_eligible:
        raise PasskeyRefused("backup_eligibility_changed")
    signature = _bytes_of(response, "signature", SIGNATURE_MAX_BYTES)
    message = signed + hashlib.sha256(client_data).digest()
    if not _is_signature(_read_key(stored.public_key), message, signature):
        raise PasskeyRefused("bad_signature")
    # Passkeys that are synced send 0.
    if (data.sign_count or stored.sign_count) and data.sign_count <= stored.sign_count:
        raise PasskeyRefused("counter_fell")
    _check_policy(claimed, data.flags)
    return Assertion(data.sign_count, bool(data.flags & _BACKED_UP), user_handle)


def encode(value: bytes) -> str:
    """Return bytes as WebAuthn's JSON has them: base64url without padding (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _malformed(member: str) -> PasskeyRefused:
    return PasskeyRefused(
        "malformed_credential", f"{REFUSALS['malformed_credential']} See its {member}."
    )


def _decode(text: Any, member: str, limit: int, too_long: str = "malformed_credential") -> bytes:
    """Decode base64url. Raises PasskeyRefused, also for another spelling of the same bytes."""
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise _malformed(member)
    if len(text) * 3 // 4 > limit:
        raise PasskeyRefused(too_long)
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise _malformed(member) from None
    if encode(value) != text:
        raise _malformed(member)
    return value


def _response_of(credential: Mapping[str, Any]) -> Mapping[str, Any]:
    response = credential.get("response")
    if not isinstance(response, Mapping):
        raise _malformed("response")
    return response


def _bytes_of(response: Mapping[str, Any], member: str, limit: int) -> bytes:
    return _decode(response.get(member), member, limit)


def _transports_of(response: Mapping[str, Any]) -> list[str]:
    """Return the transports in order, each once, with those that are unknown today (§5.2.1)."""
    transports = response.get("transports")
    if transports is None:
        return []
    if not isinstance(transports, list) or len(transports) > TRANSPORTS_MAX:
        raise _malformed("transports")
    for each in transports:
        if not isinstance(each, str) or not _TRANSPORT.fullmatch(each):
            raise _malformed("transports")
    return sorted(set(transports))


def _read_client_data(
    rp: RelyingParty, expected_type: str, challenge: bytes, client_data: bytes
) -> dict[str, Any]:
    try:
        claimed = orjson.loads(client_data.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        raise _malformed("clientDataJSON") from None
    if not isinstance(claimed, dict):
        raise _malformed("clientDataJSON")
    if claimed.get("type") != expected_type:
        raise PasskeyRefused("wrong_type")
    sent, origin = claimed.get("challenge"), claimed.get("origin")
    if not isinstance(sent, str) or not isinstance(origin, str):
        raise _malformed("clientDataJSON")
    if sent != encode(challenge):
        raise PasskeyRefused("wrong_challenge")
    if origin not in rp.origins:
        raise PasskeyRefused("wrong_origin")
    return claimed


def _check_policy(claimed: Mapping[str, Any], flags: int) -> None:
    """Check what the standard leaves to the service, when all that it requires is right."""
    # Our pages are in no frame.
    if claimed.get("topOrigin") is not None:
        raise PasskeyRefused("wrong_top_origin")
    if claimed.get("crossOrigin") not in (None, False):
        raise PasskeyRefused("cross_origin")
    if not flags & _USER_VERIFIED:
        raise PasskeyRefused("not_verified")


def _read_attestation(attestation: bytes) -> bytes:
    """Return the authenticator data in an attestation object."""
    match _read_cbor(attestation, "attestationObject"):
        case {"fmt": "none", "attStmt": dict(statement), "authData": bytes(data)} if not statement:
            return data
        case {"fmt": str(name), "attStmt": dict() | list(), "authData": bytes(data)}:
            if name in _IGNORED_FORMATS:
                return data
    raise _malformed("attestationObject")


def _read_authenticator_data(rp: RelyingParty, data: bytes) -> _AuthenticatorData:
    """Check what is the same in a registration and an assertion."""
    if len(data) < _HEAD_BYTES:
        raise _malformed("authenticator data")
    if data[:_RP_ID_HASH_BYTES] != hashlib.sha256(rp.id.encode()).digest():
        raise PasskeyRefused("wrong_rp_id")
    flags = data[_RP_ID_HASH_BYTES]
    if not flags & _USER_PRESENT:
        raise PasskeyRefused("not_present")
    if flags & _BACKED_UP and not flags & _BACKUP_ELIGIBLE:
        raise PasskeyRefused("backed_up_but_not_eligible")
    count = int.from_bytes(data[_RP_ID_HASH_BYTES + 1 : _HEAD_BYTES], "big")
    return _AuthenticatorData(flags, count, data[_HEAD_BYTES:])


def _check_extensions(flags: int, encoded: bytes, member: str) -> None:
    """Refuse extensions if their flag is not set, and anything after them. We ask for none."""
    if bool(flags & _EXTENDED) != bool(encoded):
        raise _malformed(member)
    if encoded and not isinstance(_read_cbor(encoded, member), dict):
        raise _malformed(member)


def _split_cbor(encoded: bytes, member: str) -> tuple[bytes, bytes]:
    """Return the first item of CBOR, and what follows it."""
    from fido2 import cbor

    try:
        # fido2 takes a string that is cut short for a shorter one, which then ends in this byte.
        item, rest = cbor.decode_from(encoded + b"\0")
        size = len(encoded) + 1 - len(rest)
        # In CTAP2's CBOR, keys are not repeated, and lengths and numbers have no bytes to spare.
        is_strict = size <= len(encoded) and len(cbor.encode(item)) == size
    except (ValueError, TypeError, LookupError, struct.error, RecursionError):
        is_strict = False
    if not is_strict:
        raise _malformed(member)
    return encoded[:size], encoded[size:]


def _read_cbor(encoded: bytes, member: str) -> Any:
    from fido2 import cbor

    item, rest = _split_cbor(encoded, member)
    if rest:
        raise _malformed(member)
    return cbor.decode(item)


def _read_key(encoded: bytes) -> "CoseKey":
    """Return a complete public key of an algorithm that we offer. Raises PasskeyRefused."""
    from fido2.cose import CoseKey

    key = _read_cbor(encoded, "public key")
    match key:
        case {1: 2, 3: -7, -1: 1, -2: bytes(x), -3: bytes(y)} if len(x) == len(y) == 32:
            pass
        case {1: 1, 3: -8, -1: 6, -2: bytes(x)} if len(x) == 32:
            pass
        case {1: 3, 3: -257, -1: bytes(n), -2: bytes(e)} if 256 <= len(n) <= 512 and len(e) <= 4:
            pass
        case {3: int(algorithm)} if algorithm not in ALGORITHMS:
            raise PasskeyRefused("algorithm_not_offered")
        case _:
            raise _malformed("public key")
    parsed = CoseKey.parse(key)
    # Raises if the key is no point of its curve. There is no signature of no bytes.
    _is_signature(parsed, b"", b"")
    return parsed


def _is_signature(key: "CoseKey", message: bytes, signature: bytes) -> bool:
    """Return whether the signature is right. Raises PasskeyRefused if the key is no point."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        key.verify(message, signature)
    except InvalidSignature:
        return False
    except (ValueError, UnsupportedAlgorithm):
        raise _malformed("public key") from None
    return True
