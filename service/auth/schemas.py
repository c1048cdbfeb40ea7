"""What registration and sign-in take, and what is told of signing keys."""

from marshmallow import fields

from service.http.fields import Timestamp
from service.http.row_schema import RowSchema


class SigningKeySchema(RowSchema):
    """A signing key as operators see it."""

    id = fields.String()
    algorithm = fields.String()
    state = fields.String()
    created_at = Timestamp()
    signs_from = Timestamp()
    retires_at = Timestamp()


SIGNING_KEY = SigningKeySchema()
