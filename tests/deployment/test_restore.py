"""The guide's commands for backups, followed up to a restore to the moment before a mistake."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.db import migrations
from service.embedded import server as embedded
from service.embedded.binaries import find_bindir
from service.embedded.launcher import chown_to, find_account
from service.settings import Database
from tests.support.clients import FAST, StartApp
from tests.support.factories import PASSWORD, register
from tests.support.manifests import code_blocks
from tests.support.processes import connect, run, run_command, url_of
from tests.support.waiting import eventually_blocking

ARCHIVE, CLEAR = code_blocks("sql", "Backup and restore")
BACK_UP, RESTORE = code_blocks("sh", "Backup and restore")
GUIDE_TIME = "2026-11-29 16:59:00+00"
LOGIN = "/api/v1/auth/login"


@pytest.fixture
def backups() -> Iterator[Path]:
    """A directory in which PostgreSQL's user may write."""
    directory = Path(tempfile.mkdtemp())
    (directory / "wal").mkdir()
    directory.chmod(0o755)
    if os.geteuid() == 0:
        chown_to(directory / "wal", find_account())
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], embedded.Server]]:
    """Return a function that starts the server in the directory of this name, or starts it again."""
    running: dict[str, embedded.Server] = {}

    def start(name: str) -> embedded.Server:
        if name in running:
            running.pop(name).stop()
        (tmp_path / name).mkdir(exist_ok=True)
        running[name] = embedded.start(tmp_path / name, options=FAST)
        return running[name]

    yield start
    for server in running.values():
        server.stop()


def follow(statements: str, database: Database, backups: Path) -> None:
    with connect(database) as conn:
        for line in statements.replace("/srv/backup", str(backups)).splitlines():
            conn.execute(line.partition("--")[0])


def follow_commands(commands: str, paths: dict[str, Path], **variables: str) -> None:
    for name, path in paths.items():
        commands = commands.replace(name, str(path))
    search = f"{find_bindir(None)}:{os.environ['PATH']}"
    done = run_command("sh", "-euc", commands, env={**os.environ, "PATH": search, **variables})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
async def test_accounts_deleted_by_mistake_are_back_after_a_restore_to_the_moment_before(
    start_app: StartApp,
    start: Callable[[str], embedded.Server],
    backups: Path,
    tmp_path: Path,
) -> None:
    database = start("primary").database
    follow(ARCHIVE, database, backups)
    database = start("primary").database
    await asyncio.to_thread(migrations.apply_pending, database)
    client = await start_app(database=database)
    before_backup = await register(client)
    paths = {"/srv/backup": backups, "/srv/restored": tmp_path / "restored" / "postgres"}
    source = url_of(database)["DATABASE_URL"]
    await asyncio.to_thread(follow_commands, BACK_UP, paths, SOURCE=source)

    after_backup = await register(client)
    with connect(database) as conn:
        (moment,) = conn.execute("select clock_timestamp()::text").fetchone()
        conn.execute("truncate users cascade")
    too_late = await register(client)
    await client.close()
    with connect(database) as conn:
        (wal,) = conn.execute("select pg_walfile_name(pg_switch_wal())").fetchone()
    eventually_blocking((backups / "wal" / wal).exists)

    (tmp_path / "restored").mkdir()
    shutil.copy(tmp_path / "primary" / "postgres_password", tmp_path / "restored")
    await asyncio.to_thread(follow_commands, RESTORE.replace(GUIDE_TIME, moment), paths)
    restored = start("restored").database
    with connect(restored) as conn:
        eventually_blocking(lambda: not conn.execute("select pg_is_in_recovery()").fetchone()[0])
    follow(CLEAR, restored, backups)

    client = await start_app(database=restored)
    statuses = []
    for account in (before_backup, after_backup, too_late):
        me = await client.get("/api/v1/users/me", headers=account.headers)
        body = {"email": account.profile["email"], "password": PASSWORD}
        statuses.append((me.status, (await client.post(LOGIN, json=body)).status))
    assert statuses == [(401, 200), (401, 200), (401, 401)]
    await client.close()

    other_key = url_of(restored) | {
        "SECRET_KEY": "another key, which opens none of the signing keys"
    }
    refused = await asyncio.to_thread(lambda: run("serve", cwd=tmp_path, **other_key))
    assert refused.returncode == 2
    assert "SECRET_KEY" in refused.stderr
