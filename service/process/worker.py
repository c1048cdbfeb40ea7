"""A worker process: how the parent starts it, and how it serves.

A worker is a new process with the parent's command line, ``shinkei serve`` or an operator's script,
and a variable that makes it a worker. It reports over its own socket: a NUL every second, and
``STARTED`` or a one-line reason why it did not start. The parent may be from an older release.
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
from service.process.server import (
    RETIRE,
    handle_signals,
    serve_until_signalled,
    with_bound_port,
)
from service.settings import Settings, SettingsError, load_settings
from service.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

# Holds the worker's slot (see ``exporter``) and the file descriptors of its two inherited sockets.
VARIABLE = "SHINKEI_WORKER"
STARTED = b"started"
BEAT_EVERY_S = 1
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, RETIRE)


@dataclass(eq=False)
class Worker:
    """A worker as seen by its parent."""

    process: "subprocess.Popen[bytes]"
    # Names its metrics files: see ``exporter``.
    slot: int
    reports: socket.socket
    # STARTED, or the reason why it did not start.
    said: bytes = b""
    # Will be retired once all newer workers have started.
    old: bool = False
    retired: bool = False

    @property
    def started(self) -> bool:
        return self.said.startswith(STARTED)


def start_worker(slot: int, listener: socket.socket) -> Worker:
    """Start a worker process with our own command line and ``VARIABLE``. Raises OSError."""
    ours, theirs = socket.socketpair()
    fds = (listener.fileno(), theirs.fileno())
    environ = {**os.environ, VARIABLE: " ".join(map(str, (slot, *fds)))}
    command = [sys.executable, *sys.orig_argv[1:]]
    # Signals stay pending in the kernel until the worker can handle them.
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
    """Serve as the worker described by ``given``, the value of VARIABLE. Returns the exit code.

    ``workers`` is the number from the command line, or None.
    """
    slot, *fds = map(int, given.split())
    listener, parent = (socket.socket(fileno=fd) for fd in fds)
    for inherited in (listener, parent):
        inherited.set_inheritable(False)
        inherited.setblocking(False)
    try:
        settings = load_settings(os.environ)
        settings = replace(settings, workers=workers or settings.workers)
        settings = with_bound_port(settings, listener)
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
    """Add the embedded PostgreSQL, which the parent starts and stops."""
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

    def stopping(received: signal.Signals) -> None:
        """Log nothing: the parent does."""

    signals = handle_signals(signal.SIGQUIT, RETIRE)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    beating = asyncio.create_task(_beat(parent, signals))
    registry = worker_registry(settings, slot)
    try:
        await serve_until_signalled(settings, listener, signals, started, stopping, registry)
    finally:
        beating.cancel()
        # No signal may interrupt the exit.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)


async def _beat(parent: socket.socket, signals: "asyncio.Queue[signal.Signals]") -> None:
    """Report regularly that the event loop is running; stop the worker if the parent is gone."""
    while _report(parent, b"\0"):  # noqa: ASYNC110
        await asyncio.sleep(BEAT_EVERY_S)
    signals.put_nowait(signal.SIGQUIT)


def _report(parent: socket.socket, what: bytes) -> bool:
    """Send to the parent without blocking. Returns False if the parent is gone."""
    try:
        parent.send(what)
    except BlockingIOError:
        # The parent is suspended.
        return True
    except OSError:
        return False
    return True
