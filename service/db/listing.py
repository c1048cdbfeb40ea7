"""SQL shared by lists: the order, keyset position and filters of a page."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

# SQL and its arguments.
Statement: TypeAlias = tuple[Any, ...]
Columns: TypeAlias = Mapping[str, Callable[[Any], object]]


class Keyset(NamedTuple):
    """The columns that order a list uniquely, with converters of their values from JSON."""

    columns: Columns
    descending: bool

    def order_by(self) -> str:
        """Return SQL such as ``created_at desc, id desc``."""
        return ", ".join(f"{name}{' desc' if self.descending else ''}" for name in self.columns)

    def beyond(self, first: int) -> str:
        """Return SQL such as ``(created_at, id) < ($3, $4)``, numbered from ``first``."""
        places = ", ".join(f"${first + n}" for n in range(len(self.columns)))
        return f"({', '.join(self.columns)}) {'<' if self.descending else '>'} ({places})"


def page_conditions(
    templates: Mapping[str, str],
    filters: Mapping[str, Any],
    keyset: Keyset | None = None,
    after: list[object] | None = None,
) -> tuple[dict[str, str], list[object]]:
    """Return the conditions of the keyset position and the filters, by name, and their arguments.

    A tuple supplies one argument for each pair of braces in its template. The keyset condition
    comes first, because PostgreSQL 18 starts an index scan at a column's first condition. If that
    were ``created_at < $1``, it would step through every row before the page.
    """
    conditions, arguments = {}, list(after or ())
    if keyset and after:
        conditions["after"] = keyset.beyond(1)
    for name, template in templates.items():
        if name in filters:
            values = filters[name] if isinstance(filters[name], tuple) else (filters[name],)
            places = (f"${len(arguments) + n}" for n in range(1, len(values) + 1))
            conditions[name] = template.format(*places)
            arguments += values
    return conditions, arguments


def all_of(conditions: Mapping[str, str]) -> str:
    """Return the conditions joined by ``and``, to put after ``where``."""
    return " and ".join(conditions.values()) or "true"
