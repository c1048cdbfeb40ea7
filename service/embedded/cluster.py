"""The files of the embedded cluster: its data directory, port and secrets."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.embedded.binaries import major_version
from service.embedded.data_dir import disk_errors, explain_space
from service.embedded.launcher import chown_to, isolated, launcher, reachable
from service.exceptions import StartError

USER = "shinkei"
_ERROR = re.compile(r"(?:PANIC|FATAL|ERROR|error): .*")


def read_secret_key(data_dir: Path) -> str:
    """Return the SECRET_KEY of ``data_dir``, generated on first use. Raises StartError."""
    with disk_errors(data_dir):
        return read_or_make_secret(data_dir / "secret_key")


def initialise(
    bindir: Path,
    cluster: Path,
    password: str,
    account: pwd.struct_passwd | None,
    *,
    durable: bool,
) -> None:
    """Create the cluster in a temporary directory and rename it once it is complete.

    An interrupted initialisation is therefore never mistaken for a cluster. The temporary name is
    unique, because children of a killed initdb may keep writing to theirs for a moment.
    Raises StartError.
    """
    try:
        aside = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=cluster.parent))
        try:
            write_private(aside / "password", password.encode())
            if account:
                chown_to(aside, account)
            _run_initdb(bindir, aside, account)
            if durable:
                # Much faster than initdb's own fsync of every file.
                os.sync()
            (aside / "cluster").rename(cluster)
            sync_directory(cluster.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        reason = explain_space(cluster.parent, str(error.strerror))
        raise StartError(f"cannot initialise {cluster}: {reason}") from None


def _run_initdb(bindir: Path, aside: Path, account: pwd.struct_passwd | None) -> None:
    # The built-in C.UTF-8 does not change with a system library, which would corrupt text indexes.
    # It also makes lower() faster.
    provider = ["--locale-provider=builtin"] if int(major_version(bindir) or 0) >= 17 else []
    with reachable(aside, account) as (path, fds):
        result = subprocess.run(  # noqa: S603
            [
                # initdb only records other signals. Its children exit when its pipe closes.
                *launcher(signal.SIGKILL, account),
                *(str(bindir / "initdb"), "-D", f"{path}/cluster", f"--pwfile={path}/password"),
                *("-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", *provider),
                *("--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **isolated(fds),
        )
    if result.returncode:
        reason = explain_space(aside.parent, find_reason(result.stderr) or "initdb failed")
        raise StartError(f"cannot initialise {aside.with_name('postgres')}: {reason}")


def find_reason(written: str) -> str:
    """Return why a program of PostgreSQL failed, without a line's timestamp and process id.

    The first error causes those after it, and initdb ends by telling how it tidies up.
    """
    lines = written.strip().splitlines() or [""]
    errors = (found[0] for found in map(_ERROR.search, lines) if found)
    return next(errors, lines[-1].removeprefix("initdb: "))


def check_version(bindir: Path, cluster: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    major = major_version(bindir)
    if major != made_by:
        raise StartError(
            f"{cluster} was created by PostgreSQL {made_by}, but the one in {bindir} is"
            f" {major or 'broken'}: point PG_BINDIR at PostgreSQL {made_by}, or change DATA_DIR"
        )


def choose_port(path: Path) -> int:
    """Return the port of the last start if it is free, or else a new one, saved for the next start.

    New ports lie outside the ephemeral range: an outgoing connection could otherwise take the port
    while the server is down. Raises StartError.
    """
    kept = [int(path.read_text())] if path.exists() else []
    for port in (*kept, *(10_000 + secrets.randbelow(20_000) for _ in range(100))):
        if _is_free(port):
            if port not in kept:
                write_private(path, str(port).encode())
            return port
    raise StartError("no free port on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Like the server itself: lingering connections of the last one do not block the port.
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
    """Write a file atomically, readable only by its owner."""
    with _scratch(path, content) as scratch:
        scratch.replace(path)


def read_or_make_secret(path: Path) -> str:
    """Return the secret in the file, generated on first use and never replaced.

    If several processes generate it at once, all return the same one. Raises StartError.
    """
    if not path.exists():
        content = secrets.token_urlsafe(36).encode()
        with _scratch(path, content) as scratch, contextlib.suppress(FileExistsError):
            path.hardlink_to(scratch)
        sync_directory(path.parent)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """Return the secret, without the line break or byte order mark that an editor may have added.

    Raises StartError if there is none.
    """
    secret = path.read_text(encoding="utf-8-sig").strip()
    if not secret:
        raise StartError(f"{path} is empty: restore it from a backup")
    return secret


@contextlib.contextmanager
def _scratch(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a private file beside ``path`` that holds all of ``content``, on disk."""
    fd, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)
