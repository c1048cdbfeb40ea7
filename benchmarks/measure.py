"""Measures the cost of requests: CPU time of processes from /proc, and load from wrk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

WORKLOADS = Path(__file__).parent / "workloads"
IDLE_WITHIN_S = 5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Load(NamedTuple):
    """Results of one run of wrk, which corrects latencies for coordinated omission."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    non_2xx: int
    socket_errors: int


class Cost(NamedTuple):
    """The results of one run, and the CPU time per request of the server and PostgreSQL."""

    load: Load
    cpu_us: float
    postgres_cpu_us: float


def require_answers(loads: Iterable[Load]) -> None:
    """Exit if any request failed, as the figures are then meaningless."""
    if any(load.non_2xx or load.socket_errors for load in loads):
        sys.exit("bench: some requests failed, so the figures are void")


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("bench: wrk is required: apt install wrk, brew install wrk, or github.com/wg/wrk")


def tree(pid: int) -> Iterator[int]:
    """Yield the ids of the process and its living descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process and its descendants, living and ended.

    Sums fields 14 to 17 of /proc/PID/stat (proc(5)); the last two count children waited for.
    """
    while True:
        try:
            return sum(map(_ticks, tree(pid))) / _TICKS_PER_S
        except (FileNotFoundError, ProcessLookupError):
            # A descendant has just ended; its parent now accounts for its time.
            _ticks(pid)


def _ticks(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))


def rss_bytes(pid: int) -> int:
    """Resident set size of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def fds(pid: int) -> int:
    """Number of file descriptors that the process holds."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def start_wrk(
    url: str, script: str, arguments: Sequence[object], *, connections: int, seconds: float
) -> "subprocess.Popen[str]":
    """Start wrk with a script of ``workloads/``; ``finish_wrk`` waits for it."""
    return subprocess.Popen(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s"),
            *("-s", str(WORKLOADS / f"{script}.lua"), url, "--", *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LUA_PATH": f"{WORKLOADS}/?.lua"},
    )


def finish_wrk(wrk: "subprocess.Popen[str]", timeout_s: float) -> Load:
    try:
        output, _ = wrk.communicate(timeout=timeout_s)
    finally:
        wrk.kill()
    if wrk.returncode:
        raise RuntimeError(f"wrk ended with {wrk.returncode}: {output}")
    return Load(**json.loads(output.strip().splitlines()[-1]))


def run_wrk(
    url: str, script: str, arguments: Sequence[object], *, connections: int, seconds: float
) -> Load:
    wrk = start_wrk(url, script, arguments, connections=connections, seconds=seconds)
    return finish_wrk(wrk, seconds + 60)


def measure(
    server_pid: int,
    postgres_pid: int,
    url: str,
    script: str,
    arguments: Sequence[object],
    *,
    connections: int,
    seconds: float,
) -> Cost:
    """Run wrk once and measure its cost for the server and PostgreSQL.

    When wrk stops, one request per connection is in flight. The server still handles those, so they
    count too.
    """
    server, postgres = cpu_s(server_pid), cpu_s(postgres_pid)
    load = run_wrk(url, script, arguments, connections=connections, seconds=seconds)
    _wait_until_idle(server_pid)
    per_request = 1e6 / (load.requests + connections)
    return Cost(
        load,
        (cpu_s(server_pid) - server) * per_request,
        (cpu_s(postgres_pid) - postgres) * per_request,
    )


def _wait_until_idle(pid: int) -> None:
    deadline = time.monotonic() + IDLE_WITHIN_S
    spent_s = -1.0
    while spent_s != (spent_s := cpu_s(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
