"""What registration and sign-in take."""

from marshmallow import Schema

from service.auth.passwords import PASSWORD_MAX_LENGTH
from service.fields import DisplayName, EmailAddress, Text
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


REGISTER = RegisterSchema()
LOGIN = LoginSchema()
