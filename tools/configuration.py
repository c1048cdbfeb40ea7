"""Writes docs/configuration.md from the variables' declarations: python -m tools.configuration."""

from pathlib import Path

from service.settings import GROUPS, VARIABLES, Variable

DOCUMENT = Path(__file__).parents[1] / "docs/configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by python -m tools.configuration, from service/settings/model.py. -->

Environment variables configure everything; `shinkei serve --help` lists them too.

- An empty variable counts as not set, and white space around a value is dropped. A password that
  ends in a blank goes into `DB_PASS_FILE`, or into `DATABASE_URL` as `%20`.
- A wrong value is one line that names the variable, and exit code 2, before anything starts.
- `shinkei doctor` says which variables are set, and warns of names that look misspelt.

The embedded PostgreSQL's programs are looked for in `PG_BINDIR`, the wheel of the extra
`shinkei[embedded]`, `pg_config --bindir`, `/usr/lib/postgresql/*/bin` and `PATH`, in this order.
PostgreSQL 15 or newer.
"""


def markdown() -> str:
    """The document: a table for each group."""
    tables = []
    for group in GROUPS:
        rows = [_row(one) for one in VARIABLES.values() if one.group == group]
        head = f"\n## {group}\n\n| variable | default | takes | |\n|---|---|---|---|\n"
        tables.append(head + "".join(rows))
    return INTRODUCTION + "".join(tables)


def _row(variable: Variable[object]) -> str:
    cells = (f"`{variable.name}`", variable.default_text, variable.parser.expects, variable.help)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(markdown(), encoding="utf-8")
