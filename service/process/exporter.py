"""The private listener for Prometheus, in a thread of the only process or of the parent.

Several workers write their values to files in a shared directory (prometheus_client's multiprocess
mode), and the parent aggregates them. The files belong to the worker's slot, the lowest free
number. A new worker continues the counters of the one it replaces, and the number of files stays
bounded.
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
    """The exported ``registry``, and the process ids by their name in metrics.

    ``directory`` holds the values of workers; it is empty if there is only one process.
    """

    registry: "CollectorRegistry"
    processes: dict[str, int] = field(default_factory=dict)
    directory: str = ""

    def worker_ended(self, slot: int) -> None:
        """Drop the live gauges and the process id of a worker that ended; its counters stay."""
        from prometheus_client.multiprocess import mark_process_dead

        self.processes.pop(str(slot), None)
        mark_process_dead(slot, self.directory)


@contextlib.contextmanager
def exporting(settings: Settings) -> Iterator[Exporter | None]:
    """Listen on METRICS_HOST and METRICS_PORT, if the port is set. Raises StartError."""
    if not settings.metrics_port:
        yield None
        return
    listener = listen(settings.metrics_host, settings.metrics_port, "METRICS_")
    # prometheus_client reads it on import, and an inherited directory is not ours.
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
            """Log one line if the client disconnected or a file disappeared."""
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
    """Return a directory in memory, writable even on a read-only file system, or None."""
    directory = "/dev/shm"  # noqa: S108
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


def worker_registry(settings: Settings, slot: int) -> "CollectorRegistry | None":
    """Create a worker's registry, which writes to the files of its slot. None without metrics."""
    if not settings.metrics_port:
        return None
    from prometheus_client import CollectorRegistry, values

    # As in prometheus_client's documentation for uWSGI, whose workers are numbered too.
    values.ValueClass = values.MultiProcessValue(lambda: slot)
    return CollectorRegistry()


def _process_collector(processes: Mapping[str, int]) -> "Collector":
    """Create a collector of the build info and each process's resource usage, read per scrape."""
    from prometheus_client import Metric, ProcessCollector
    from prometheus_client.metrics_core import InfoMetricFamily
    from prometheus_client.registry import Collector

    class Processes(Collector):
        def collect(self) -> Iterator[Metric]:
            build = {"version": __version__, "python": platform.python_version()}
            yield InfoMetricFamily("shinkei_build", "Service and Python versions", value=build)
            families: dict[str, Metric] = {}
            for worker, pid in list(processes.items()):
                collector = ProcessCollector("shinkei", functools.partial(int, pid), registry=None)
                for metric in collector.collect():
                    family = Metric(metric.name, metric.documentation, metric.type)
                    family = families.setdefault(metric.name, family)
                    for sample in metric.samples:
                        family.add_sample(sample.name, {"worker": worker}, sample.value)
            yield from families.values()

    return Processes()
