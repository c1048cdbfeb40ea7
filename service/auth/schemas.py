"""What registration and sign-in take."""

from marshmallow import Schema

from service.fields import DisplayName, EmailAddress, NewPassword, Password
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


REGISTER = RegisterSchema()
LOGIN = LoginSchema()
