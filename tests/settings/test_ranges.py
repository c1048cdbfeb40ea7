"""The ranges of variables: checked, and named in the error, in the help and in the documents."""

import re
from decimal import Decimal
from pathlib import Path

import click
from click.testing import CliRunner

from service.commands import serve, shinkei
from service.settings import VARIABLES, Rate, load_settings
from tests.support.clients import SECRET_KEY
from tests.support.shell import run_all
from tools.configuration import markdown

RATE = "1 to 99999 attempts per 1 to 999 s, m, h or d"
RANGES = {
    name: (found[0], Decimal(found[1]), Decimal(found[2]))
    for name, variable in VARIABLES.items()
    if (found := re.search(r"from ([0-9.]+) to ([0-9.]+)", variable.parser.expects))
}
RATES = [name for name, variable in VARIABLES.items() if isinstance(variable.default, Rate)]
# DB_PORT is used only with these.
NEEDED = {"DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u", "SECRET_KEY": SECRET_KEY}


def test_value_outside_its_range_ends_with_one_line_that_names_the_range(tmp_path: Path) -> None:
    expected: dict[str, str] = {}
    for name, (range_, low, high) in RANGES.items():
        step = 1 if low == int(low) else Decimal("0.001")
        expected |= {f"{name}={low - step}": range_, f"{name}={high + step}": range_}
    for name in RATES:
        for text in ("0/h", "100000/h", "1/0h", "1/1000h"):
            expected[f"{name}={text}"] = RATE
    assert len(expected) > 60
    results = run_all(tmp_path, NEEDED, *(f"{given} openapi" for given in expected))
    for result, (given, range_) in zip(results, expected.items(), strict=True):
        assert (result.code, result.stdout) == (2, ""), given
        assert result.stderr.startswith(f"shinkei: {given.partition('=')[0]}: expected "), given
        assert range_ in result.stderr, given


def test_both_ends_of_every_range_are_accepted() -> None:
    for name, (_, low, high) in RANGES.items():
        for value in (low, high):
            load_settings({**NEEDED, name: str(value)})
    for name in RATES:
        for text in ("1/s", "99999/999d"):
            load_settings({name: text})


def test_every_range_is_in_the_help_and_in_the_documents() -> None:
    # Lines also break after hyphens.
    help_text = "".join(CliRunner().invoke(shinkei, ["serve", "--help"]).stdout.split())
    for variable in VARIABLES.values():
        assert f"Expects {variable.parser.expects}.".replace(" ", "") in help_text, variable.name
        assert f" | {variable.parser.expects} | " in markdown(), variable.name


def test_option_workers_has_the_range_of_its_variable() -> None:
    (option,) = serve.command.params
    assert isinstance(option.type, click.IntRange)
    assert f"from {option.type.min} to {option.type.max}" == RANGES["WORKERS"][0]
