"""The unit in deploy/systemd, checked with systemd's own tools."""

import shlex
import sys
from pathlib import Path

import pytest

from service.process.server import stop_timeout_s
from service.settings import SettingsError, load_settings
from tests.support.manifests import DEPLOY, code_blocks, load_known
from tests.support.processes import run_command
from tests.support.programs import require

UNIT = (DEPLOY / "systemd" / "shinkei.service").read_text()
ENVIRONMENT = dict(
    word.split("=", 1)
    for word in shlex.split((DEPLOY / "systemd" / "environment").read_text(), comments=True)
)
# Of ten, at most; a unit without any hardening has 9.6.
EXPOSURE = 1.5


def analyze(tmp_path: Path, command: str, *options: str) -> str:
    """Run ``systemd-analyze`` on the unit, with a program that exists here; return its output."""
    unit = tmp_path / "shinkei.service"
    unit.write_text(UNIT.replace("/opt/shinkei/bin/shinkei", sys.executable))
    analyzed = run_command(require("systemd-analyze"), command, *options, str(unit))
    assert analyzed.returncode == 0, analyzed.stdout + analyzed.stderr
    return analyzed.stderr


def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path) -> None:
    assert analyze(tmp_path, "verify", "--man=no") == ""


def test_unit_is_hardened(tmp_path: Path) -> None:
    analyze(tmp_path, "security", "--offline=yes", f"--threshold={round(EXPOSURE * 10)}")


def test_environment_is_valid_once_it_has_a_secret_key() -> None:
    assert load_known(ENVIRONMENT | {"SECRET_KEY": "k" * 64}).database is not None


def test_environment_without_a_secret_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="SECRET_KEY"):
        load_settings(ENVIRONMENT)


def test_data_is_kept_where_the_unit_may_write() -> None:
    assert f"\nStateDirectory={Path(ENVIRONMENT['DATA_DIR']).name}\n" in UNIT
    assert ENVIRONMENT["DATA_DIR"].startswith("/var/lib/")


def test_steps_of_the_guide_keep_the_variables_when_they_are_repeated(tmp_path: Path) -> None:
    """An upgrade repeats them, and SECRET_KEY must survive it."""
    block = code_blocks("sh", "systemd")[0].replace("||\n", "||")
    [step] = (line for line in block.splitlines() if "deploy/systemd/environment" in line)
    installed = tmp_path / "shinkei" / "environment"
    for kept in ((DEPLOY / "systemd" / "environment").read_text(), "SECRET_KEY=edited"):
        shell = run_command("sh", "-ec", step.replace("/etc", str(tmp_path)))
        assert (shell.returncode, installed.read_text()) == (0, kept), shell.stderr
        installed.write_text("SECRET_KEY=edited")


def test_service_stops_by_itself_before_it_is_killed() -> None:
    limit_s = float(UNIT.partition("\nTimeoutStopSec=")[2].split()[0])
    assert limit_s > stop_timeout_s(load_known(ENVIRONMENT | {"SECRET_KEY": "k" * 64})) + 2
