"""Generates docs/configuration.md from the variables: python -m tools.configuration."""

from pathlib import Path

from service.settings import GROUPS, VARIABLES, Variable
from service.settings.unknown import FAMILIES

DOCUMENT = Path(__file__).parents[1] / "docs/configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by python -m tools.configuration, from service/settings/model.py. -->

All settings are environment variables. `shinkei serve --help` lists them too.

- An empty variable counts as not set. White space around a value, such as a line break at its end,
  is removed, and control characters inside one are an error. A password that ends in a space goes
  into `DB_PASS_FILE`, or into `DATABASE_URL` as `%20`. Only the line break at the end of that file
  is no part of the password.
- An invalid value prevents startup: exit code 2, and one line that names the variable and its
  values: type, unit and range, as in the tables below.
- A variable that is no setting, but was probably meant as one, is ignored with a warning: the log
  of `serve` has the event `unknown variable`, and other commands name it on stderr. That applies to
  names similar to those below, and to any name that begins with
  FAMILIES.
- `shinkei doctor` lists the variables that are set, and has the same warnings.

Without `DATABASE_URL` and `DB_HOST`, an embedded PostgreSQL is used if the
[extra](deployment.md#a-first-deployment) `embedded` is installed, `DATA_DIR` or `PG_BINDIR` is set,
or `DATA_DIR` has one from before. Otherwise the variable was probably forgotten, which is an error.
The embedded PostgreSQL must be version 15 or newer. Its programs are searched for, in this order,
in `PG_BINDIR`, the wheel of the extra, `pg_config --bindir`, `/usr/lib/postgresql/*/bin` and
`PATH`.
"""


def markdown() -> str:
    """Return the document, with a table per group."""
    tables = []
    for group in GROUPS:
        rows = [_row(one) for one in VARIABLES.values() if one.group == group]
        head = f"\n## {group}\n\n| variable | default | value | description |\n|---|---|---|---|\n"
        tables.append(head + "".join(rows))
    families = ", ".join(f"`{word}_`" for word in sorted(FAMILIES))
    return INTRODUCTION.replace("FAMILIES", families) + "".join(tables)


def _row(variable: Variable[object]) -> str:
    cells = (f"`{variable.name}`", variable.default_text, variable.parser.expects, variable.help)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(markdown(), encoding="utf-8")
