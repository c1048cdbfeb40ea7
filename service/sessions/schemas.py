"""Schemas of sign-in, sessions and refresh."""

from marshmallow import Schema, fields

from service.http import examples
from service.http.fields import EmailAddress, Password, Text, Timestamp
from service.http.pages import page_of
from service.http.row_schema import RowSchema


class LoginSchema(Schema):
    """``POST /auth/login``."""

    email = EmailAddress(required=True)
    password = Password(required=True)


LOGIN = LoginSchema()


class SessionSchema(RowSchema):
    """A session. Each refresh updates ``last_seen_at``."""

    id = fields.UUID()
    created_at = Timestamp()
    last_seen_at = Timestamp()
    expires_at = Timestamp()
    user_agent = fields.String()
    ip = fields.String(allow_none=True)


class OwnSessionSchema(SessionSchema):
    """One of the caller's sessions. ``current`` marks the session of the request's token."""

    current = fields.Boolean()


class RefreshSchema(Schema):
    """``POST /auth/refresh``."""

    refresh_token = Text(1, 512, required=True)


SESSION_EXAMPLE = {
    "id": examples.SESSION_ID,
    "created_at": examples.CREATED_AT,
    "last_seen_at": examples.SEEN_AT,
    "expires_at": examples.EXPIRES_AT,
    "user_agent": examples.USER_AGENT,
    "ip": examples.IP,
}
SESSION = SessionSchema()
OWN_SESSION = OwnSessionSchema()
OWN_SESSION_PAGE = page_of(OWN_SESSION)
REFRESH = RefreshSchema()
