"""The pinned dependencies in ``requirements/`` satisfy ``pyproject.toml``."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.clients import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"service": (), "serve": ("embedded",), "dev": ("embedded", "dev")}
PIN = re.compile(
    r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)(?: ; [^\\]+)? \\\n"
    r"((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
)


def text_of(name: str) -> str:
    return (ROOT / f"requirements/{name}.txt").read_text()


def pinned(name: str) -> dict[str, str]:
    """Map each pinned package to its version."""
    return {
        canonicalize_name(package): version for package, version, _ in PIN.findall(text_of(name))
    }


@pytest.mark.parametrize("name", EXTRAS)
def test_pins_satisfy_each_dependency(name: str) -> None:
    wanted = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["build"]
    for extra in EXTRAS[name]:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    pins = pinned(name)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), (
            requirement
        )


@pytest.mark.parametrize("name", EXTRAS)
def test_each_pin_has_its_hashes(name: str) -> None:
    lines = [line for line in text_of(name).splitlines() if not line.startswith(("#", " "))]
    assert len(pinned(name)) == len(lines)


def test_files_agree_on_versions() -> None:
    service, serve, dev = map(pinned, EXTRAS)
    assert service.items() <= serve.items() <= dev.items()


def test_pinned_build_tools_are_those_that_the_build_requires() -> None:
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]
