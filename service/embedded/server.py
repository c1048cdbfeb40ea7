"""The embedded PostgreSQL: initialised, started and stopped for development, tests and trying out.

The server belongs to the process that started it, which starts it again where it ends unasked. It
stops with that process, and where that one is killed the kernel stops it too; this is Linux's
prctl(2), elsewhere the next start stops what was left running. A second process of the same
DATA_DIR uses the first one's server, and finds it again on the same port after a restart.
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
)
from service.embedded.launcher import apart, find_account, give, launcher, reachable
from service.embedded.predecessor import is_server_of, read_pid_file, stop_predecessor
from service.exceptions import StartError
from service.settings import Database

log = logging.getLogger(__name__)
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
WATCH_EVERY_S = 0.2
# A server that keeps ending is not started more often than this.
RESTART_EVERY_S = 2
# What a developer's shell says to libpq of other servers (PGSSLMODE) is not meant for this one.
_CONNECTION_OPTIONS = (("sslmode", "disable"), ("target_session_attrs", "any"))


@dataclass(slots=True)
class Server:
    """A running server that this process owns."""

    database: Database
    process: "subprocess.Popen[bytes]"
    log_path: Path

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT writes all to disk first (pg_ctl's fast), SIGQUIT just ends."""
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(data_dir: Path, *, connections: int = 0) -> Iterator[Database]:
    """The database of ``data_dir``; who starts it keeps it running and stops it, others use it.

    It takes so many connections, and some more.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "postgres.lock").open("a")
    except OSError as error:
        raise StartError(f"DATA_DIR {data_dir}: cannot be written ({error.strerror})") from None
    with lock:
        if not _lock(lock.fileno()):
            yield attach(data_dir)
            return
        # Others than the pools: migrations, a second process, somebody's psql.
        options = {"max_connections": str(max(100, connections + 20))}
        server = start(data_dir, options=options)
        _, port = server.database.hosts[0]
        ending = threading.Event()
        keeper = threading.Thread(
            target=_keep_running,
            args=(server, lambda: start(data_dir, port=port, options=options), ending),
            # Where the main thread is interrupted while it waits for this one, the process ends.
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
    """Start the server again whenever it ends, until ``ending``; then stop it.

    The kernel ends a server with the thread that started it, not only with the process: so the
    thread that starts it again is also the one that stops it.
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


def look(data_dir: Path) -> tuple[Database | None, str]:
    """The server that runs on ``data_dir``, or None, and the programs that would start one.

    Changes nothing. Raises StartError for what would keep ``running`` from starting it.
    """
    cluster = data_dir / "postgres"
    pid, port, ready = read_pid_file(cluster)
    if ready and is_server_of(pid, cluster):
        return _database(port, (data_dir / "postgres_password").read_text()), ""
    if os.geteuid() == 0:
        find_account()
    # As root it would be run from a copy, if need be, that its user can read.
    bindir = find_bindir(None)
    if (cluster / "PG_VERSION").exists():
        check_version(bindir, cluster)
    return None, f"with the programs of {bindir}"


def start(data_dir: Path, *, port: int = 0, options: Mapping[str, str] | None = None) -> Server:
    """Initialise ``data_dir/postgres`` on first use, start its server, and wait until it is ready.

    Listens on 127.0.0.1, on a free port unless one is given; ``options`` are PostgreSQL's settings.
    As root it runs as ``postgres`` or ``nobody``, because PostgreSQL refuses to run as root.
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
        # What is left of an initialisation that was killed may still be ending in there.
        shutil.rmtree(leftover, ignore_errors=True)
    if not (cluster / "PG_VERSION").exists():
        initialise(bindir, cluster, password, account, durable=settings.get("fsync") != "off")
    check_version(bindir, cluster)
    if account:
        give(cluster, account)
    stop_predecessor(cluster, STOP_TIMEOUT_S)
    port = port or choose_port(data_dir / "postgres_port")
    log_path = data_dir / "postgres.log"
    with reachable(cluster, account) as (path, fds), log_path.open("ab") as log_file:
        command = [str(bindir / "postgres"), "-D", path, "-c", f"port={port}"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = subprocess.Popen(  # noqa: S603
            # SIGQUIT: the server ends its children and itself, and recovers at the next start.
            [*launcher(signal.SIGQUIT, account), *command],
            stdout=log_file,
            stderr=log_file,
            **apart(fds),
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
            raise StartError(f"PostgreSQL did not start ({server.log_path}): {last}")
        time.sleep(0.01)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def attach(data_dir: Path) -> Database:
    """The server that another process has started, or is just starting."""
    cluster = data_dir / "postgres"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        pid, port, ready = read_pid_file(cluster)
        if ready and is_server_of(pid, cluster):
            return _database(port, read_or_make_secret(data_dir / "postgres_password"))
        time.sleep(0.02)
    raise StartError(f"another process holds {data_dir} and does not get ready")
