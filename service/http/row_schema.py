"""Rows as JSON: a schema selects the columns and orjson writes their values."""

from typing import Any

from marshmallow import Schema, fields
from marshmallow.schema import SchemaMeta

# Field classes that serialize a value exactly as ``encode`` does.
_PLAIN = (
    fields.Field,
    fields.String,
    fields.UUID,
    fields.Boolean,
    fields.Number,
    fields.Mapping,
)
# Field options that are not allowed, because ``RowSchema.dump`` would ignore them.
_OPTIONS = (
    "attribute",
    "data_key",
    "dump_default",
    "load_only",
    "as_string",
    "key_field",
    "value_field",
)


class _RowSchemaMeta(SchemaMeta):
    """Raises TypeError for a class that uses features ``RowSchema.dump`` does not support."""

    def __init__(self, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
        super().__init__(name, bases, attributes)  # type: ignore[no-untyped-call]
        if bases == (Schema,):
            return
        for base in self.__mro__[: self.__mro__.index(RowSchema)]:
            for member, value in vars(base).items():
                if not member.startswith("__") and hasattr(value, "__get__"):
                    raise TypeError(f"{name}.{member}: a row schema has no methods or hooks")
        for member, field in self().fields.items():
            if fault := _find_fault(field):
                raise TypeError(f"{name}.{member}: {fault}")


def _find_fault(field: fields.Field[Any]) -> str | None:
    for method in ("serialize", "_serialize"):
        maker = next(base for base in type(field).__mro__ if method in vars(base))
        if maker not in _PLAIN:
            return f"{maker.__name__} has its own serialization"
    for option in _OPTIONS:
        if getattr(field, option, None):
            return f"{option} would be ignored"
    return None


class RowSchema(Schema, metaclass=_RowSchemaMeta):
    """Selects the columns of a row that its fields name; each column must exist.

    ``dump`` is faster than marshmallow's and yields the same JSON. It leaves values as asyncpg
    returned them, for ``encode``. Defining a subclass whose result would differ raises TypeError.
    """

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Return a row as a dict, or rows as a list of dicts if ``many``."""
        names = tuple(self.dump_fields)
        if self.many if many is None else many:
            return [{name: row[name] for name in names} for row in obj]
        return {name: obj[name] for name in names}
