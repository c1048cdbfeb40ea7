"""The walk of examples/, by the README's words, on a service that starts from nothing."""

import subprocess
import sys
from pathlib import Path

from tests.support.clients import ROOT
from tests.support.processes import environment, serving

PASSWORD = "who looks after the engines"


def test_the_walk_through_every_flow(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        variables = environment(
            SHINKEI_URL=url,
            DATA_DIR=str(tmp_path / ".data"),
            ADMIN_EMAIL="root@example.com",
            ADMIN_PASSWORD=PASSWORD,
        )
        subprocess.run(
            [sys.executable, "-m", "service", "create-admin", "--email", "root@example.com"],
            cwd=tmp_path,
            env=variables,
            input=f"{PASSWORD}\n",
            text=True,
            check=True,
            capture_output=True,
        )
        walk = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "walk.py")],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert walk.returncode == 0, walk.stdout + walk.stderr
    assert walk.stdout.splitlines()[-1] == "done"
