"""Starts programs as another user, tied to the life of this process."""

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


def others_may_enter(directory: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))


def find_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError("PostgreSQL refuses to run as root: create the user postgres, or nobody")


def give(cluster: Path, account: pwd.struct_passwd) -> None:
    if cluster.stat().st_uid == account.pw_uid:
        return
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def reachable(
    path: Path, account: pwd.struct_passwd | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A name for ``path`` that ``account`` can open though it may not enter the directories above.

    Root's checkout often lies in a private directory. A descriptor opened by root and inherited by
    the server leads straight to the directory, with no look at its parents (proc(5)).
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
    """What goes before a command so that it runs as ``account`` and does not outlive its parent.

    Root's Python begins it, because the account may not be able to enter a virtual environment.
    """
    uid, gid = (account.pw_uid, account.pw_gid) if account else (0, 0)
    numbers = (os.getpid(), int(death_signal), uid, gid)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, numbers)]


def apart(fds: tuple[int, ...]) -> dict[str, Any]:
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
