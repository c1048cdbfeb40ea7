"""Real processes that never outlive their test, even if pytest is killed.

Each process is killed with its group when its block ends, and by the kernel if pytest dies. The run
adopts the orphans of these processes (``adopt_orphans``) and fails if any are left.
"""

import codecs
import contextlib
import ctypes
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import psycopg

from service.settings import VARIABLES, Database
from tests.support.clients import ROOT, SECRET_KEY
from tests.support.waiting import DEADLINE_S, eventually_blocking

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Asks the kernel for SIGKILL when pytest dies, then executes the program. A shell has its background
# jobs ignore SIGINT and SIGQUIT, which the program would inherit.
_TIED = """
import ctypes, os, signal, sys
for ignored in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(9))
    if os.getppid() != int(sys.argv[1]):
        sys.exit("pytest is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""

SHINKEI = (sys.executable, "-m", "service")
Process = subprocess.Popen[str]


class Served(NamedTuple):
    """A serving process, its URL, and the events that it logged as JSON until it served."""

    process: Process
    url: str
    log: list[dict[str, Any]]

    def stderr_after(self, wanted: signal.Signals = signal.SIGTERM) -> str:
        """Send the signal and return the rest of what the process writes to stderr."""
        self.process.send_signal(wanted)
        return self.process.communicate(timeout=DEADLINE_S)[1]

    def ends_with(self, wanted: signal.Signals) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(wanted)
        return self.process.wait(DEADLINE_S)


def dies_with_parent(*command: str) -> list[str]:
    """Wrap the command so that the kernel kills it when this process dies."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


def environment(**variables: str) -> dict[str, str]:
    """Return the shell's variables without the service's own, then test defaults and those given.

    The defaults pick a free port, cheap hashes and deadlines that a busy machine cannot exceed.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "PORT": "0",
        "PASSWORD_HASH_MEMORY_KIB": "8",
        "PASSWORD_HASH_ITERATIONS": "1",
        "DB_CONNECT_TIMEOUT_S": "60",
        "DB_ACQUIRE_TIMEOUT_S": "60",
        "DB_COMMAND_TIMEOUT_S": "60",
        "DB_LOCK_TIMEOUT_S": "60",
        "REQUEST_TIMEOUT_S": "120",
        "BODY_TIMEOUT_S": "120",
        "SHUTDOWN_DELAY_S": "0.1",
        "SLOW_QUERY_MS": "0",
        **variables,
    }


@contextlib.contextmanager
def started(
    *command: str,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.PIPE,
    stderr: int | IO[Any] = subprocess.PIPE,
) -> Iterator[Process]:
    """Run a command for the duration of the block, then kill its process group.

    The command has its own session without a terminal. Invalid UTF-8 becomes lone surrogates.
    """
    process = subprocess.Popen(
        dies_with_parent(*command),
        cwd=cwd,
        env=environment() if env is None else env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="surrogateescape",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # Other processes may still hold the pipes, so do not wait for their end.
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait(DEADLINE_S)


def run_command(
    *command: str,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    text: str | None = None,
    stdout: int | IO[Any] = subprocess.PIPE,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to completion with ``text`` as its stdin."""
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    with started(*command, cwd=cwd, env=env, stdin=stdin, stdout=stdout) as process:
        written, errors = process.communicate(text, timeout=DEADLINE_S)
        return subprocess.CompletedProcess(command, process.returncode, written, errors)


