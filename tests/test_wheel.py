"""The wheel, installed with only its dependencies."""

import os
import shutil
import signal
import sys
import urllib.request
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service.settings import Database
from tests.support.clients import ROOT
from tests.support.factories import PASSWORD
from tests.support.processes import (
    announced,
    call,
    environment,
    run_command,
    started,
    until_healthy,
    url_of,
)
from tests.support.waiting import eventually_blocking

# The same files as deploy/Dockerfile copies.
SOURCES = (
    "service",
    "migrations",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "LICENSES-blocklist.txt",
)


def build_wheel(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q")
    built = run_command(*pip_wheel, "-w", str(tmp_path), str(source), env=dict(os.environ))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("shinkei-*.whl")
    return wheel


def install(wheel: Path, target: Path) -> Path:
    """Install the wheel into a new virtual environment and return the command.

    Its dependencies are those of this environment, because resolving them again takes long.
    """
    venv = (sys.executable, "-m", "venv", "--without-pip", str(target))
    made = run_command(*venv, env=dict(os.environ))
    assert made.returncode == 0, made.stderr
    pip = (sys.executable, "-m", "pip", "--python", str(target / "bin/python"))
    installed = run_command(*pip, "install", "-q", "--no-deps", str(wheel), env=dict(os.environ))
    assert installed.returncode == 0, installed.stderr
    (packages,) = target.glob("lib/python*/site-packages")
    link_dependencies(packages)
    checked = run_command(*pip, "check", env=dict(os.environ))
    assert checked.returncode == 0, checked.stdout
    return target / "bin/shinkei"


def link_dependencies(packages: Path) -> None:
    """Link the dependencies of the wheel in ``packages``, and theirs, from this environment."""
    (wheel,) = packages.glob("shinkei-*.dist-info")
    needed = wanted(Distribution.at(wheel), set())
    linked = set()
    while needed:
        requirement = needed.pop()
        if str(requirement) in linked:
            continue
        linked.add(str(requirement))
        found = distribution(requirement.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
        needed += wanted(found, requirement.extras)


def wanted(found: Distribution, extras: set[str]) -> list[Requirement]:
    """Return what the distribution requires on this machine with these extras."""
    requirements = map(Requirement, found.requires or ())
    return [
        each
        for each in requirements
        if not each.marker
        or any(each.marker.evaluate({"extra": extra}) for extra in extras or {""})
    ]


@pytest.mark.slow
def test_installed_wheel_migrates_and_serves_from_an_empty_directory(
    empty_database: Database, tmp_path: Path
) -> None:
    shinkei = str(install(build_wheel(tmp_path), tmp_path / "installed"))
    empty = tmp_path / "empty"
    empty.mkdir()
    # Keep the checkout off the path.
    variables = environment(PYTHONPATH="", **url_of(empty_database))
    migrated = run_command(shinkei, "migrate", cwd=empty, env=variables)
    assert migrated.returncode == 0, migrated.stderr
    assert migrated.stdout.splitlines()[0] == "applied  0001.create-users"
    with started(shinkei, "serve", cwd=empty, env=variables) as process:
        served = announced(process)
        until_healthy(served.url)
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{served.url}/api/v1/auth/register", account)[0] == 201
        # Data files: the blocklist, the mail templates, the docs page.
        common = {"email": "bob@example.com", "password": "passwordpassword"}
        assert call(f"{served.url}/api/v1/auth/register", common)[0] == 422
        eventually_blocking(lambda: list(empty.glob(".data/mail/*")))
        with urllib.request.urlopen(f"{served.url}/docs/swagger-ui.js") as script:
            assert script.status == 200
        assert served.ends_with(signal.SIGTERM) == 0
