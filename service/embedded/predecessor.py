"""Finds and stops a server left running by a killed process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.exceptions import StartError

# How long a server may take to stop by itself after its owner was killed, before it is signalled.
PREDECESSOR_GRACE_S = 2


def stop_predecessor(cluster: Path, stop_timeout_s: float) -> None:
    """Wait for a server whose owner was killed to stop, and stop it if it does not.

    Raises StartError if it is still running after ``stop_timeout_s``.
    """
    ask_at = time.monotonic() + PREDECESSOR_GRACE_S
    deadline = ask_at + stop_timeout_s
    while True:
        pid, _, _ = read_pid_file(cluster)
        if not is_server_of(pid, cluster):
            break
        if time.monotonic() > deadline:
            raise StartError(f"{cluster} is in use by process {pid}, which does not stop")
        if time.monotonic() > ask_at:
            ask_at = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.02)
    if pid and exists(pid):
        # PostgreSQL would mistake the unrelated process, or a zombie, for a running server.
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def read_pid_file(cluster: Path) -> tuple[int, int, bool]:
    """Read a server's process id, its port (0 until ready), and whether it is ready.

    Returns ``(0, 0, False)`` without a valid file. The file outlives a killed server, so the
    process id may by now belong to another program.
    """
    try:
        lines = (cluster / "postmaster.pid").read_text().split("\n")
        # A server in single-user mode writes a negative id.
        pid = abs(int(lines[0]))
    except (OSError, ValueError):
        return 0, 0, False
    # The eighth line is written last.
    ready = len(lines) > 7 and lines[7].strip() == "ready"
    return pid, int(lines[3]) if ready else 0, ready


def is_server_of(pid: int, cluster: Path) -> bool:
    """Whether the process is a PostgreSQL server running on this directory."""
    if sys.platform == "linux":
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            # A server's working directory is its data directory.
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


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
