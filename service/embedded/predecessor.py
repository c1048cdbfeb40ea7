"""Finds and stops a server that a killed process left running."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.exceptions import StartError

# How long a server whose owner was killed may take to stop by itself before it is told to.
PREDECESSOR_GRACE_S = 2


def stop_predecessor(cluster: Path, stop_timeout_s: float) -> None:
    """A server whose owner was killed may still be stopping; where it is not, stop it."""
    ask_at = time.monotonic() + PREDECESSOR_GRACE_S
    deadline = ask_at + stop_timeout_s
    while True:
        pid, _, _ = read_pid_file(cluster)
        if not is_server_of(pid, cluster):
            break
        if time.monotonic() > deadline:
            raise StartError(f"{cluster} is in use by the process {pid}, which does not stop")
        if time.monotonic() > ask_at:
            ask_at = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.02)
    if pid and exists(pid):
        # PostgreSQL would take the stranger, or a zombie, for a running server and not start.
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def read_pid_file(cluster: Path) -> tuple[int, int, bool]:
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


def is_server_of(pid: int, cluster: Path) -> bool:
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


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
