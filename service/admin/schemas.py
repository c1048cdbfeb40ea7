"""Schemas for administrators to list, create and change accounts."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from service.accounts.preferences import (
    IS_EMAIL,
    NAME_MAX_LENGTH,
    ROLES,
    PreferencesField,
    check_json,
)
from service.accounts.queries import STATUSES
from service.admin.lists import SORTS
from service.admin.search import has_trigram
from service.http import examples
from service.http.field_errors import invalid
from service.http.fields import (
    DisplayName,
    EmailAddress,
    Flag,
    QueryFlag,
    Text,
    Timestamp,
    fold_email,
    search_forms,
)
from service.http.pages import BEFORE_TIME, FROM_TIME, PageSchema, page_of
from service.http.requests import load_json
from service.http.row_schema import RowSchema
from service.sessions.schemas import SESSION

REASON_MAX_LENGTH = 500


def _require_future(value: datetime) -> None:
    if value <= datetime.now(UTC):
        raise invalid("not_in_future", "Expected a time in the future.")


class FoldedEmail(EmailAddress):
    """An email, folded to the form that identifies an account."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        return fold_email(super()._deserialize(value, attr, data, **kwargs))


class SearchText(Text):
    """Part of an email or name. Loads as a pair: the forms in folded emails, and as given.

    Rejected without a trigram to look up in the index: three letters or digits in a row, or fewer
    at the edge of a word (PostgreSQL's pg_trgm, "Index Support").
    """

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        forms = search_forms(text)
        if not all(map(has_trigram, {*forms, text})):
            raise invalid("unsearchable", "Must contain three letters or digits in a row.")
        return sorted(forms), text


class ContainedSettings(fields.Field[dict[str, Any]]):
    """A JSON object in a query parameter, which the account's settings must contain."""

    # Declared as text, because generators of clients don't encode a parameter's ``content``.
    json_schema: ClassVar = {"type": "string", "format": "json-object"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            document = load_json(value)
        except (ValueError, RecursionError):
            raise invalid("invalid_json", "Expected JSON.") from None
        if not isinstance(document, dict):
            raise invalid("invalid_type", "Expected an object.")
        check_json(document)
        return document


class AdminUserSchema(RowSchema):
    """An account as administrators see it. ``version`` is its ETag, for use from a list."""

    id = fields.UUID()
    email = fields.String(metadata=IS_EMAIL)
    email_verified = fields.Boolean()
    name = fields.String()
    role = fields.String(validate=validate.OneOf(ROLES))
    status = fields.String(validate=validate.OneOf(STATUSES))
    suspended_until = Timestamp(allow_none=True)
    suspension_reason = fields.String(allow_none=True)
    purge_at = Timestamp(allow_none=True)
    deleted_by_admin = fields.Boolean(
        metadata={"description": "If true, signing in does not cancel the deletion."}
    )
    has_second_factor = fields.Boolean()
    settings = PreferencesField()
    version = fields.Integer()
    created_at = Timestamp()
    updated_at = Timestamp()


class ListUsersSchema(PageSchema):
    """``GET /users``."""

    email = FoldedEmail(metadata={"description": "The exact email, ignoring case."})
    q = SearchText(
        3,
        200,
        metadata={
            "format": "search",
            "description": (
                "Part of the email or name, ignoring case. Needs three letters or digits in a row."
            ),
        },
    )
    status = fields.String(validate=validate.OneOf(STATUSES))
    role = fields.String(validate=validate.OneOf(ROLES))
    has_second_factor = QueryFlag()
    created_after = Timestamp(metadata=FROM_TIME)
    created_before = Timestamp(metadata=BEFORE_TIME)
    settings = ContainedSettings(
        metadata={
            "description": (
                'A JSON object that the settings must contain, such as `{"ui_theme": "dark"}`.'
            )
        }
    )
    sort = fields.String(validate=validate.OneOf(SORTS), load_default="-created_at")
    count = fields.String(
        validate=validate.OneOf(("exact", "estimated")),
        metadata={
            "description": "Include the total over all pages, counted exactly or estimated quickly."
        },
    )


class CreateUserSchema(Schema):
    """``POST /users``. It has no password field: only the owner sets one."""

    email = EmailAddress(required=True)
    name = DisplayName(0, NAME_MAX_LENGTH, load_default="")
    role = fields.String(validate=validate.OneOf(ROLES), load_default="user")
    settings = PreferencesField(load_default=dict)


class ChangeUserSchema(Schema):
    """``PATCH /users/{id}``: omitted fields keep their values, settings are merged."""

    name = DisplayName(0, NAME_MAX_LENGTH)
    settings = PreferencesField(merging=True)
    role = fields.String(validate=validate.OneOf(ROLES))
    email_verified = Flag()


class SuspendUserSchema(Schema):
    """``POST /users/{id}/suspend``. Without ``until``, the suspension is indefinite."""

    reason = Text(1, REASON_MAX_LENGTH, required=True)
    until = Timestamp(validate=_require_future)


ADMIN_USER_EXAMPLE = {
    "id": examples.USER_ID,
    "email": examples.EMAIL,
    "email_verified": True,
    "name": examples.NAME,
    "role": "user",
    "status": "active",
    "suspended_until": None,
    "suspension_reason": None,
    "purge_at": None,
    "deleted_by_admin": False,
    "has_second_factor": False,
    "settings": {"language": "en", "ui_theme": "dark"},
    "version": 2,
    "created_at": examples.CREATED_AT,
    "updated_at": examples.SEEN_AT,
}
ADMIN_USER = AdminUserSchema()
ADMIN_USER_PAGE = page_of(ADMIN_USER, counted=True)
SESSION_PAGE = page_of(SESSION)
LIST_USERS = ListUsersSchema()
CREATE_USER = CreateUserSchema()
CHANGE_USER = ChangeUserSchema()
SUSPEND_USER = SuspendUserSchema()
