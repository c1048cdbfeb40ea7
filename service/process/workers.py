"""Several processes on one port: gunicorn starts workers, watches them and replaces them.

Each worker serves as a single process does (``server.serve_until_told``). What is changed of
gunicorn: a worker counts once its application has started, and only then do others have to go; one
that does not start is a line in the log, and ends nothing but the first start.
"""

import asyncio
import dataclasses
import importlib
import itertools
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from socket import socket
from typing import Any

from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from service.exceptions import StartError
from service.process.exporter import Exporter, shared_memory, worker_registry
from service.process.server import (
    RETIRE,
    SHUTDOWN_TIMEOUT_S,
    hear_signals,
    prepare,
    serve_until_told,
    url_of,
)
from service.settings import Database, Settings, SettingsError, load_settings
from service.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

BEAT_EVERY_S = 1
# How long a worker's event loop may stand still before it is killed.
BEAT_TIMEOUT_S = 15
# For mail on its way and a busy machine, beyond the delay, requests under way and the pool.
STOP_MARGIN_S = 5
# How often the parent looks whether workers have started.
STARTING_POLL_S = 0.02
# A worker that does not start is not started more often than this.
RESPAWN_PAUSE_S = 1
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, RETIRE)
_STARTED = b"started"


def serve(
    settings: Settings,
    listener: socket,
    announce: Callable[[str], None],
    exporter: Exporter | None = None,
) -> None:
    """Serve with ``settings.workers`` processes until SIGTERM or SIGINT; SIGHUP replaces them.

    Raises StartError where the database cannot be reached, or a worker does not start at first.
    """
    if not prepare(settings):
        return
    parent = os.getpid()
    arbiter = _Arbiter(_Application(settings), listener, announce, exporter)
    try:
        arbiter.run()
    except SystemExit as end:
        if os.getpid() != parent:
            # A worker: what our callers would undo now is the parent's.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        if arbiter.failure:
            raise StartError(arbiter.failure) from None
        if end.code:
            raise


class _Worker(GunicornUVLoopWebWorker):
    """A worker, as the parent knows it before and after the fork, and as it begins in the child."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Shared with the parent: _STARTED, or why it did not start.
        self.report = mmap.mmap(-1, 1024)
        self.slot = 0
        # Replaced by newer ones once these have started.
        self.old = False
        self.retired = False

    def say(self, what: bytes) -> None:
        self.report[: len(what)] = what

    def heard(self) -> bytes:
        return self.report[:].rstrip(b"\0")

    def has_started(self) -> bool:
        return self.heard() == _STARTED

    def init_signals(self) -> None:
        """Not before the loop runs, as uvloop would lose them: see ``work``."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGABRT, lambda *_: os._exit(1))

    def load_wsgi(self) -> None:
        """Nothing yet: see ``_run``."""

    async def _run(self) -> None:
        """Import this service anew, so that new workers run the code that is there now."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "service"]:
            del sys.modules[name]
        try:
            work = importlib.import_module("service.process.workers").work
            self.exit_code = await work(self)
        except Exception:
            log.exception("worker failed")
            self.say(b"unexpected error: see the log")
            self.exit_code = 1


async def work(worker: _Worker) -> int:
    """Serve until told, in the worker's process; returns its exit code."""
    signals = hear_signals(signal.SIGQUIT, RETIRE)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    beating: asyncio.Task[None] | None = None
    try:
        settings = _with_the_parents(load_settings(os.environ), worker.app.settings)
        configure_logging(settings)
        beating = asyncio.create_task(_beat(worker, signals))
        await serve_until_told(
            settings,
            worker.sockets[0],
            signals,
            lambda: worker.say(_STARTED),
            worker_registry(settings, worker.slot),
        )
    except (SettingsError, StartError) as error:
        worker.say(str(error).encode()[:1000])
        return 1
    finally:
        if beating is not None:
            beating.cancel()
    return 0


def _with_the_parents(settings: Settings, parents: Settings) -> Settings:
    """With what the command line said, and the embedded database, which is the parent's to keep.

    Value by value, as the parent's classes may be of an older release.
    """
    settings = dataclasses.replace(settings, workers=parents.workers)
    if settings.database is not None:
        return settings
    assert parents.database is not None  # noqa: S101
    database = Database(**dataclasses.asdict(parents.database))
    return dataclasses.replace(settings, database=database, secret_key=parents.secret_key)


