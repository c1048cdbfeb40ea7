"""The parent of several workers on one port: it starts, watches and replaces them.

Workers are new processes (see ``worker``), so they run the code that is on disk when they start.
"""

import asyncio
import logging
import signal
import socket
import time
from dataclasses import dataclass, field

from service.exceptions import StartError
from service.process.announcing import Announcer, seconds_since
from service.process.exporter import Exporter
from service.process.server import RETIRE, handle_signals, stop_timeout_s, url_of
from service.process.worker import Worker, start_worker
from service.settings import Settings

log = logging.getLogger(__name__)

# A worker that reports nothing for this long is killed, because its event loop is blocked.
SILENCE_MAX_S = 15
# Extra time before the first report: importing the service is slow on a busy machine.
IMPORT_MAX_S = 45
# Delay before retrying a failed start.
START_AGAIN_S = 1
# Queued like a signal if a worker has reported or ended.
NEWS = signal.SIGCHLD


@dataclass
class Supervisor:
    """The parent process. It announces the URL once all workers have started."""

    settings: Settings
    listener: socket.socket
    announcer: Announcer
    exporter: Exporter | None
    workers: list[Worker] = field(default_factory=list)
    announced: bool = False
    reload_asked: bool = False
    # When the reload in progress began, if there is one.
    reload_began: float | None = None
    stopping: bool = False
    failure: str = ""

    async def serve(self) -> None:
        """Serve until a stop signal; SIGHUP replaces all workers.

        Raises StartError if one of the first workers does not start.
        """
        self.signals = handle_signals(signal.SIGQUIT, signal.SIGHUP)
        async with asyncio.TaskGroup() as self.tasks:
            while self.workers or not self.stopping:
                if not self.stopping:
                    self.check_workers()
                received = await self.signals.get()
                if received is signal.SIGHUP:
                    self.reload_asked = True
                elif received is not NEWS:
                    self.stop(received)
        if self.failure:
            raise StartError(self.failure)

    def stop(self, wanted: signal.Signals) -> None:
        """Forward the signal to all workers, and kill those that exceed the shutdown timeout."""
        self.announcer.stopping(wanted)
        for worker in self.workers:
            worker.process.send_signal(wanted)
        if not self.stopping:
            self.stopping = True
            timeout_s = stop_timeout_s(self.settings)
            asyncio.get_running_loop().call_later(timeout_s, self.stop, signal.SIGKILL)

    def check_workers(self) -> None:
        """Start missing workers. Once all have started, retire the old ones."""
        if self.reload_asked and self.announced and not any(one.old for one in self.workers):
            self.reload_asked = False
            self.reload_began = time.monotonic()
            log.info("reloading", extra={"workers": len(self.workers)})
            for worker in self.workers:
                worker.old = True
        current = [worker for worker in self.workers if not worker.old]
        if missing := self.settings.workers - len(current):
            self.start(missing)
        elif all(worker.started for worker in current):
            for worker in self.workers:
                if worker.old and not worker.retired:
                    worker.retired = True
                    worker.process.send_signal(RETIRE)
            if not self.announced:
                self.announced = True
                self.announcer.started(url_of(self.listener))
            if self.reload_began is not None and current == self.workers:
                took_s = seconds_since(self.reload_began)
                log.info("reloaded", extra={"workers": len(current), "took_s": took_s})
                self.reload_began = None

    def start(self, missing: int) -> None:
        for _ in range(missing):
            slot = min({*range(len(self.workers) + 1)} - {one.slot for one in self.workers})
            try:
                worker = start_worker(slot, self.listener)
            except OSError as error:
                self.give_up(f"cannot start a process: {error.strerror}")
                loop = asyncio.get_running_loop()
                loop.call_later(START_AGAIN_S, self.signals.put_nowait, NEWS)
                return
            self.workers.append(worker)
            self.tasks.create_task(self.watch(worker))
            if self.exporter:
                self.exporter.processes[str(slot)] = worker.process.pid

    async def watch(self, worker: Worker) -> None:
        """Read a worker's reports until it ends, and log how it ended."""
        reader, writer = await asyncio.open_unix_connection(sock=worker.reports)
        # Counted, not measured, so that suspending the whole machine kills no worker.
        silent_s = -IMPORT_MAX_S
        while not reader.at_eof():
            try:
                report = await asyncio.wait_for(reader.read(4096), 1)
            except TimeoutError:
                silent_s += 1
                if silent_s > SILENCE_MAX_S:
                    worker.process.kill()
                continue
            silent_s = 0
            had_started = worker.started
            worker.said += report.replace(b"\0", b"")
            if self.announced and worker.started and not had_started:
                log.info("worker started", extra={"pid": worker.process.pid})
            self.signals.put_nowait(NEWS)
        writer.close()
        code = await asyncio.to_thread(worker.process.wait)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self.exporter:
            self.exporter.worker_ended(worker.slot)
        if not (worker.started or worker.old or self.stopping):
            self.give_up(worker.said.decode(errors="replace") or f"a worker did not start: {how}")
            await asyncio.sleep(START_AGAIN_S if self.announced else 0)
        elif code and worker.started:
            log.error("worker ended", extra={"pid": worker.process.pid, "how": how})
        elif self.announced:
            log.info("worker ended", extra={"pid": worker.process.pid})
        self.workers.remove(worker)
        self.signals.put_nowait(NEWS)

    def give_up(self, reason: str) -> None:
        """Stop if nothing is serving yet; otherwise keep the old workers, if there are any."""
        if not self.announced:
            self.failure = reason
            self.stop(signal.SIGQUIT)
        elif any(worker.old and not worker.retired for worker in self.workers):
            self.reload_began = None
            log.error("reload given up, the old workers stay", extra={"reason": reason})
            for worker in self.workers:
                worker.old = worker.retired or not worker.old
        else:
            log.error("worker does not start", extra={"reason": reason})
