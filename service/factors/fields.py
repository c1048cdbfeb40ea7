"""Fields of passkeys, as browsers send them."""

import re
from typing import Any

from marshmallow import EXCLUDE, Schema, fields, validate

from service.factors.totp import DIGITS
from service.factors.webauthn import (
    ATTESTATION_MAX_BYTES,
    AUTHENTICATOR_DATA_MAX_BYTES,
    CLIENT_DATA_MAX_BYTES,
    SIGNATURE_MAX_BYTES,
    TRANSPORTS_MAX,
    USER_HANDLE_MAX_BYTES,
)
from service.http.field_errors import invalid
from service.http.fields import LimitedList, too_long

# Longer than any credential id, so that one that is too long has the problem of its own.
ID_MAX_BYTES = 1536
TRANSPORT_MAX_LENGTH = 32


class Characters(fields.Field[str]):
    """Text of characters that are all of one class of ASCII, such as ``a-z``."""

    def __init__(
        self, allowed: str, max_length: int, format_: str, *, min_length: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.min_length, self.max_length = min_length, max_length
        self.pattern = re.compile(f"[{allowed}]+")
        self.json_schema = {
            "type": "string",
            "format": format_,
            "minLength": min_length,
            "maxLength": max_length,
            "pattern": f"^[{allowed}]*$",
        }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise invalid("invalid_type", "Expected a string.")
        if len(value) > self.max_length:
            raise too_long(self.max_length)
        if len(value) < self.min_length:
            least = f"{self.min_length} character{'s' * (self.min_length > 1)}"
            raise invalid("too_short", f"Must be at least {least} long.")
        if not self.pattern.fullmatch(value):
            raise invalid("invalid_characters", "Contains characters that are not allowed here.")
        return value


def base64url(max_bytes: int, **kwargs: Any) -> Characters:
    """Create a field for bytes in base64url without padding (RFC 4648 §5)."""
    return Characters("A-Za-z0-9_-", -(-max_bytes * 4 // 3), "base64url", **kwargs)


def one_time_code(**kwargs: Any) -> Characters:
    """Create a field for the code of an app: six digits."""
    return Characters("0-9", DIGITS, "one-time-code", min_length=DIGITS, **kwargs)


class _OpenSchema(Schema):
    """Ignores members that it does not describe: browsers send more, and may send others soon."""

    class Meta:
        unknown = EXCLUDE


def _credential(name: str, response: dict[str, fields.Field[Any]]) -> type[Schema]:
    """Create the schema of a credential's JSON."""
    inner = _OpenSchema.from_dict(response, name=f"{name}Response")
    return _OpenSchema.from_dict(
        {
            "id": base64url(ID_MAX_BYTES, required=True),
            "rawId": base64url(ID_MAX_BYTES, required=True),
            "type": fields.String(required=True, validate=validate.OneOf(["public-key"])),
            "response": fields.Nested(inner, required=True),
        },
        name=name,
    )


_CLIENT_DATA = {"clientDataJSON": base64url(CLIENT_DATA_MAX_BYTES, required=True)}


# Made once, because the API's description names each class.
_REGISTRATION = _credential(
    "RegistrationCredential",
    {
        **_CLIENT_DATA,
        "attestationObject": base64url(ATTESTATION_MAX_BYTES, required=True),
        "transports": LimitedList(
            Characters("a-z0-9-", TRANSPORT_MAX_LENGTH, "transport"), TRANSPORTS_MAX
        ),
    },
)
_AUTHENTICATION = _credential(
    "AuthenticationCredential",
    {
        **_CLIENT_DATA,
        "authenticatorData": base64url(AUTHENTICATOR_DATA_MAX_BYTES, required=True),
        "signature": base64url(SIGNATURE_MAX_BYTES, required=True),
        "userHandle": base64url(USER_HANDLE_MAX_BYTES, allow_none=True),
    },
)


def registration_credential(**kwargs: Any) -> fields.Nested:
    """Create a field for what ``toJSON()`` returns of a new passkey."""
    return fields.Nested(_REGISTRATION, **kwargs)


def authentication_credential(**kwargs: Any) -> fields.Nested:
    """Create a field for what ``toJSON()`` returns of a passkey that was used."""
    return fields.Nested(_AUTHENTICATION, **kwargs)
