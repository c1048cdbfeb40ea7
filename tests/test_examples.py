"""Run examples/walk.py as the README describes, against a fresh service."""

import sys
from pathlib import Path

import pytest

from tests.support.clients import ROOT
from tests.support.processes import SHINKEI, environment, run_command, serving

PASSWORD = "who looks after the engines"


@pytest.mark.slow
def test_example_walk_completes_every_flow(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        variables = environment(
            SHINKEI_URL=url,
            DATA_DIR=str(tmp_path / ".data"),
            ADMIN_EMAIL="root@example.com",
            ADMIN_PASSWORD=PASSWORD,
        )
        command = (*SHINKEI, "create-admin", "--email", "root@example.com")
        created = run_command(*command, cwd=tmp_path, env=variables, text=f"{PASSWORD}\n")
        assert created.returncode == 0, created.stderr
        walk = run_command(
            sys.executable, str(ROOT / "examples" / "walk.py"), cwd=tmp_path, env=variables
        )
    assert walk.returncode == 0, walk.stdout + walk.stderr
    assert walk.stdout.splitlines()[-1] == "done"
