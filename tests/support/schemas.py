"""Schemas that serialize rows."""

import service.routes
from service.http.row_schema import RowSchema

assert service.routes  # imports all of them


def row_schemas(base: type[RowSchema] = RowSchema) -> list[type[RowSchema]]:
    """Return the service's schemas, without those that tests define."""
    own = [each for each in base.__subclasses__() if each.__module__.startswith("service.")]
    return own + [found for schema in own for found in row_schemas(schema)]
