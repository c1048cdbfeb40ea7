"""Starts programs as another user, bound to the lifetime of this process."""

import contextlib
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.exceptions import StartError

# Switches to the given user, asks the kernel for a signal when the parent dies (PR_SET_PDEATHSIG,
# which switching users would reset), then executes the given program. It is a separate program,
# because preexec_fn is unsafe in a process with threads, such as when the server is restarted.
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


def others_may_enter(directory: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))


def find_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError("PostgreSQL does not run as root: create a user named postgres or nobody")


def chown_to(cluster: Path, account: pwd.struct_passwd) -> None:
    if cluster.stat().st_uid == account.pw_uid:
        return
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def reachable(
    path: Path, account: pwd.struct_passwd | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a name for ``path`` that ``account`` can open, and the descriptors to inherit.

    Root's checkout is often in a private directory that ``account`` may not enter. Root therefore
    opens ``path``; the server inherits the descriptor and skips the parents' permissions (proc(5)).
    """
    if account is None or others_may_enter(path.parent):
        yield str(path), ()
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{fd}", (fd,)
    finally:
        os.close(fd)


def launcher(death_signal: signal.Signals, account: pwd.struct_passwd | None) -> list[str]:
    """Return a command prefix that runs a program as ``account`` and ties it to this process.

    Python starts as root, because ``account`` may not have access to the virtual environment.
    If the parent dies, Linux sends ``death_signal`` to the program.
    """
    uid, gid = (account.pw_uid, account.pw_gid) if account else (0, 0)
    numbers = (os.getpid(), int(death_signal), uid, gid)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, numbers)]


def isolated(fds: tuple[int, ...]) -> dict[str, Any]:
    """Return Popen arguments for a child that shares only the descriptors ``fds`` with us."""
    return {
        "stdin": subprocess.DEVNULL,
        "cwd": "/",
        # libpq's variables must not reach the server's tools, nor our secrets the server.
        "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
        "pass_fds": fds,
        # Ctrl-C reaches only the service, which then stops the child.
        "start_new_session": True,
    }
