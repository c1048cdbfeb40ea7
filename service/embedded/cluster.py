"""The files of the embedded cluster: initialised, given a port and secrets."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from service.embedded.binaries import major_version
from service.embedded.launcher import apart, give, launcher, reachable
from service.exceptions import StartError

USER = "shinkei"


def read_secret_key(data_dir: Path) -> str:
    """The SECRET_KEY that belongs to ``data_dir``, made on first use."""
    return read_or_make_secret(data_dir / "secret_key")


def initialise(
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
            write_private(aside / "password", password.encode())
            if account:
                give(aside, account)
            _run_initdb(bindir, aside, account)
            if durable:
                # initdb's own way, a thousand fsyncs, takes longer than all the rest of it.
                os.sync()
            (aside / "cluster").rename(cluster)
            sync_directory(cluster.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise StartError(f"cannot initialise {cluster}: {error.strerror}") from None


def _run_initdb(bindir: Path, aside: Path, account: pwd.struct_passwd | None) -> None:
    # PostgreSQL's own C.UTF-8 never changes with a library of the system, which would leave indexes
    # of text out of order; and lower() takes a third of the time.
    provider = ["--locale-provider=builtin"] if int(major_version(bindir) or 0) >= 17 else []
    with reachable(aside, account) as (path, fds):
        result = subprocess.run(  # noqa: S603
            [
                # initdb only takes note of other signals. Its children end when its pipe does.
                *launcher(signal.SIGKILL, account),
                *(str(bindir / "initdb"), "-D", f"{path}/cluster", f"--pwfile={path}/password"),
                *("-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", *provider),
                *("--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **apart(fds),
        )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["initdb failed"]
        raise StartError(
            f"cannot initialise {aside.with_name('postgres')}: {lines[-1].removeprefix('initdb: ')}"
        )


def check_version(bindir: Path, cluster: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    major = major_version(bindir)
    if major != made_by:
        raise StartError(
            f"{cluster} was made by PostgreSQL {made_by}, the one found in {bindir} is"
            f" {major or 'broken'}: set PG_BINDIR to a PostgreSQL {made_by}, or another DATA_DIR"
        )


def choose_port(path: Path) -> int:
    """The port of the last start where it is free, or another one, kept for the next start.

    Not from the range that systems give to outgoing connections: one of those would take it while
    the server is down.
    """
    kept = [int(path.read_text())] if path.exists() else []
    for port in (*kept, *(10_000 + secrets.randbelow(20_000) for _ in range(100))):
        if _is_free(port):
            write_private(path, str(port).encode())
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


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and readable by its owner alone."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    scratch.replace(path)


def read_or_make_secret(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, secrets.token_urlsafe(36).encode())
    return path.read_text()
