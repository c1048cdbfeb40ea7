"""Variables named in documents, help and examples exist and match their declarations."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.commands import shinkei
from service.settings import VARIABLES
from tests.support.clients import ROOT
from tools.configuration import DOCUMENT, markdown


def texts(directory: str) -> list[Path]:
    """Every file below it, without what Python compiled from a script there."""
    below = sorted((ROOT / directory).rglob("*"))
    return [path for path in below if path.is_file() and path.suffix != ".pyc"]


EXAMPLES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *texts("deploy"),
    *sorted((ROOT / "examples").glob("*.py")),
]
# Variables of the system, Python, OpenTelemetry, neighbouring services and development.
OTHERS = re.compile(
    "PATH|USER|PYTHONUNBUFFERED|SSL_CERT_FILE|PG_BINDIR|PG_UNICODE_FAST"
    "|(OTEL|POSTGRES|GF|MP)_[A-Z_]+|ADMIN_PASSWORD|FUZZ_SECONDS|VERSION|REVISION"
    "|FEATURE|MUTANTS|ONLY|PYTHON|ROUNDS|UPGRADE|VENV"
)
# Names that ``make ha`` fills in.
FILLED_IN = {
    name for path in texts("deploy/ha") for name in re.findall(r"\$\{(\w+)\}", path.read_text())
}
# A variable that is set (NAME=value, NAME: value, name: NAME) or named in code (`NAME_S`).
NAMED = re.compile(
    r"(?<![A-Za-z_$./{-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)(?==[^=])"
    r"|^\s+([A-Z][A-Z0-9_]+): "
    r"|\bname: ([A-Z][A-Z0-9_]+)\b"
    r"|`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`",
    re.MULTILINE,
)


def test_configuration_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == markdown(), "run: python -m tools.configuration"


def test_help_lists_every_variable() -> None:
    help_text = CliRunner().invoke(shinkei, ["serve", "--help"]).stdout
    assert set(VARIABLES) <= set(re.findall(r"^  ([A-Z_]+)\b", help_text, re.MULTILINE))
    assert "PORT [default: 8080]" in help_text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_documents_and_examples_name_only_existing_variables(path: Path) -> None:
    named = {next(filter(None, names)) for names in NAMED.findall(path.read_text())}
    others = named - VARIABLES.keys() - FILLED_IN
    unknown = {name for name in others if not OTHERS.fullmatch(name)}
    assert unknown == set()
