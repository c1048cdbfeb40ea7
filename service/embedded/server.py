"""The embedded PostgreSQL for development, tests and trying things out.

The process that starts the server owns it: it restarts the server after a crash and stops it at
exit. If the owner is killed, Linux stops the server too (prctl(2)); elsewhere the next start does.
A second process with the same DATA_DIR uses the first one's server, which keeps its port after a
restart.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.embedded.binaries import find_bindir
from service.embedded.cluster import (
    USER,
    check_version,
    choose_port,
    initialise,
    read_or_make_secret,
    read_secret,
)
from service.embedded.data_dir import disk_errors, explain_space, open_lock
from service.embedded.launcher import chown_to, find_account, isolated, launcher, reachable
from service.embedded.predecessor import is_server_of, read_pid_file, stop_predecessor
from service.exceptions import StartError
from service.settings import Database

log = logging.getLogger(__name__)
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
WATCH_EVERY_S = 0.2
# Minimum time between restarts of a server that keeps crashing.
RESTART_EVERY_S = 2
# Overrides libpq variables in a developer's shell (PGSSLMODE) that are meant for other servers.
_CONNECTION_OPTIONS = (("sslmode", "disable"), ("target_session_attrs", "any"))


@dataclass(slots=True)
class Server:
    """A running server that this process owns."""

    database: Database
    process: "subprocess.Popen[bytes]"
    log_path: Path

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT is pg_ctl's fast shutdown, SIGQUIT its immediate one."""
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(data_dir: Path, *, connections: int = 0) -> Iterator[Database]:
    """Yield the database of ``data_dir``, with room for more than ``connections`` connections.

    The first process starts the server, keeps it running and stops it; others attach to it.
    Raises StartError.
    """
    with open_lock(data_dir) as lock:
        shared = _lock_or_attach(lock.fileno(), data_dir)
        if shared is not None:
            yield shared
            return
        # Some extra for migrations, a second process and psql.
        options = {"max_connections": str(max(100, connections + 20))}
        with disk_errors(data_dir):
            server = start(data_dir, options=options)
        _, port = server.database.hosts[0]
        ending = threading.Event()
        keeper = threading.Thread(
            target=_keep_running,
            args=(server, lambda: start(data_dir, port=port, options=options), ending),
            # Lets the process exit if the main thread is interrupted while joining this one.
            daemon=True,
        )
        keeper.start()
        try:
            yield server.database
        finally:
            ending.set()
            keeper.join()


def _keep_running(
    server: Server, start_again: Callable[[], Server], ending: threading.Event
) -> None:
    """Restart the server whenever it ends, until ``ending`` is set; then stop it.

    Linux kills a server when the thread that started it ends, not only the process. So the thread
    that restarts the server lives until it has stopped it.
    """
    started_at = time.monotonic()
    while not ending.wait(WATCH_EVERY_S):
        exit_code = server.process.poll()
        if exit_code is None or time.monotonic() < started_at + RESTART_EVERY_S:
            continue
        started_at = time.monotonic()
        try:
            server = start_again()
        except (OSError, StartError) as error:
            log.error("embedded PostgreSQL ended and does not start", extra={"reason": str(error)})
        else:
            log.warning(
                "embedded PostgreSQL ended and was started again", extra={"exit_code": exit_code}
            )
    server.stop()


def inspect_data_dir(data_dir: Path) -> tuple[Database | None, str]:
    """Return the server running on ``data_dir``, or None and where its executables come from.

    Changes nothing. Raises StartError if ``running`` could not start a server.
    """
    running_one = _find_running(data_dir)
    if running_one is not None:
        return running_one, ""
    cluster = data_dir / "postgres"
    if os.geteuid() == 0:
        find_account()
    # Without the account, so that this makes no copy of the wheel for it.
    bindir = find_bindir(None)
    if (cluster / "PG_VERSION").exists():
        check_version(bindir, cluster)
    return None, f"from {bindir}"


def start(data_dir: Path, *, port: int = 0, options: Mapping[str, str] | None = None) -> Server:
    """Initialise ``data_dir/postgres`` on first use, start its server, and wait until it is ready.

    Listens on 127.0.0.1, on ``port`` or a free one; ``options`` are PostgreSQL settings. If we are
    root, the server runs as ``postgres`` or ``nobody``, because PostgreSQL does not run as root.
    Raises StartError.
    """
    account = find_account() if os.geteuid() == 0 else None
    bindir = find_bindir(account)
    cluster = data_dir / "postgres"
    password = read_or_make_secret(data_dir / "postgres_password")
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "timezone": "UTC",
        **(options or {}),
    }
    for leftover in data_dir.glob("postgres.new.*"):
        # Processes of a killed initialisation may still be writing to it.
        shutil.rmtree(leftover, ignore_errors=True)
    if not (cluster / "PG_VERSION").exists():
        initialise(bindir, cluster, password, account, durable=settings.get("fsync") != "off")
    check_version(bindir, cluster)
    if account:
        chown_to(cluster, account)
    stop_predecessor(cluster, STOP_TIMEOUT_S)
    port = port or choose_port(data_dir / "postgres_port")
    log_path = data_dir / "postgres.log"
    with reachable(cluster, account) as (path, fds), log_path.open("ab") as log_file:
        command = [str(bindir / "postgres"), "-D", path, "-c", f"port={port}"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = subprocess.Popen(  # noqa: S603
            # SIGQUIT: an immediate shutdown, with crash recovery at the next start.
            [*launcher(signal.SIGQUIT, account), *command],
            stdout=log_file,
            stderr=log_file,
            **isolated(fds),
        )
        server = Server(_database(port, password), process, log_path)
        try:
            _wait_until_ready(server, cluster)
        except BaseException:
            server.stop(signal.SIGQUIT)
            raise
    return server


def _database(port: int, password: str) -> Database:
    return Database((("127.0.0.1", port),), "postgres", USER, password, options=_CONNECTION_OPTIONS)


def _wait_until_ready(server: Server, cluster: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        pid, _, ready = read_pid_file(cluster)
        if ready and pid == server.process.pid:
            return
        if server.process.poll() is not None or time.monotonic() > deadline:
            last = (server.log_path.read_text(errors="replace").splitlines() or ["no log"])[-1]
            reason = explain_space(cluster.parent, last)
            raise StartError(f"PostgreSQL did not start ({server.log_path}): {reason}")
        time.sleep(0.01)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_or_attach(fd: int, data_dir: Path) -> Database | None:
    """Take the lock and return None, or return the database that its holder serves.

    The holder may still be starting, and may fail to. Raises StartError.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _lock(fd):
        database = _find_running(data_dir)
        if database is not None:
            return database
        if time.monotonic() > deadline:
            raise _not_ready(data_dir)
        time.sleep(0.02)
    return None


def attach(data_dir: Path) -> Database:
    """Return the database of the parent's server, once it is ready. Raises StartError."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        database = _find_running(data_dir)
        if database is not None:
            return database
        time.sleep(0.02)
    raise _not_ready(data_dir)


def _not_ready(data_dir: Path) -> StartError:
    return StartError(f"another process holds {data_dir} but did not become ready")


def _find_running(data_dir: Path) -> Database | None:
    """Return the database of the server that runs on ``data_dir``, if one is ready."""
    cluster = data_dir / "postgres"
    pid, port, ready = read_pid_file(cluster)
    if ready and is_server_of(pid, cluster):
        return _database(port, read_secret(data_dir / "postgres_password"))
    return None
