"""A crowd of clients that never read, beside others, as an operator sees it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.settings import Database
from tests.support.processes import call, reserved_port, serving, url_of
from tests.support.scrape import metrics_at
from tests.support.waiting import DEADLINE_S, eventually_blocking
from tests.support.wire import get

CLIENTS = 500
# The service holds back this much for each, or less.
HELD_KIB = 160
# Without a line for each request, which nobody would read.
QUIET = {"LOG_FORMAT": "console", "LOG_LEVEL": "warning"}


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_kib_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def send_without_reading(stack: ExitStack, url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    for _ in range(CLIENTS):
        raw = stack.enter_context(socket.socket())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((host, int(port)))
        raw.sendall(get("/docs/swagger-ui.js") * 8)


class Load(threading.Thread):
    """Asks for probes and files, one after another."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.stopped = threading.Event()
        self.probes = 0
        self.failures: list[object] = []

    def run(self) -> None:
        for path in self.paths():
            try:
                assert call(f"{self.url}{path}")[0] == 200
            except Exception as error:
                self.failures.append(error)
            self.probes += path == "/health/live"

    def stop(self) -> None:
        self.stopped.set()
        self.join(DEADLINE_S)

    def paths(self) -> Iterator[str]:
        while not self.stopped.is_set():
            yield "/health/live"
            yield "/openapi.json"


@pytest.mark.slow
def test_crowd_that_never_reads_is_let_go_and_leaves_nothing_behind(
    database: Database, tmp_path: Path
) -> None:
    with reserved_port() as port, ExitStack() as stack:
        variables = {"METRICS_PORT": str(port), **QUIET, **url_of(database)}
        served = stack.enter_context(serving(tmp_path, **variables))
        pid = served.process.pid
        load = Load(served.url)
        load.start()
        stack.callback(load.stop)
        eventually_blocking(lambda: load.probes > 5)
        descriptors, memory_kib = descriptors_of(pid), memory_kib_of(pid)
        send_without_reading(stack, served.url)
        probes, started = load.probes, time.monotonic()
        dropped = ("shinkei_connections_dropped_total", frozenset({("reason", "not_reading")}))
        eventually_blocking(lambda: metrics_at(port)[dropped] == CLIENTS)
        probes_meanwhile, took_s = load.probes - probes, time.monotonic() - started
        eventually_blocking(lambda: descriptors_of(pid) <= descriptors + 5)
        more_kib = memory_kib_of(pid) - memory_kib
        load.stop()
        errors = served.stderr_after()
    print(f"let go after {took_s:.1f} s, {more_kib} KiB more, {probes_meanwhile} probes meanwhile")
    assert more_kib < CLIENTS * HELD_KIB
    assert not load.failures
    assert probes_meanwhile > 30, "they do not wait until the crowd is gone"
    assert errors.count("connections dropped") <= took_s / 10 + 2
