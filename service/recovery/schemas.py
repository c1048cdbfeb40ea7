"""Schemas of the requests for links and of those that carry their tokens."""

from marshmallow import Schema, fields, validate

from service.accounts.preferences import IS_EMAIL
from service.http.descriptions import Shape, object_of
from service.http.fields import EmailAddress, NewPassword, Password, Text, Timestamp
from service.http.row_schema import RowSchema

# What ``POST /auth/email/verify`` says was done, by the purpose of the used link.
DONE = {"email_verified": "verified", "email_changed": "email_changed"}
PURPOSES = ("password_reset", "email_verify", "email_change", "email_revert", *DONE)
TOKEN_MAX_LENGTH = 512


class EmailSchema(Schema):
    """``POST /auth/password/forgot``, ``POST /auth/email/verify/resend``."""

    email = EmailAddress(required=True)


class ResetSchema(Schema):
    """``POST /auth/password/reset``."""

    token = Text(1, TOKEN_MAX_LENGTH, required=True)
    password = NewPassword(required=True)


class VerifySchema(Schema):
    """``POST /auth/email/verify``: at most one of the passwords."""

    token = Text(1, TOKEN_MAX_LENGTH, required=True)
    password = Password()
    new_password = NewPassword()


class TokenSchema(Schema):
    """``POST /auth/email/revert``, ``POST /auth/links/inspect``."""

    token = Text(1, TOKEN_MAX_LENGTH, required=True)


class LinkSchema(RowSchema):
    """What a link does. ``email`` is the one that it proves, sets or restores."""

    purpose = fields.String(
        validate=validate.OneOf(PURPOSES),
        metadata={"description": "`email_verified` and `email_changed`: it has been used."},
    )
    email = fields.String(metadata=IS_EMAIL)
    expires_at = Timestamp()


EMAIL_ONLY = EmailSchema()
RESET = ResetSchema()
VERIFY = VerifySchema()
TOKEN_ONLY = TokenSchema()
LINK = LinkSchema()
VERIFIED = Shape("EmailVerified", object_of(done={"type": "string", "enum": list(DONE.values())}))
REVERTED = Shape("EmailReverted", object_of(done={"type": "string", "enum": ["email_reverted"]}))
