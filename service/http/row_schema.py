"""How rows become JSON: a schema says which columns are shown, orjson writes their values."""

from typing import Any

from marshmallow import Schema, fields
from marshmallow.schema import SchemaMeta

# The field classes whose own serializing gives what ``encode`` makes of the plain value.
_PLAIN = (
    fields.Field,
    fields.String,
    fields.UUID,
    fields.Boolean,
    fields.Number,
    fields.Mapping,
)
# What a field may not have, because ``RowSchema.dump`` would pass over it.
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
    """Raises TypeError for a class with more in it than ``RowSchema.dump`` can honour."""

    def __init__(self, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
        super().__init__(name, bases, attributes)  # type: ignore[no-untyped-call]
        if bases == (Schema,):
            return
        for base in self.__mro__[: self.__mro__.index(RowSchema)]:
            for member, value in vars(base).items():
                if not member.startswith("__") and hasattr(value, "__get__"):
                    raise TypeError(f"{name}.{member}: a row schema has no methods and no hooks")
        for member, field in self().fields.items():
            if fault := _find_fault(field):
                raise TypeError(f"{name}.{member}: {fault}")


def _find_fault(field: fields.Field[Any]) -> str | None:
    for method in ("serialize", "_serialize"):
        maker = next(base for base in type(field).__mro__ if method in vars(base))
        if maker not in _PLAIN:
            return f"{maker.__name__} serializes in a way of its own"
    for option in _OPTIONS:
        if getattr(field, option, None):
            return f"{option} would be passed over"
    return None


class RowSchema(Schema, metaclass=_RowSchemaMeta):
    """What is shown of a row: the columns that the fields name, which have to be there.

    A faster ``dump`` with the same result once it is JSON: values stay what asyncpg made of them,
    for ``encode``. marshmallow calls four functions for each field to make text of them. A class
    with a field or hook for which the results would differ raises TypeError.
    """

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """The row as a dict, or a list of them if they are ``many``."""
        names = tuple(self.dump_fields)
        if self.many if many is None else many:
            return [{name: row[name] for name in names} for row in obj]
        return {name: obj[name] for name in names}