async def _beat(worker: _Worker, signals: "asyncio.Queue[signal.Signals]") -> None:
    """Tell the parent that the event loop runs; leave where it is gone."""
    while os.getppid() == worker.ppid:
        worker.notify()
        await asyncio.sleep(BEAT_EVERY_S)
    signals.put_nowait(signal.SIGQUIT)


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's settings, from ours alone: it reads no file, no variable and no argument."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        graceful_s = (
            settings.shutdown_delay_s + SHUTDOWN_TIMEOUT_S + settings.db_close_timeout_s
        ) + STOP_MARGIN_S
        for name, value in {
            "workers": settings.workers,
            "worker_class": _Worker,
            "logger_class": _Log,
            "timeout": BEAT_TIMEOUT_S,
            "graceful_timeout": round(graceful_s),
            "worker_tmp_dir": shared_memory(),
            "control_socket_disable": True,
            "pre_fork": lambda arbiter, worker: arbiter.give_slot(worker),
            "proc_name": "shinkei",
        }.items():
            self.cfg.set(name, value)


class _Log(Logger):  # type: ignore[misc]
    """gunicorn's warnings and errors through the root logger, where ``logs`` has its handler."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.propagate = True


class _Arbiter(Arbiter):  # type: ignore[misc]
    """The parent. gunicorn's, but for when workers come and go."""

    def __init__(
        self,
        application: _Application,
        listener: socket,
        announce: Callable[[str], None],
        exporter: Exporter | None,
    ) -> None:
        super().__init__(application)
        self.LISTENERS = [listener]
        self.exporter = exporter
        self.announce = announce
        self.announced = False
        self.failure = ""
        self.stopping = False
        self.reload_asked = False
        self.spawn_at = 0.0

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        starting = not all(worker.has_started() for worker in self.WORKERS.values())
        return super().wait_for_signals(STARTING_POLL_S if starting else timeout)

    def handle_hup(self) -> None:
        """Replace all workers, once those that are being replaced are gone."""
        self.reload_asked = True

    def handle_usr2(self) -> None:
        """Not gunicorn's second parent: it could not listen where the first one does."""

    def manage_workers(self) -> None:
        """Start what is missing; once it has started, let go what is too much or old."""
        workers: list[_Worker] = sorted(self.WORKERS.values(), key=lambda worker: worker.age)
        if self.reload_asked and not any(worker.old for worker in workers):
            self.reload_asked = False
            log.info("reloading", extra={"workers": len(workers)})
            for worker in workers:
                worker.old = True
        current = [worker for worker in workers if not worker.old]
        missing = self.num_workers - len(current)
        if missing > 0:
            if time.monotonic() >= self.spawn_at:
                for _ in range(missing):
                    self.spawn_worker()
            return
        if not all(worker.has_started() for worker in current):
            return
        for worker in current[: len(current) - self.num_workers]:
            worker.old = True
        for worker in workers:
            if worker.old and not worker.retired:
                worker.retired = True
                self.kill_worker(worker.pid, RETIRE)
        if not self.announced:
            self.announced = True
            self.announce(url_of(self.LISTENERS[0]))

    def give_slot(self, worker: _Worker) -> None:
        """The lowest number that no other worker has: see ``exporter``."""
        taken = {other.slot for other in self.WORKERS.values()}
        worker.slot = next(slot for slot in itertools.count() if slot not in taken)

    def spawn_worker(self) -> None:
        """Fork; what the worker is told before it hears signals waits for it in the kernel."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        pid = super().spawn_worker()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        if self.exporter is not None:
            self.exporter.processes[str(self.WORKERS[pid].slot)] = pid

    def reap_workers(self) -> None:
        """See which workers have ended. No other child is waited for: PostgreSQL's start asks."""
        for pid, worker in list(self.WORKERS.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self.WORKERS[pid]
            worker.tmp.close()
            if self.exporter is not None:
                self.exporter.worker_ended(worker.slot)
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if not (worker.has_started() or worker.old or self.stopping):
                self._give_up(worker.heard().decode() or f"a worker did not start: {how}")
            elif code and not self.failure:
                log.error("worker ended", extra={"pid": pid, "how": how})
            elif self.announced:
                log.info("worker ended", extra={"pid": pid})

    def _give_up(self, reason: str) -> None:
        """A worker does not start: at first nothing does; later, what serves goes on serving."""
        if not self.announced:
            self.failure = reason
            raise StopIteration
        self.spawn_at = time.monotonic() + RESPAWN_PAUSE_S
        if not any(worker.old and not worker.retired for worker in self.WORKERS.values()):
            log.error("worker does not start", extra={"reason": reason})
            return
        log.error("reload given up, the old workers stay", extra={"reason": reason})
        for worker in self.WORKERS.values():
            if not worker.retired:
                worker.old = not worker.old

    def stop(self, graceful: bool = True) -> None:
        self.stopping = True
        super().stop(graceful)
