"""DATA_DIR: who may read it, who may share it, and what happens when its disk is full."""

import contextlib
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded import cluster, data_dir
from service.embedded import server as embedded
from service.exceptions import StartError
from tests.support.factories import PASSWORD
from tests.support.processes import SHINKEI, announced, call, environment, started
from tests.support.waiting import DEADLINE_S, eventually_blocking

# What initdb 18 wrote on a disk of 1 MiB, and on one of 24 MiB.
NO_SPACE_AT_FIRST = """\
2026-11-29 08:01:59.317 UTC [26727] FATAL:  could not write to file "pg_wal/xlogtemp.26727": No space left on device
child process exited with exit code 1
initdb: removing data directory "/data/postgres.new.x/cluster"
"""
NO_SPACE_LATER = """\
2026-11-29 08:02:03.448 UTC [26789] FATAL:  could not write to file "base/4/2608_vm": No space left on device
2026-11-29 08:02:03.448 UTC [26789] STATEMENT:  CREATE DATABASE template0 IS_TEMPLATE = true ALLOW_CONNECTIONS = false OID = 4 STRATEGY = file_copy;
\t
child process exited with exit code 1
initdb: removing data directory "/data/postgres.new.x/cluster"
"""


def readable_by_others(top: Path) -> list[Path]:
    """Return the files below a directory, itself included, that other users have access to."""
    return [path for path in (top, *top.rglob("*")) if path.lstat().st_mode & 0o077]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.slow
@pytest.mark.parametrize("umask", ["0", "022"])
def test_whatever_the_service_writes_is_private_whatever_the_umask(
    tmp_path: Path, umask: str
) -> None:
    top = tmp_path / "srv"
    shell = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    env = environment(DATA_DIR=str(top / "data"))
    with started(*shell, *SHINKEI, "serve", cwd=tmp_path, env=env) as process:
        served = announced(process)
        account = {"email": "ada@example.com", "name": "Ada", "password": PASSWORD}
        assert call(f"{served.url}/api/v1/auth/register", account)[0] == 201
        eventually_blocking(lambda: list(top.glob("data/mail/*.eml")))
        assert served.ends_with(signal.SIGTERM) == 0
    assert (top / "data" / "postgres.log").exists()
    assert readable_by_others(top) == []


def test_directory_that_was_opened_to_others_is_private_after_the_next_start(
    tmp_path: Path,
) -> None:
    ours = tmp_path / "data"
    with data_dir.open_lock(ours):
        pass
    (ours / "postgres" / "base").mkdir(parents=True)
    (ours / "mail").mkdir()
    for name in ("postgres.log", "postgres_port", "secret_key", "mail/1.eml", "postgres/base/1"):
        (ours / name).touch()
    for path in (ours, *ours.rglob("*")):
        path.chmod(0o777)
    with data_dir.open_lock(ours):
        assert readable_by_others(ours) == []


@pytest.mark.usefixtures("no_umask")
def test_directory_that_shinkei_did_not_create_keeps_its_permissions(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "mail").mkdir(parents=True)
    for _ in range(2):
        with data_dir.open_lock(home):
            assert (mode_of(home), mode_of(home / "mail")) == (0o777, 0o777)


@pytest.mark.usefixtures("no_umask")
def test_own_files_in_a_directory_of_others_are_private(tmp_path: Path) -> None:
    (tmp_path / "postgres.log").touch()
    with data_dir.open_lock(tmp_path):
        assert mode_of(tmp_path / "postgres.log") == 0o600
        assert mode_of(tmp_path / "postgres.lock") == 0o600


def test_files_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "elsewhere.log"
    log.touch(0o644)
    (tmp_path / "postgres.log").symlink_to(log)
    with data_dir.open_lock(tmp_path):
        assert mode_of(log) == 0o644


@pytest.mark.slow
def test_services_started_at_once_share_the_directory(tmp_path: Path) -> None:
    env = environment(DATA_DIR=str(tmp_path / "data"))
    command = (*SHINKEI, "serve")
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(*command, cwd=tmp_path, env=env)) for _ in range(3)]
        services = [announced(process) for process in running]
        published = [call(f"{service.url}/.well-known/jwks.json") for service in services]
        assert published == [published[0]] * 3
        # The owner of the server is one of them, and may be the first to stop.
        for service in services:
            service.process.send_signal(signal.SIGTERM)
        assert [service.process.wait(DEADLINE_S) for service in services] == [0, 0, 0]
    with started(*command, cwd=tmp_path, env=env) as process:
        assert call(f"{announced(process).url}/.well-known/jwks.json") == published[0]


def test_secret_that_another_process_made_first_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret_key"

    def overtaken(size: int) -> str:
        path.write_text("of the other process")
        return "ours, a moment too late"

    monkeypatch.setattr(secrets, "token_urlsafe", overtaken)
    assert cluster.read_or_make_secret(path) == "of the other process"
    assert path.read_text() == "of the other process"
    assert list(tmp_path.iterdir()) == [path], "no scratch file is left"


def test_line_break_that_an_editor_added_is_no_part_of_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("a secret\n", encoding="utf-8-sig")
    assert cluster.read_secret_key(tmp_path) == "a secret"


def test_empty_secret_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret_key").touch()
    with pytest.raises(StartError, match="secret_key is empty: restore it from a backup$"):
        cluster.read_secret_key(tmp_path)


def test_second_process_becomes_the_owner_if_the_first_does_not_get_ready(tmp_path: Path) -> None:
    """The first one may have failed to start its server."""
    first = data_dir.open_lock(tmp_path)
    assert embedded._lock(first.fileno())
    with data_dir.open_lock(tmp_path) as second:
        first.close()
        assert embedded._lock_or_attach(second.fileno(), tmp_path) is None


@pytest.mark.parametrize("written", [NO_SPACE_AT_FIRST, NO_SPACE_LATER])
def test_full_disk_is_named_with_the_space_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    bindir = tmp_path / "bin"
    bindir.mkdir()
    (tmp_path / "written").write_text(written)
    for name in ("initdb", "postgres"):
        (bindir / name).write_text(f"#!/bin/sh\ncat {tmp_path / 'written'} >&2; exit 1\n")
        (bindir / name).chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PG_BINDIR", str(bindir))
    with pytest.raises(StartError) as raised:
        embedded.start(tmp_path)
    reason = str(raised.value)
    assert "No space left on device" in reason
    assert f"{tmp_path} has " in reason
    assert reason.endswith(" MiB free and needs about 100 MiB")
    assert "\n" not in reason


def test_full_disk_is_named_even_if_postgresql_could_not_log_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    assert data_dir.explain_space(tmp_path, "no log") == (
        f"no log; No space left on device; {tmp_path} has 0 MiB free and needs about 100 MiB"
    )


def test_secret_that_does_not_fit_on_the_disk_is_reported_with_its_directory(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(StartError, match=f"^DATA_DIR {tmp_path}: .*No space left on device; "),
        data_dir.disk_errors(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
