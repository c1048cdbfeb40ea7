"""What administrators see of the audit, and filter it by."""

from marshmallow import fields

from service.http.fields import Text, Timestamp, UuidText
from service.http.pages import BEFORE_TIME, FROM_TIME, PageSchema
from service.http.row_schema import RowSchema


class AuditEventSchema(RowSchema):
    """One event; ``before`` and ``after`` hold what changed."""

    id = fields.UUID()
    occurred_at = Timestamp()
    action = fields.String()
    actor_id = fields.UUID(allow_none=True)
    actor_role = fields.String(allow_none=True)
    subject_id = fields.UUID(allow_none=True)
    address = fields.String(allow_none=True)
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


AUDIT_EVENT = AuditEventSchema()
LIST_EVENTS = ListEventsSchema()
