"""Real processes, none of which outlives its test, however the test or pytest itself ends.

Each process is killed with its group when its block ends, and by the kernel when pytest is killed.
The run adopts what these processes leave behind (``adopt_orphans``) and fails if anything is left.
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
# Asks the kernel for SIGKILL when pytest is gone, then becomes the program.
_TIED = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(9))
    if os.getppid() != int(sys.argv[1]):
        sys.exit("pytest is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""

SHINKEI = (sys.executable, "-m", "service")
Process = subprocess.Popen[str]


class Served(NamedTuple):
    """A serving process, its URL, and the line it printed."""

    process: Process
    url: str
    line: str

    def stderr_after(self, wanted: signal.Signals = signal.SIGTERM) -> str:
        """Send the signal, and return what the process has written to stderr by its end."""
        self.process.send_signal(wanted)
        return self.process.communicate(timeout=DEADLINE_S)[1]

    def ends_with(self, wanted: signal.Signals) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(wanted)
        return self.process.wait(DEADLINE_S)


def tied(*command: str) -> list[str]:
    """The command, as one that the kernel kills when this process is gone."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


def environment(**variables: str) -> dict[str, str]:
    """The shell's variables without ours, then those given.

    Ports are free ones, hashes cheap, and deadlines out of a busy machine's reach.
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
    """Run a command while the block lasts, then kill it and the other processes of its group.

    It has a session of its own, without a terminal. Bytes that are not UTF-8 travel as lone
    surrogates.
    """
    process = subprocess.Popen(
        tied(*command),
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
        # Others may hold its pipes: nothing is read from them any more.
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
    """Run a command to its end; ``text`` is what it reads."""
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    with started(*command, cwd=cwd, env=env, stdin=stdin, stdout=stdout) as process:
        written, errors = process.communicate(text, timeout=DEADLINE_S)
        return subprocess.CompletedProcess(command, process.returncode, written, errors)


def run(*arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run ``shinkei`` to its end."""
    return run_command(*SHINKEI, *arguments, cwd=cwd, env=environment(**variables))


def run_python(
    code: str, *arguments: str, cwd: Path = ROOT, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run Python code to its end, with our modules at hand."""
    command = (sys.executable, "-c", code, *arguments)
    return run_command(*command, cwd=cwd, env=environment(**variables))


@contextlib.contextmanager
def serving(cwd: Path, **variables: str) -> Iterator[Served]:
    """Run ``shinkei serve`` on a free port while the block lasts."""
    with started(*SHINKEI, "serve", cwd=cwd, env=environment(**variables)) as process:
        yield announced(process)


def announced(process: Process) -> Served:
    """Wait until a process that was started to serve does, and return what it says then."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if "listens on " not in line:
        raise AssertionError(f"{line}{process.communicate(timeout=DEADLINE_S)[1]}")
    return Served(process, line.split("listens on ")[1].split(" ")[0], line)


class Terminal:
    """A terminal: a process is given ``theirs``; the test reads what it shows, and types."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.shown = ""
        # A character may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def hand_over(self) -> None:
        """Leave the other end to the process that has it: reading ends when the process does."""
        os.close(self.theirs)
        self.theirs = -1

    def read(self) -> bool:
        """Read what is shown next; False at the end."""
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
    """The variables that have a process use the database."""
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
    """A port that nobody else is given while the block lasts.

    It is bound here without listening, so that whoever sets SO_REUSEADDR, as all our servers do,
    can listen on it, again and again, and the kernel hands it to nobody else (socket(7)).
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
    """All processes that run, zombies left out, by their ids."""
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
    """The process id of the embedded PostgreSQL, or 0 if there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    return 0


def workers_of(parent: int) -> set[int]:
    """The worker processes of a service."""
    found = processes().items()
    return {pid for pid, one in found if one.parent == parent and one.name != "postgres"}


def adopt_orphans() -> None:
    """Become the parent of what the processes of this run leave behind; see ``orphans``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def orphans(known: set[int]) -> dict[int, str]:
    """The processes below this one that are not known, with their command lines."""
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
