"""Run the examples as their documentation says."""

import re
import sys
from pathlib import Path

import pytest

from examples import walk
from service.db.connection import POOL
from service.routes import ROUTES
from tests.support.clients import ROOT, StartApp
from tests.support.factories import register_as
from tests.support.processes import SHINKEI, environment, run_command, serving

PASSWORD = "who looks after the engines"


async def test_example_walk_sends_a_request_to_every_route_and_deletes_its_accounts(
    start_app: StartApp, tmp_path: Path, capsys: pytest.CaptureFixture[str], mail_at_once: None
) -> None:
    client = await start_app(jobs_start_within_s=1e6)
    admin = await register_as(client, "admin")
    mail_dir = tmp_path / "data" / "mail"
    await walk.walk(str(client.make_url("/")), mail_dir, admin.profile["email"], admin.password)
    lines = re.findall(r"^([A-Z]+ +[^ ?]+)", capsys.readouterr().out, re.MULTILINE)
    walked = {" ".join(line.split()) for line in lines}
    table = {f"{route.method} {re.sub('{[a-z_]+}', '{id}', route.path)}" for route in ROUTES}
    without_step = ", ".join(sorted(table - walked))
    assert not without_step, f"add steps to examples/walk.py for: {without_step}"
    assert walked <= table
    assert client.app is not None
    left = await client.app[POOL].fetch("select email from users where purge_at is null")
    assert [row["email"] for row in left] == [admin.profile["email"]]


@pytest.mark.slow
def test_example_walk_completes_beside_a_running_service(tmp_path: Path) -> None:
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
