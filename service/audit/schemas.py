"""Schemas of audit events and their filters."""

from marshmallow import fields

from service.http import examples
from service.http.fields import Text, Timestamp, UuidText
from service.http.pages import BEFORE_TIME, FROM_TIME, PageSchema, page_of
from service.http.row_schema import RowSchema


class AuditEventSchema(RowSchema):
    """An audit event. ``before`` and ``after`` hold the changed values."""

    id = fields.UUID()
    occurred_at = Timestamp()
    action = fields.String()
    actor_id = fields.UUID(allow_none=True)
    actor_role = fields.String(allow_none=True)
    operator = fields.String(
        allow_none=True,
        metadata={"description": "The operator who made the change from the command line."},
    )
    subject_id = fields.UUID(allow_none=True)
    ip = fields.String(allow_none=True)
    user_agent = fields.String(allow_none=True)
    request_id = fields.String(allow_none=True)
    before = fields.Dict(allow_none=True)
    after = fields.Dict(allow_none=True)


class ListEventsSchema(PageSchema):
    """``GET /audit-events``."""

    actor_id = UuidText()
    subject_id = UuidText()
    action = Text(1, 100)
    occurred_after = Timestamp(metadata=FROM_TIME)
    occurred_before = Timestamp(metadata=BEFORE_TIME)


AUDIT_EVENT_EXAMPLE = {
    "id": examples.EVENT_ID,
    "occurred_at": examples.CREATED_AT,
    "action": "user.update",
    "actor_id": "01a1fba4-8e2f-7c11-a8e3-94d2b60f7a15",
    "actor_role": "admin",
    "operator": None,
    "subject_id": examples.USER_ID,
    "ip": examples.IP,
    "user_agent": examples.USER_AGENT,
    "request_id": examples.REQUEST_ID,
    "before": {"role": "user"},
    "after": {"role": "support"},
}
AUDIT_EVENT = AuditEventSchema()
AUDIT_EVENT_PAGE = page_of(AUDIT_EVENT)
LIST_EVENTS = ListEventsSchema()
