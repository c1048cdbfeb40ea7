"""One of several workers: how its parent starts it, and how it serves.

It is a new process with its parent's command line, be that ``shinkei serve`` or an operator's own
script, and a variable that makes it a worker. On a socket of its own it reports: a NUL a second,
``STARTED``, or in one line why it did not start. The parent may be of an older release.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace

import uvloop

from service.exceptions import StartError
from service.process.exporter import worker_registry
from service.process.server import RETIRE, hear_signals, serve_until_told
from service.settings import Settings, SettingsError, load_settings
from service.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

# Holds the worker's slot (see ``exporter``) and the descriptors of both sockets that it inherits.
VARIABLE = "SHINKEI_WORKER"
STARTED = b"started"
BEAT_EVERY_S = 1
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, RETIRE)


@dataclass(eq=False)
class Worker:
    """A worker as its parent knows it."""

    process: "subprocess.Popen[bytes]"
    # What it counts under: see ``exporter``.
    slot: int
    reports: socket.socket
    # STARTED, or why it did not start.
    said: bytes = b""
    # Is retired once all newer ones have started.
    old: bool = False
    retired: bool = False

    @property
    def started(self) -> bool:
        return self.said.startswith(STARTED)


def start_worker(slot: int, listener: socket.socket) -> Worker:
    """Start a process with our own command line and ``VARIABLE``. Raises OSError."""
    ours, theirs = socket.socketpair()
    fds = (listener.fileno(), theirs.fileno())
    environ = {**os.environ, VARIABLE: " ".join(map(str, (slot, *fds)))}
    command = [sys.executable, *sys.orig_argv[1:]]
    # A signal that comes before the worker hears it waits in the kernel.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        with theirs:
            process = subprocess.Popen(command, env=environ, pass_fds=fds)  # noqa: S603
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Worker(process, slot, ours)


def serve(given: str, workers: int | None) -> int:
    """Serve as the worker that ``given``, the variable's value, describes; returns the exit code.

    ``workers`` is what the command line says.
    """
    slot, *fds = map(int, given.split())
    listener, parent = (socket.socket(fileno=fd) for fd in fds)
    for inherited in (listener, parent):
        inherited.set_inheritable(False)
        inherited.setblocking(False)
    try:
        settings = load_settings(os.environ)
        settings = replace(settings, workers=workers or settings.workers)
        configure_logging(settings)
        if settings.database is None:
            settings = _with_the_parents_database(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, slot, listener, parent))
    except (SettingsError, StartError) as error:
        _report(parent, str(error).encode()[:1000])
        return 1
    except Exception:
        log.exception("worker failed")
        _report(parent, b"unexpected error: see the log")
        return 1
    return 0


def _with_the_parents_database(settings: Settings) -> Settings:
    """With the embedded PostgreSQL, which is the parent's to start and to stop."""
    from service.embedded import cluster, server

    return replace(
        settings,
        database=server.attach(settings.data_dir),
        secret_key=settings.secret_key or cluster.read_secret_key(settings.data_dir),
    )


async def _serve(
    settings: Settings, slot: int, listener: socket.socket, parent: socket.socket
) -> None:
    def started() -> None:
        _report(parent, STARTED)

    signals = hear_signals(signal.SIGQUIT, RETIRE)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    beating = asyncio.create_task(_beat(parent, signals))
    registry = worker_registry(settings, slot)
    try:
        await serve_until_told(settings, listener, signals, started, registry)
    finally:
        beating.cancel()
        # Nothing disturbs it on its way out.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)


async def _beat(parent: socket.socket, signals: "asyncio.Queue[signal.Signals]") -> None:
    """Tell the parent that the event loop runs; leave if it is gone."""
    while _report(parent, b"\0"):  # noqa: ASYNC110
        await asyncio.sleep(BEAT_EVERY_S)
    signals.put_nowait(signal.SIGQUIT)


def _report(parent: socket.socket, what: bytes) -> bool:
    """Send without waiting; False if the parent is gone."""
    try:
        parent.send(what)
    except BlockingIOError:
        # The parent is suspended.
        return True
    except OSError:
        return False
    return True
