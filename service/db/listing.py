"""SQL shared by lists: the order of a page, its place in that order, and its filters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

# SQL and its arguments.
Statement: TypeAlias = tuple[Any, ...]
Columns: TypeAlias = Mapping[str, Callable[[Any], object]]


class Keyset(NamedTuple):
    """The columns that order a list, together unique, and how to read their values from JSON."""

    columns: Columns
    descending: bool

    def order_by(self) -> str:
        """``created_at desc, id desc``."""
        return ", ".join(f"{name}{' desc' if self.descending else ''}" for name in self.columns)

    def beyond(self, first: int) -> str:
        """``(created_at, id) < ($3, $4)``, with parameters from the number ``first``."""
        places = ", ".join(f"${first + n}" for n in range(len(self.columns)))
        return f"({', '.join(self.columns)}) {'<' if self.descending else '>'} ({places})"


def page_conditions(
    templates: Mapping[str, str],
    filters: Mapping[str, Any],
    keyset: Keyset | None = None,
    after: list[object] | None = None,
) -> tuple[dict[str, str], list[object]]:
    """The conditions of a page's place and of the given filters, by name, and their arguments.

    A tuple is as many arguments as its template has braces. The place comes first: PostgreSQL 18
    begins an index scan at a column's first condition, and would skip everything up to the place
    one by one if that were ``created_at < $1``.
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
    """What follows ``where``."""
    return " and ".join(conditions.values()) or "true"
