"""Forks of a process that has imported the service, because most commands run faster than imports.

Each fork runs commands as an operator would, and shares no state with other forks.
"""

import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coverage

from service import commands
from service.__main__ import main
from tests.support.clients import ROOT
from tests.support.waiting import DEADLINE_S

# What to run: the variables that it adds to the fork's, its arguments and its stdin.
Task = tuple[dict[str, str], list[str], str]
_starting = threading.Lock()


class _Forker(NamedTuple):
    process: "subprocess.Popen[bytes]"
    # Takes one socket for each fork. Closing it ends the process and its forks.
    control: socket.socket


def run_in_fork(cwd: Path, variables: dict[str, str], tasks: Sequence[Task]) -> list[Any]:
    """Run the tasks in a fork, and return the exit code, stdout and stderr of each."""
    with _starting:
        control = _start().control
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with ours, ours.makefile("rw") as stream:
        with theirs:
            socket.send_fds(control, [b"."], [theirs.fileno()])
        print(json.dumps([str(cwd), variables, tasks]), file=stream, flush=True)
        # The fork's end closes the stream. By then, its coverage is complete.
        results: list[Any] = json.loads(stream.read())
        return results


@functools.cache
def _start() -> _Forker:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            # Each fork measures its own coverage, for the test that asked for it.
            env={name: os.environ[name] for name in os.environ if not name.startswith("COVERAGE_")},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return _Forker(process, ours)


def end() -> None:
    """End the process that forks, if it was started."""
    if _start.cache_info().currsize:
        process, control = _start()
        control.close()
        process.wait(DEADLINE_S)
        _start.cache_clear()


def _fork_until_closed(control: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while received := socket.recv_fds(control, 1, 1)[1]:
        (connection,) = received
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            # The end of the process closes the connection.
            with open(connection, closefd=False) as stream:
                results = _run_tasks(*json.loads(stream.readline()))
            with open(connection, "w", closefd=False) as stream:
                json.dump(results, stream)
            # Skip the destruction of all modules, which takes longer than most commands.
            os._exit(0)
        os.close(connection)
    # Nobody waits for the forks any more.
    os.killpg(0, signal.SIGKILL)


def _modules_of(package: types.ModuleType) -> list[str]:
    return [
        f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)
    ]


def _run_tasks(cwd: str, variables: dict[str, str], tasks: list[Task]) -> list[object]:
    os.chdir(cwd)
    os.environ.update(variables)
    coverage.process_startup()
    return [_run(variables | own, arguments, read) for own, arguments, read in tasks]


def _run(variables: dict[str, str], arguments: list[str], read: str) -> tuple[object, str, str]:
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["shinkei", *arguments]
    stdin = io.BytesIO(read.encode("utf-8", "surrogateescape"))
    sys.stdin = io.TextIOWrapper(stdin, "utf-8", "surrogateescape")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return code, _written(out), _written(err)


def _written(file: "io.TextIOWrapper[io.BytesIO]") -> str:
    file.flush()
    return file.buffer.getvalue().decode()


if __name__ == "__main__":
    for name in (*_modules_of(commands), "psycopg", "service.app", "yoyo"):
        importlib.import_module(name)
    gc.freeze()
    _fork_until_closed(socket.socket(fileno=int(sys.argv[1])))