def run(*arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run ``shinkei`` to completion."""
    return run_command(*SHINKEI, *arguments, cwd=cwd, env=environment(**variables))


def run_python(
    code: str, *arguments: str, cwd: Path = ROOT, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run Python code to completion, with the service importable."""
    command = (sys.executable, "-c", code, *arguments)
    return run_command(*command, cwd=cwd, env=environment(**variables))


@contextlib.contextmanager
def serving(cwd: Path, **variables: str) -> Iterator[Served]:
    """Run ``shinkei serve`` on a free port for the duration of the block."""
    with started(*SHINKEI, "serve", cwd=cwd, env=environment(**variables)) as process:
        if variables.get("LOG_FORMAT") == "console":
            yield Served(process, greeted(process)[0], [])
        else:
            yield announced(process)


def announced(process: Process) -> Served:
    """Wait until the process, which logs JSON, serves."""
    assert process.stderr is not None
    log: list[dict[str, Any]] = []
    while not log or log[-1]["event"] != "started":
        line = _read_line(process.stderr)
        if not line.startswith("{"):
            raise AssertionError(f"{log}{line}{process.communicate(timeout=DEADLINE_S)[1]}")
        log.append(json.loads(line))
    return Served(process, log[-1]["url"], log)


def _read_line(pipe: IO[Any]) -> str:
    """Read a line without reading ahead, which ``communicate`` would miss."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(pipe.fileno(), 1)):
        line += byte
    return line.decode()


def greeted(process: Process) -> tuple[str, str]:
    """Wait until the process, which logs for people, serves. Return its URL and its greeting."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if "listens on " not in line:
        raise AssertionError(f"{line}{process.communicate(timeout=DEADLINE_S)[1]}")
    return line.split("listens on ")[1].split(" ")[0], line


def event_beginning(words: str, process: Process) -> dict[str, Any]:
    """Read the log up to the first event that starts with these words.

    The process is killed if there is none within ``DEADLINE_S``.
    """
    assert process.stderr is not None
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    try:
        for line in process.stderr:
            if line.startswith("{") and (event := json.loads(line))["event"].startswith(words):
                return dict(event)
    finally:
        timer.cancel()
    raise AssertionError(words)


class Terminal:
    """A pseudo-terminal: the process gets ``theirs``, and the test reads and types."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.shown = ""
        # A character may be split between two reads.
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def hand_over(self) -> None:
        """Close this side's copy of ``theirs``, so that reading ends when the process does."""
        os.close(self.theirs)
        self.theirs = -1

    def read(self) -> bool:
        """Read the next output; return False at the end."""
        try:
            chunk = os.read(self.ours, 4096)
        except OSError:
            return False
        self.shown += self._decoder.decode(chunk)
        return bool(chunk)

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            assert self.read(), self.shown

    def type(self, line: str) -> None:
        os.write(self.ours, f"{line}\n".encode())

    def close(self) -> None:
        for end in {self.ours, self.theirs} - {-1}:
            os.close(end)


def url_of(database: Database) -> dict[str, str]:
    """Return the variables that make a process use the database."""
    host, port = database.hosts[0]
    url = f"postgresql://{database.user}:{database.password}@{host}:{port}/{database.name}"
    return {"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}


def call(url: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Send a request, a POST if there is a body, and return the status and the JSON."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def until_healthy(url: str) -> None:
    """Wait until the service is ready. A busy machine may exceed the probes' own deadline."""
    eventually_blocking(lambda: call(f"{url}/health")[0] == 200)


def connect(database: Database) -> Any:
    arguments: dict[str, Any] = {**database.libpq_arguments()}
    return psycopg.connect(**arguments, autocommit=True)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port for the duration of the block.

    It is bound without listening. Servers with SO_REUSEADDR, as all of ours are, can listen on it
    repeatedly, and the kernel assigns it to nothing else (socket(7)).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


class Running(NamedTuple):
    """A process as /proc shows it."""

    name: str
    parent: int
    session: int


def processes() -> dict[int, Running]:
    """Return all running processes by id, without zombies."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            state, parent, _, session = rest.split()[:4]
            if state != "Z":
                found[int(path.parent.name)] = Running(name, int(parent), int(session))
    return found


def wait_for_end_of(pid: int) -> None:
    eventually_blocking(lambda: pid not in processes())


def postmaster_of(data_dir: Path) -> int:
    """Return the process id of the embedded PostgreSQL, or 0 if there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    return 0


def workers_of(parent: int) -> set[int]:
    """Return the process ids of a service's workers."""
    found = processes().items()
    return {pid for pid, one in found if one.parent == parent and one.name != "postgres"}


def adopt_orphans() -> None:
    """Become the parent of orphans of this run's processes; see ``orphans``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def lasting_orphans(known: set[int]) -> dict[int, str]:
    """Wait for ``orphans`` to end, and return those that do not.

    What is left of a killed process, such as its PostgreSQL, needs some time.
    """
    with contextlib.suppress(AssertionError):
        eventually_blocking(lambda: not orphans(known))
    return orphans(known)


def orphans(known: set[int]) -> dict[int, str]:
    """Return descendants of this process by command line, except ``known`` and theirs."""
    running = processes()
    below = {os.getpid()}
    found: dict[int, str] = {}
    while fresh := [
        pid for pid, one in running.items() if one.parent in below and pid not in below
    ]:
        below.update(fresh)
        for pid in fresh:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[pid] = line
    for pid in known:
        family = {pid}
        while more := {one for one, about in running.items() if about.parent in family} - family:
            family |= more
        for one in family:
            found.pop(one, None)
    return found
