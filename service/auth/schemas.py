"""What registration and sign-in take, and what is told of signing keys."""

from marshmallow import Schema, fields

from service.auth.passwords import PASSWORD_MAX_LENGTH
from service.fields import DisplayName, EmailAddress, Text, Timestamp
from service.users.schemas import NAME_MAX_LENGTH


class RegisterSchema(Schema):
    """``POST /auth/register``. How long a password must be is a setting: see passwords."""

    email = EmailAddress(required=True)
    password = Text(1, PASSWORD_MAX_LENGTH, required=True)
    name = DisplayName(0, NAME_MAX_LENGTH, load_default="")


class LoginSchema(Schema):
    """``POST /auth/login``. The password may be older than today's rules."""

    email = EmailAddress(required=True)
    password = Text(1, PASSWORD_MAX_LENGTH, required=True)


class SigningKeySchema(Schema):
    """A signing key as operators see it."""

    id = fields.String()
    algorithm = fields.String()
    state = fields.String()
    created_at = Timestamp()
    signs_from = Timestamp()
    retires_at = Timestamp()


REGISTER = RegisterSchema()
LOGIN = LoginSchema()
SIGNING_KEY = SigningKeySchema()
