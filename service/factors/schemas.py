"""Schemas of second factors and passkeys."""

from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from service.factors import totp
from service.factors.fields import one_time_code, registration_credential
from service.http import examples
from service.http.descriptions import Shape, array_of, nullable, object_of
from service.http.fields import DisplayName, Text, Timestamp
from service.http.row_schema import RowSchema

NAME_MAX_LENGTH = 100
# Longer than any challenge.
CHALLENGE_MAX_LENGTH = 512
TYPES = ("totp", "passkey")


_TEXT = {"type": "string"}
_CODES = {
    **array_of(_TEXT),
    "description": "Each signs in once, in place of a second factor. They are shown only now.",
}
NEW_CODES = {
    **nullable(_CODES),
    "description": "If this is the first second factor: codes that each sign in once, in place of a"
    " second factor. They are shown only now.",
}


class FactorSchema(RowSchema):
    """A second factor: an app that makes one-time codes, or a passkey."""

    id = fields.UUID()
    type = fields.String(validate=validate.OneOf(TYPES))
    name = fields.String()
    created_at = Timestamp()
    last_used_at = Timestamp(allow_none=True)


class StartTotpSchema(Schema):
    """``POST /users/me/factors/totp``."""

    name = DisplayName(1, NAME_MAX_LENGTH, load_default="Authenticator app")


class ConfirmTotpSchema(Schema):
    """``POST /users/me/factors/{id}/confirm``."""

    code = one_time_code(required=True)


class AddPasskeySchema(Schema):
    """``POST /users/me/passkeys``. Without a name, it gets the one of its authenticator."""

    challenge_id = Text(1, CHALLENGE_MAX_LENGTH, required=True)
    credential = registration_credential(required=True)
    name = DisplayName(1, NAME_MAX_LENGTH)


class RenameFactorSchema(Schema):
    """``PATCH /users/me/factors/{id}``."""

    name = DisplayName(1, NAME_MAX_LENGTH, required=True)


class NewCodes(fields.Field[list[str]]):
    """Recovery codes, if the first second factor has just been added."""

    json_schema: ClassVar[dict[str, Any]] = NEW_CODES


class NewPasskeySchema(FactorSchema):
    """A passkey that has just been added."""

    recovery_codes = NewCodes()


FACTOR = FactorSchema()
NEW_PASSKEY = NewPasskeySchema()
START_TOTP = StartTotpSchema()
CONFIRM_TOTP = ConfirmTotpSchema()
ADD_PASSKEY = AddPasskeySchema()
RENAME_FACTOR = RenameFactorSchema()

_CODES_LEFT = {"type": "integer", "minimum": 0}
FACTORS = Shape("Factors", object_of(items=array_of(FACTOR), recovery_codes_left=_CODES_LEFT))
PENDING_TOTP = Shape(
    "PendingTotp",
    object_of(
        id={"type": "string", "format": "uuid"},
        secret={**_TEXT, "description": "In base 32, to type into an app."},
        otpauth_uri={**_TEXT, "description": "The same, for an app on this device."},
        qr_svg={**_TEXT, "description": "The same, as a QR code in SVG."},
    ),
)
RECOVERY_CODES = Shape("RecoveryCodes", object_of(recovery_codes=_CODES))
NEW_RECOVERY_CODES = Shape("NewRecoveryCodes", object_of(recovery_codes=NEW_CODES))
CREATION_CHALLENGE = Shape(
    "CreationChallenge",
    object_of(
        challenge_id=_TEXT,
        options={
            "type": "object",
            "description": "For `PublicKeyCredential.parseCreationOptionsFromJSON()`.",
        },
        expires_at={"type": "string", "format": "date-time"},
    ),
)

FACTOR_EXAMPLE = {
    "id": examples.FACTOR_ID,
    "type": "passkey",
    "name": "iCloud Keychain",
    "created_at": examples.CREATED_AT,
    "last_used_at": examples.SEEN_AT,
}
TOTP_EXAMPLE = {**FACTOR_EXAMPLE, "type": "totp", "name": "Authenticator app"}
FACTORS_EXAMPLE = {"items": [FACTOR_EXAMPLE, TOTP_EXAMPLE], "recovery_codes_left": 9}
CODES_EXAMPLE = ["k3fz-9m2p-7qxt", "0b8d-hw4n-2vcs"]
_SECRET = b"an example, no secret"[: totp.SECRET_BYTES]
_URI = totp.otpauth_uri(_SECRET, "Shinkei", examples.EMAIL)
PENDING_TOTP_EXAMPLE = {
    "id": examples.FACTOR_ID,
    "secret": totp.to_base32(_SECRET),
    "otpauth_uri": _URI,
    "qr_svg": '<svg width="196" height="196" class="segno"></svg>',
}
CREATION_OPTIONS_EXAMPLE = {
    "rp": {"id": "app.example", "name": "app.example"},
    "user": {"id": "b3duZXI", "name": examples.EMAIL, "displayName": examples.NAME},
    "challenge": "h7Yb2QmX0kV9sT4wE1rL6uC3pJ8zN5aFgD_oI-yKBcM",
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    "timeout": 300_000,
    "excludeCredentials": [],
    "authenticatorSelection": {
        "residentKey": "required",
        "requireResidentKey": True,
        "userVerification": "required",
    },
    "attestation": "none",
}
REGISTRATION_EXAMPLE = {
    "id": "u3Xk9QmT2vY7",
    "rawId": "u3Xk9QmT2vY7",
    "type": "public-key",
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uY3JlYXRlIn0",
        "attestationObject": "o2NmbXRkbm9uZQ",
        "transports": ["internal"],
    },
}
EXAMPLE_CHALLENGE = "dE5vC1kT8rW3qX0yB6mJ9sL2fH4zP7aU_iG-oN5eKcA"
