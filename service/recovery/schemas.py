"""Schemas of the requests for links and of those that carry their tokens."""

from marshmallow import Schema

from service.http.fields import EmailAddress, NewPassword, Text

TOKEN_MAX_LENGTH = 512


class EmailSchema(Schema):
    """``POST /auth/password/forgot``, ``POST /auth/email/verify/resend``."""

    email = EmailAddress(required=True)


class ResetSchema(Schema):
    """``POST /auth/password/reset``."""

    token = Text(1, TOKEN_MAX_LENGTH, required=True)
    password = NewPassword(required=True)


class VerifySchema(Schema):
    """``POST /auth/email/verify``."""

    token = Text(1, TOKEN_MAX_LENGTH, required=True)


EMAIL_ONLY = EmailSchema()
RESET = ResetSchema()
VERIFY = VerifySchema()
