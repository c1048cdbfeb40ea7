"""What registration and sign-in take, and what is told of signing keys."""

from marshmallow import Schema, fields

from service.encoding import RowSchema
from service.fields import DisplayName, EmailAddress, NewPassword, Password, Timestamp
from service.users.schemas import NAME_MAX_LENGTH


class RegisterSchema(Schema):
    """``POST /auth/register``."""

    email = EmailAddress(required=True)
    password = NewPassword(required=True)
    name = DisplayName(0, NAME_MAX_LENGTH, load_default="")


class LoginSchema(Schema):
    """``POST /auth/login``."""

    email = EmailAddress(required=True)
    password = Password(required=True)


class SigningKeySchema(RowSchema):
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
