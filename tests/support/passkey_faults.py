"""What is wrong with a credential in one thing, and the refusal of each.

Each fault is a change of one value that ``Authenticator`` makes, and has a twin: another value in
the same place, or the right one, that is accepted.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fido2 import cbor

from tests.support.authenticator import (
    BACKED_UP,
    BACKUP_ELIGIBLE,
    EXTENDED,
    ORIGIN,
    PRESENT,
    RP_ID,
    VERIFIED,
    Authenticator,
    Change,
    encoded,
)

Step = Literal["create", "get"]
# A second origin of the site, for a twin.
OTHER_ORIGIN = "https://other.example"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def unchanged(value: Any) -> Any:
    return value


class Fault(NamedTuple):
    """A change in one place, and the code of its refusal.

    ``twin`` is a change in the same place that is accepted. ``over_http`` is the code of a refusal
    that comes first there, because the body's schema excludes the value.
    """

    step: Step
    name: str
    place: str
    change: Change
    code: str
    twin: Change = unchanged
    over_http: str = ""

    def wrong(self, authenticator: Authenticator, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the credential with the fault."""
        return self._made(authenticator, options, self.change)

    def right(self, authenticator: Authenticator, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the twin."""
        return self._made(authenticator, options, self.twin)

    def _made(
        self, authenticator: Authenticator, options: Mapping[str, Any], change: Change
    ) -> dict[str, Any]:
        act = authenticator.create if self.step == "create" else authenticator.get
        return act(options, **{self.place: change})


def instead(value: Any) -> Change:
    return lambda _: value


def off(*flags: int) -> Change:
    return lambda given: given & ~sum(flags)


def on(*flags: int) -> Change:
    return lambda given: given | sum(flags)


def members(**changed: Any) -> Change:
    """Set members of an object; those that are None are left out."""
    return lambda given: {
        name: value for name, value in {**given, **changed}.items() if value is not None
    }


def response(**changed: Any) -> Change:
    """Set members of the credential's response."""
    change = members(**changed)
    return lambda given: {**given, "response": change(given["response"])}


def cose(**changed: Any) -> Change:
    """Set parameters of a COSE key, named by what they are for an elliptic curve."""
    labels = {"kty": 1, "alg": 3, "crv": -1, "x": -2, "y": -3}

    def change(given: dict[int, Any]) -> dict[int, Any]:
        return {**given, **{labels[name]: value for name, value in changed.items()}}

    return change


def respelled(text: str) -> str:
    """Return base64url that decodes to the same bytes, because its last character has spare bits."""
    assert len(text) % 4
    return text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) + 1]


def with_extensions(encoded_map: bytes) -> Change:
    """Add extensions to authenticator data, with their flag."""
    return lambda data: data[:32] + bytes([data[32] | EXTENDED]) + data[33:] + encoded_map


def _more(data: bytes) -> bytes:
    return data + b"\0"


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


