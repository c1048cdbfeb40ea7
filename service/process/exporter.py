"""The private listener that Prometheus asks, in a thread of the only process or of the parent.

Several workers write their values into files of a directory that they share (prometheus_client's
multi-process mode), which the parent adds up. A worker's files are those of its slot, which is the
lowest number that is free: so a new worker goes on counting where one that ended has stopped, and
however often workers are replaced, there are no more files than slots.
"""

import contextlib
import functools
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from service import __version__
from service.process.server import listen
from service.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
REQUEST_TIMEOUT_S = 10


@dataclass(slots=True)
class Exporter:
    """What is exported: ``registry``, and the processes by the name that they have in metrics.

    ``directory`` is where workers leave their values, where there are several.
    """

    registry: "CollectorRegistry"
    processes: dict[str, int] = field(default_factory=dict)
    directory: str = ""

    def worker_ended(self, slot: int) -> None:
        """Forget what was only so while the worker lived; what it counted stays."""
        from prometheus_client.multiprocess import mark_process_dead

        self.processes.pop(str(slot), None)
        mark_process_dead(slot, self.directory)


@contextlib.contextmanager
def exporting(settings: Settings) -> Iterator[Exporter | None]:
    """Listen on METRICS_HOST and METRICS_PORT, where that is asked for. Raises StartError."""
    if not settings.metrics_port:
        yield None
        return
    listener = listen(settings.metrics_host, settings.metrics_port, "METRICS_")
    # Read when prometheus_client is imported: somebody else's directory is none of ours.
    for variable in (DIRECTORY_VARIABLE, DIRECTORY_VARIABLE.lower()):
        os.environ.pop(variable, None)
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    exporter = Exporter(CollectorRegistry())
    exporter.registry.register(_process_collector(exporter.processes))
    with contextlib.ExitStack() as stack:
        if settings.workers == 1:
            exporter.processes["0"] = os.getpid()
        else:
            exporter.processes["parent"] = os.getpid()
            exporter.directory = os.environ[DIRECTORY_VARIABLE] = stack.enter_context(_directory())
            MultiProcessCollector(exporter.registry, exporter.directory)
        server = stack.enter_context(_server(listener, exporter.registry))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        stack.callback(server.shutdown)
        yield exporter


def _server(listener: socket.socket, registry: "CollectorRegistry") -> ThreadingHTTPServer:
    from prometheus_client import MetricsHandler

    class Handler(MetricsHandler):
        timeout = REQUEST_TIMEOUT_S

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """One line, for a client that went away or files that did."""
            reason = type(sys.exception()).__name__
            log.warning("metrics not sent", extra={"reason": reason})

    Handler.registry = registry
    server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server


@contextlib.contextmanager
def _directory() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="shinkei-metrics-", dir=shared_memory())
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def shared_memory() -> str | None:
    """A directory in memory, writable where the file system is read-only; None without one."""
    directory = "/dev/shm"  # noqa: S108
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


def worker_registry(settings: Settings, slot: int) -> "CollectorRegistry | None":
    """Where a worker keeps its metrics, so that they end up in the files of its slot."""
    if not settings.metrics_port:
        return None
    from prometheus_client import CollectorRegistry, values

    # As prometheus_client's documentation does it for uWSGI, whose workers have numbers as well.
    values.ValueClass = values.MultiProcessValue(lambda: slot)
    return CollectorRegistry()


def _process_collector(processes: Mapping[str, int]) -> "Collector":
    """What is running, and the kernel's figures of each process; read when Prometheus asks."""
    from prometheus_client import Metric, ProcessCollector
    from prometheus_client.metrics_core import InfoMetricFamily
    from prometheus_client.registry import Collector

    class Processes(Collector):
        def collect(self) -> Iterator[Metric]:
            build = {"version": __version__, "python": platform.python_version()}
            yield InfoMetricFamily("shinkei_build", "What is running", value=build)
            families: dict[str, Metric] = {}
            for worker, pid in list(processes.items()):
                of_one = ProcessCollector("shinkei", functools.partial(int, pid), registry=None)
                for one in of_one.collect():
                    family = Metric(one.name, one.documentation, one.type)
                    family = families.setdefault(one.name, family)
                    for sample in one.samples:
                        family.add_sample(sample.name, {"worker": worker}, sample.value)
            yield from families.values()

    return Processes()
