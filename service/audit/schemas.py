"""What administrators see of the audit, and filter it by."""

from marshmallow import Schema, fields

from service.fields import Text, Timestamp
from service.pages import PageSchema


class AuditEventSchema(Schema):
    """One event; ``before`` and ``after`` hold what changed."""

    id = fields.UUID()
    occurred_at = Timestamp()
    action = fields.String()
    actor_id = fields.UUID()
    actor_role = fields.String()
    subject_id = fields.UUID()
    address = fields.String()
    user_agent = fields.String()
    request_id = fields.String()
    before = fields.Raw()
    after = fields.Raw()


class ListEventsSchema(PageSchema):
    """``GET /audit-events``. Times are from ``occurred_after``, itself included, to before
    ``occurred_before``."""

    actor_id = fields.UUID()
    subject_id = fields.UUID()
    action = Text(1, 100)
    occurred_after = Timestamp()
    occurred_before = Timestamp()


AUDIT_EVENT = AuditEventSchema()
LIST_EVENTS = ListEventsSchema()
