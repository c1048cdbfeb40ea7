"""Schemas of sign-in, sessions and refresh."""

from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from service.factors.fields import authentication_credential, one_time_code
from service.factors.recovery_codes import MAX_LENGTH as RECOVERY_CODE_MAX_LENGTH
from service.factors.schemas import CHALLENGE_MAX_LENGTH
from service.http import examples
from service.http.descriptions import Shape, object_of
from service.http.fields import EmailAddress, Password, Text, Timestamp
from service.http.pages import page_of
from service.http.row_schema import RowSchema


class LoginSchema(Schema):
    """``POST /auth/login``."""

    email = EmailAddress(required=True)
    password = Password(required=True)


LOGIN = LoginSchema()


# How a session was opened, or its owner proved again who they are (RFC 8176; "rec" is ours).
METHODS = {
    "pwd": "password",
    "otp": "one-time code of an app",
    "hwk": "passkey that is bound to one device",
    "swk": "passkey that is synchronized between devices",
    "rec": "recovery code",
}
LEVELS = ("aal1", "aal2")
IS_LEVEL = {"description": "What they prove together (NIST SP 800-63B-4)."}


class Methods(fields.Field[list[str]]):
    """The methods of a session, in the order of their use."""

    json_schema: ClassVar[dict[str, Any]] = {
        "type": "array",
        "items": {"type": "string", "enum": list(METHODS)},
        "description": "How the owner proved who they are (RFC 8176): "
        + ", ".join(f"`{name}` by a {meaning}" for name, meaning in METHODS.items())
        + ".",
    }


class SessionSchema(RowSchema):
    """A session. Each refresh updates ``last_seen_at``."""

    id = fields.UUID()
    created_at = Timestamp()
    last_seen_at = Timestamp()
    expires_at = Timestamp()
    user_agent = fields.String()
    ip = fields.String(allow_none=True)

    amr = Methods()
    acr = fields.String(validate=validate.OneOf(LEVELS), metadata=IS_LEVEL)


class OwnSessionSchema(SessionSchema):
    """One of the caller's sessions. ``current`` marks the session of the request's token."""

    current = fields.Boolean()


class RefreshSchema(Schema):
    """``POST /auth/refresh``."""

    refresh_token = Text(1, 512, required=True)


class SecondFactorSchema(Schema):
    """``POST /auth/second-factor``: one of the last three."""

    challenge = Text(1, CHALLENGE_MAX_LENGTH, required=True)
    code = one_time_code()
    recovery_code = Text(1, RECOVERY_CODE_MAX_LENGTH)
    credential = authentication_credential()


class ChallengeSchema(Schema):
    """``POST /auth/second-factor/options``."""

    challenge = Text(1, CHALLENGE_MAX_LENGTH, required=True)


class PasskeySignInSchema(Schema):
    """``POST /auth/passkey``."""

    challenge_id = Text(1, CHALLENGE_MAX_LENGTH, required=True)
    credential = authentication_credential(required=True)


class ReauthenticateSchema(Schema):
    """``POST /auth/reauthenticate``: the password, a code, or a passkey with its challenge."""

    password = Password()
    code = one_time_code()
    challenge_id = Text(1, CHALLENGE_MAX_LENGTH)
    credential = authentication_credential()


class LogoutSchema(Schema):
    """``POST /auth/logout``."""

    refresh_token = Text(1, 512)


SESSION_EXAMPLE = {
    "id": examples.SESSION_ID,
    "created_at": examples.CREATED_AT,
    "last_seen_at": examples.SEEN_AT,
    "expires_at": examples.EXPIRES_AT,
    "user_agent": examples.USER_AGENT,
    "ip": examples.IP,
    "amr": ["pwd"],
    "acr": "aal1",
}
SESSION = SessionSchema()
OWN_SESSION = OwnSessionSchema()
OWN_SESSION_PAGE = page_of(OWN_SESSION)
REFRESH = RefreshSchema()
LOGOUT = LogoutSchema()
SECOND_FACTOR = SecondFactorSchema()
CHALLENGE_ONLY = ChallengeSchema()
PASSKEY_SIGN_IN = PasskeySignInSchema()
REAUTHENTICATE = ReauthenticateSchema()

_OPTIONS = {
    "type": "object",
    "description": "For `PublicKeyCredential.parseRequestOptionsFromJSON()`.",
}
PASSKEY_OPTIONS = Shape("PasskeyOptions", object_of(options=_OPTIONS))
PASSKEY_CHALLENGE = Shape(
    "PasskeyChallenge",
    object_of(
        challenge_id={"type": "string"},
        options=_OPTIONS,
        expires_at={"type": "string", "format": "date-time"},
    ),
)
REQUEST_OPTIONS_EXAMPLE = {
    "challenge": "h7Yb2QmX0kV9sT4wE1rL6uC3pJ8zN5aFgD_oI-yKBcM",
    "timeout": 300_000,
    "rpId": "app.example",
    "allowCredentials": [],
    "userVerification": "required",
}
ASSERTION_EXAMPLE = {
    "id": "u3Xk9QmT2vY7",
    "rawId": "u3Xk9QmT2vY7",
    "type": "public-key",
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uZ2V0In0",
        "authenticatorData": "dGhpcyBpcyBhbiBleGFtcGxl",
        "signature": "MEUCIQDexample",
        "userHandle": "b3duZXI",
    },
}