# Client data, and what both steps check of the authenticator data.
_OF_BOTH: list[tuple[str, str, Change, str, Change]] = [
    ("challenge of another request", "challenge", instead(encoded(b"x" * 32)), "wrong_challenge", unchanged),
    ("challenge with padding", "challenge", lambda text: text + "=", "wrong_challenge", unchanged),
    ("no challenge", "challenge", instead(""), "wrong_challenge", unchanged),
    ("challenge that is no text", "challenge", instead(1), "malformed_credential", unchanged),
    ("another origin", "origin", instead("https://evil.example"), "wrong_origin", instead(OTHER_ORIGIN)),
    ("origin that begins alike", "origin", instead(f"{ORIGIN}.evil.example"), "wrong_origin", unchanged),
    ("origin below ours", "origin", instead(f"https://sub.{RP_ID}"), "wrong_origin", unchanged),
    ("origin without TLS", "origin", instead(f"http://{RP_ID}"), "wrong_origin", unchanged),
    ("origin of another port", "origin", instead(f"{ORIGIN}:8443"), "wrong_origin", unchanged),
    ("origin in capitals", "origin", instead(ORIGIN.upper()), "wrong_origin", unchanged),
    ("list of origins", "origin", instead([ORIGIN]), "malformed_credential", unchanged),
    ("frame of another origin", "client_data", members(crossOrigin=True), "cross_origin", members(crossOrigin=None)),
    ("crossOrigin as text", "client_data", members(crossOrigin="false"), "cross_origin", unchanged),
    ("page around the frame", "client_data", members(topOrigin="https://evil.example"), "wrong_top_origin", members(more="x")),
    ("page of ours around the frame", "client_data", members(crossOrigin=True, topOrigin=ORIGIN), "wrong_top_origin", unchanged),
    ("client data that is no JSON", "client_data_bytes", _cut, "malformed_credential", unchanged),
    ("client data and more", "client_data_bytes", lambda data: data + b"x", "malformed_credential", lambda data: data + b" "),
    ("client data that is no object", "client_data_bytes", instead(b"[]"), "malformed_credential", unchanged),
    ("client data that is no UTF-8", "client_data_bytes", lambda data: data[:-1] + b',"x":"\xff"}', "malformed_credential", lambda data: b"\xef\xbb\xbf" + data),
    ("site of another name", "rp_id", instead("evil.example"), "wrong_rp_id", unchanged),
    ("site above ours", "rp_id", instead("example"), "wrong_rp_id", unchanged),
    ("origin for a site", "rp_id", instead(ORIGIN), "wrong_rp_id", unchanged),
    ("nobody present", "flags", off(PRESENT), "not_present", on(2)),
    ("user not verified", "flags", off(VERIFIED), "not_verified", on(32)),
    ("backed up but not eligible", "flags", off(BACKUP_ELIGIBLE), "backed_up_but_not_eligible", off(BACKED_UP)),
    ("extensions announced but missing", "flags", on(EXTENDED), "malformed_credential", unchanged),
    ("extensions that are no map", "data", with_extensions(cbor.encode([1])), "malformed_credential", with_extensions(cbor.encode({"credProtect": 2}))),
    ("authenticator data and more", "data", _more, "malformed_credential", unchanged),
    ("no authenticator data", "data", instead(b""), "malformed_credential", unchanged),
    ("raw id of another passkey", "raw_id", instead(encoded(b"y" * 32)), "credential_id_mismatch", unchanged),
]  # fmt: skip
FAULTS = [
    *(
        Fault(step, name, place, change, code, twin)
        for step in ("create", "get")
        for name, place, change, code, twin in _OF_BOTH
        # An assertion without data has no member for it.
        if (step, name) != ("get", "no authenticator data")
    ),
    # Registration
    Fault("create", "type of an assertion", "type", instead("webauthn.get"), "wrong_type"),
    Fault("create", "no type", "type", instead(None), "wrong_type"),
    Fault("create", "another id in the data", "attested_id", instead(b"y" * 32), "credential_id_mismatch"),
    Fault("create", "id of 1024 bytes", "credential_id", instead(b"y" * 1024), "credential_id_too_long", instead(b"y" * 1023)),
    Fault("create", "id of 1024 bytes in the data", "attested_id", instead(b"y" * 1024), "credential_id_too_long"),
    Fault("create", "id in another spelling", "credential", lambda given: {**given, "id": respelled(given["id"]), "rawId": respelled(given["id"])}, "malformed_credential"),
    Fault("create", "id of a length that base64url cannot have", "credential", members(id="AAAAA", rawId="AAAAA"), "malformed_credential"),
    Fault("create", "empty id", "credential_id", instead(b""), "malformed_credential", instead(b"y"), "invalid_fields"),
    Fault("create", "id with padding", "credential", lambda given: {**given, "id": given["id"] + "=", "rawId": given["id"] + "="}, "malformed_credential", over_http="invalid_fields"),
    Fault("create", "another type of credential", "credential", members(type="password"), "malformed_credential", members(authenticatorAttachment=None), "invalid_fields"),
    Fault("create", "no response", "credential", members(response=None), "malformed_credential", members(clientExtensionResults=None), "invalid_fields"),
    Fault("create", "no attestation object", "credential", response(attestationObject=None), "malformed_credential", response(publicKeyAlgorithm=None), "invalid_fields"),
    Fault("create", "client data of 4 KiB", "client_data", members(more="x" * 4096), "malformed_credential", members(more="x" * 3500), "invalid_fields"),
    Fault("create", "transports that are no list", "transports", instead("usb"), "malformed_credential", instead([]), "invalid_fields"),
    Fault("create", "transport in capitals", "transports", instead(["USB"]), "malformed_credential", instead(["unknown-today"]), "invalid_fields"),
    Fault("create", "17 transports", "transports", instead(["usb"] * 17), "malformed_credential", instead(["usb"] * 16), "invalid_fields"),
    Fault("create", "attested data announced but missing", "data", lambda data: data[:37], "malformed_credential"),
    Fault("create", "attested data not announced", "flags", off(64), "malformed_credential"),
    Fault("create", "authenticator data cut in the key", "data", _cut, "malformed_credential"),
    Fault("create", "authenticator data cut in the id", "data", lambda data: data[:70], "malformed_credential"),
    Fault("create", "attestation object cut short", "attestation_bytes", _cut, "malformed_credential"),
    Fault("create", "attestation object and more", "attestation_bytes", _more, "malformed_credential"),
    Fault("create", "attestation object that is no map", "attestation", lambda given: list(given.values()), "malformed_credential"),
    Fault("create", "unknown format of attestation", "attestation", members(fmt="made-up"), "malformed_credential", members(fmt="packed", attStmt={"alg": -7, "sig": b"x"})),
    Fault("create", "statement of no attestation", "attestation", members(attStmt={"alg": -7}), "malformed_credential"),
    Fault("create", "no statement", "attestation", members(attStmt=None), "malformed_credential"),
    Fault("create", "authenticator data as text", "attestation", members(authData="x"), "malformed_credential"),
    Fault("create", "algorithm ES384", "cose", cose(alg=-35), "algorithm_not_offered", cose(alg=-7)),
    Fault("create", "algorithm Ed25519 of RFC 9864", "cose", cose(alg=-19), "algorithm_not_offered"),
    Fault("create", "SHA-1", "cose", cose(alg=-65535), "algorithm_not_offered"),
    Fault("create", "algorithm that is no number", "cose", cose(alg="ES256"), "malformed_credential"),
    Fault("create", "algorithm of another type of key", "cose", cose(alg=-8), "malformed_credential"),
    Fault("create", "another curve", "cose", cose(crv=2), "malformed_credential", cose(crv=1)),
    Fault("create", "short coordinate", "cose", lambda given: cose(x=given[-2][1:])(given), "malformed_credential"),
    Fault("create", "point beside the curve", "cose", lambda given: cose(y=_flipped(given[-3]))(given), "malformed_credential"),
    Fault("create", "coordinate as a sign", "cose", cose(y=True), "malformed_credential"),
    Fault("create", "key cut short", "public_key", _cut, "malformed_credential"),
    Fault("create", "parameter of the key twice", "public_key", lambda key: bytes([key[0] + 1]) + key[1:] + cbor.encode(1) + cbor.encode(2), "malformed_credential"),
    Fault("create", "number in more bytes than needed", "public_key", lambda key: key[:1] + b"\x18\x01" + key[2:], "malformed_credential"),
    Fault("create", "key of no certain length", "public_key", lambda key: b"\xbf" + key[1:] + b"\xff", "malformed_credential"),
    Fault("create", "key nested deeply", "public_key", lambda key: b"\x81" * 5000 + key, "malformed_credential"),
    # Assertion
    Fault("get", "type of a registration", "type", instead("webauthn.create"), "wrong_type"),
    Fault("get", "backup eligibility lost", "flags", off(BACKUP_ELIGIBLE, BACKED_UP), "backup_eligibility_changed", off(BACKED_UP)),
    Fault("get", "attested data announced", "flags", on(64), "malformed_credential"),
    Fault("get", "authenticator data cut short", "data", _cut, "malformed_credential"),
    Fault("get", "counter that does not rise", "count", lambda count: count - 1, "counter_fell", lambda count: count + 1),
    Fault("get", "counter that falls", "count", instead(1), "counter_fell", instead(2**32 - 1)),
    Fault("get", "counter that is lost", "count", instead(0), "counter_fell"),
    Fault("get", "signature of other bytes", "signed", _flipped, "bad_signature"),
    Fault("get", "signature with another bit", "signature", _flipped, "bad_signature"),
    Fault("get", "signature cut short", "signature", _cut, "bad_signature"),
    Fault("get", "signature and more", "signature", _more, "bad_signature"),
    Fault("get", "signature of another kind", "signature", instead(b"x" * 64), "bad_signature"),
    Fault("get", "client data changed after it was signed", "sent_client_data", lambda data: data + b" ", "bad_signature"),
    Fault("get", "counter changed after it was signed", "sent_data", lambda data: data[:36] + b"\xff", "bad_signature"),
    Fault("get", "empty signature", "signature", instead(b""), "bad_signature", over_http="invalid_fields"),
    Fault("get", "no signature", "credential", response(signature=None), "malformed_credential", response(userHandle=None), "invalid_fields"),
    Fault("get", "user handle of 65 bytes", "user_handle", instead(b"x" * 65), "malformed_credential", over_http="invalid_fields"),
]  # fmt: skip
