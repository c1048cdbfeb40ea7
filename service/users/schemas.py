"""Schemas for owners to create, read and change their account."""

from marshmallow import Schema, fields, validate

from service.accounts.preferences import IS_EMAIL, NAME_MAX_LENGTH, ROLES, PreferencesField
from service.auth.schemas import TOKEN_MEMBERS
from service.factors.schemas import FACTOR, FACTOR_EXAMPLE
from service.http import examples
from service.http.descriptions import Shape, array_of, object_of
from service.http.fields import DisplayName, EmailAddress, NewPassword, Password, Timestamp
from service.http.row_schema import RowSchema
from service.sessions.schemas import SESSION, SESSION_EXAMPLE
from service.worlds.shapes import DOCUMENT


class OwnProfileSchema(RowSchema):
    """The account as its owner sees it."""

    id = fields.UUID()
    email = fields.String(metadata=IS_EMAIL)
    email_verified = fields.Boolean()
    name = fields.String()
    role = fields.String(validate=validate.OneOf(ROLES))
    settings = PreferencesField()
    created_at = Timestamp()
    updated_at = Timestamp()


class MergeProfileSchema(Schema):
    """``PATCH /users/me``: omitted fields keep their values, settings are merged."""

    name = DisplayName(0, NAME_MAX_LENGTH)
    settings = PreferencesField(merging=True)


class ReplaceProfileSchema(Schema):
    """``PUT /users/me``: omitted fields keep their values, settings are replaced."""

    name = DisplayName(0, NAME_MAX_LENGTH)
    settings = PreferencesField()


class ChangePasswordSchema(Schema):
    """``POST /users/me/password``. ``current_password`` is required if there is one."""

    current_password = Password()
    password = NewPassword(required=True)


class RemovePasswordSchema(Schema):
    """``DELETE /users/me/password``."""

    current_password = Password(required=True)


class ChangeEmailSchema(Schema):
    """``POST /users/me/email``: the password, or a recent proof."""

    email = EmailAddress(required=True)
    password = Password()


class DeleteAccountSchema(Schema):
    """``DELETE /users/me``: the password, or a recent proof."""

    password = Password()


class DeletionSchema(RowSchema):
    """The time at which the account is purged, unless its owner signs in first."""

    purge_at = Timestamp()


class KnownNetworkSchema(RowSchema):
    """A network that the account has signed in from."""

    network = fields.String()
    last_seen_at = Timestamp()


class OwnAuditEventSchema(RowSchema):
    """An event of the account. IP and user agent appear only if its owner caused it."""

    id = fields.UUID()
    occurred_at = Timestamp()
    action = fields.String()
    by_yourself = fields.Boolean()
    ip = fields.String(allow_none=True)
    user_agent = fields.String(allow_none=True)
    before = fields.Dict(allow_none=True)
    after = fields.Dict(allow_none=True)


PROFILE_EXAMPLE = {
    "id": examples.USER_ID,
    "email": examples.EMAIL,
    "email_verified": True,
    "name": examples.NAME,
    "role": "user",
    "settings": {"language": "en", "ui_theme": "dark"},
    "created_at": examples.CREATED_AT,
    "updated_at": examples.SEEN_AT,
}
OWN_PROFILE = OwnProfileSchema()
MERGE_PROFILE = MergeProfileSchema()
REPLACE_PROFILE = ReplaceProfileSchema()
CHANGE_PASSWORD = ChangePasswordSchema()
REMOVE_PASSWORD = RemovePasswordSchema()
CHANGE_EMAIL = ChangeEmailSchema()
DELETE_ACCOUNT = DeleteAccountSchema()
DELETION = DeletionSchema()
KNOWN_NETWORK = KnownNetworkSchema()
OWN_AUDIT_EVENT = OwnAuditEventSchema()


class RegisterSchema(Schema):
    """``POST /auth/register``."""

    email = EmailAddress(required=True)
    password = NewPassword(required=True)
    name = DisplayName(0, NAME_MAX_LENGTH, load_default="")


REGISTER = RegisterSchema()

REGISTERED = Shape("Registered", object_of(**TOKEN_MEMBERS, user=OWN_PROFILE))

EXPORT = Shape(
    "Export",
    object_of(
        account=OWN_PROFILE,
        factors=array_of(FACTOR),
        sessions=array_of(SESSION),
        known_networks=array_of(KNOWN_NETWORK),
        audit_events=array_of(OWN_AUDIT_EVENT),
        worlds=array_of(DOCUMENT),
    ),
)
EXPORT_EXAMPLE = {
    "account": PROFILE_EXAMPLE,
    "factors": [FACTOR_EXAMPLE],
    "sessions": [SESSION_EXAMPLE],
    "known_networks": [{"network": f"{examples.IP}/32", "last_seen_at": examples.SEEN_AT}],
    "audit_events": [
        {
            "id": examples.EVENT_ID,
            "occurred_at": examples.CREATED_AT,
            "action": "user.register",
            "by_yourself": True,
            "ip": examples.IP,
            "user_agent": examples.USER_AGENT,
            "before": None,
            "after": None,
        }
    ],
    "worlds": [],
}
