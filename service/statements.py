"""SQL of lists, put together: the order of a page and its place in it, filters, and plans."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

# SQL and its arguments.
Statement: TypeAlias = tuple[Any, ...]
Columns: TypeAlias = Mapping[str, Callable[[Any], object]]


class Keyset(NamedTuple):
    """The columns that order a list, together unique, and what makes their values of JSON's."""

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
    """The conditions of a page's place and of the filters that are given, and their arguments.

    The place is the first: of several conditions on a column PostgreSQL (18) began its scan at the
    first, and where that was ``created_at < $1`` it skipped what is between that and the place one
    by one: half a million entries of an index, 20 ms.
    """
    conditions, arguments = {}, list(after or ())
    if keyset and after:
        conditions["after"] = keyset.beyond(1)
    for name, template in templates.items():
        if name in filters:
            arguments.append(filters[name])
            conditions[name] = template.format(f"${len(arguments)}")
    return conditions, arguments


def all_of(conditions: Mapping[str, str]) -> str:
    """What follows ``where``."""
    return " and ".join(conditions.values()) or "true"


def planned_anew(arguments: list[object]) -> str:
    """A condition that is true, whose argument it adds, for a query that needs a plan of its own.

    PostgreSQL keeps a plan for any arguments, from a statement's sixth time on, where that seems no
    dearer (the manual, PREPARE); such a one read a year's accounts to find one address, 80 ms
    instead of 3. With this condition it seems dear. A plan for the arguments knows that the
    condition is true, and another would count nothing either. ``plan_cache_mode`` says the same,
    but to a whole session, where it has users/me planned for each read, or to a transaction.
    """
    arguments.append(True)
    known = f"${len(arguments)}"
    return (
        f"({known} or (select count(*) from generate_series(1, 1000000000) where not {known}) = 1)"  # noqa: S608
    )
