"""Writes the tables of codes in docs/errors.md: python -m tools.errors."""

import functools
import importlib
import pkgutil
import re
from pathlib import Path

import service
from service.http.field_errors import CODES
from service.http.problems import ProblemType

DOCUMENT = Path(__file__).parents[1] / "docs/errors.md"


@functools.cache
def problems() -> list[ProblemType]:
    """Return all declared problems, by status and code."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(service.__path__, "service.")
        if not module.name.endswith("__main__")
    ]
    declared = {
        (value.status, value.code, value.detail): value
        for module in modules
        for variable in vars(module).values()
        for value in (variable if type(variable) is tuple else (variable,))
        if isinstance(value, ProblemType)
    }
    return [problem for _, problem in sorted(declared.items())]


def markdown() -> str:
    """Return the document with its tables rewritten."""
    text = DOCUMENT.read_text(encoding="utf-8")
    details: dict[tuple[int, str], list[str]] = {}
    for problem in problems():
        details.setdefault((problem.status, problem.code), []).append(problem.detail)
    rows = [
        f"| {status} | `{code}` | {' '.join(meanings)} |"
        for (status, code), meanings in details.items()
    ]
    fields = [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    text = _replace_rows(text, "| status | `code` | `detail` |\n|---|---|---|\n", rows)
    return _replace_rows(text, "| `code` | meaning |\n|---|---|\n", fields)


def _replace_rows(text: str, head: str, rows: list[str]) -> str:
    """Replace the rows of the table with this head."""
    table = re.compile(rf"{re.escape(head)}(\|.*\n)*")
    assert table.search(text), head
    return table.sub(lambda _: head + "".join(f"{row}\n" for row in rows), text)


if __name__ == "__main__":
    DOCUMENT.write_text(markdown(), encoding="utf-8")
