"""Serving: listen, announce the URL, and shut down gracefully."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvloop
from aiohttp import web

from service.app import create_app
from service.context import LIFECYCLE
from service.exceptions import StartError
from service.http.connections import BACKLOG, accept_clients
from service.process.announcing import Announcer
from service.settings import Settings, default_origin, http_origin

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SHUTDOWN_TIMEOUT_S = 5
# Tells a worker to leave while others keep serving: it accepts no new connections, but stays ready.
RETIRE = signal.SIGUSR2
AT_ONCE = (signal.SIGINT, signal.SIGQUIT)
# Extra time for a busy machine, after the delay, open requests, background tasks and the pool.
STOP_MARGIN_S = 5


def listen(host: str, port: int, prefix: str = "") -> socket.socket:
    """Open a listening socket, first of all, so that a port in use is reported at once.

    Raises StartError, which names the variables HOST and PORT with ``prefix``.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError:
        raise StartError(f"cannot listen on {prefix}HOST {host}: no such host") from None
    except OSError as error:
        reason = "no such host" if error.errno == socket.EAI_NONAME else error.strerror
        raise StartError(f"cannot listen on {prefix}HOST {host}: {reason}") from None
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            stack.pop_all()
    except OSError as error:
        raise StartError(
            f"cannot listen on {prefix}HOST {host}, {prefix}PORT {port}: {error.strerror}"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return http_origin(host, port)


def with_bound_port(settings: Settings, listener: socket.socket) -> Settings:
    """Return the settings with the port that the system picked, if PORT is 0.

    The default of ``public_origin`` contains it, so that links in emails work.
    """
    port = listener.getsockname()[1]
    origin = settings.public_origin
    if origin == default_origin(settings.host, settings.port):
        origin = default_origin(settings.host, port)
    return replace(settings, port=port, public_origin=origin)


def serve(
    settings: Settings,
    listener: socket.socket,
    announcer: Announcer,
    registry: "CollectorRegistry | None" = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises StartError if the database cannot be reached.
    """

    async def run() -> None:
        await serve_until_signalled(
            settings,
            listener,
            handle_signals(),
            lambda: announcer.started(url_of(listener)),
            announcer.stopping,
            registry,
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def stop_timeout_s(settings: Settings) -> float:
    """Return the maximum time that shutdown may take, in seconds."""
    return (
        settings.shutdown_delay_s + SHUTDOWN_TIMEOUT_S + settings.db_close_timeout_s + STOP_MARGIN_S
    )


def handle_signals(*more: signal.Signals) -> "asyncio.Queue[signal.Signals]":
    """Return a queue that receives SIGTERM, SIGINT and ``more`` from now on."""
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for wanted in (signal.SIGTERM, signal.SIGINT, *more):
        asyncio.get_running_loop().add_signal_handler(wanted, signals.put_nowait, wanted)
    return signals


async def serve_until_signalled(
    settings: Settings,
    listener: socket.socket,
    signals: "asyncio.Queue[signal.Signals]",
    started: Callable[[], None],
    stopping: Callable[[signal.Signals], object],
    registry: "CollectorRegistry | None" = None,
) -> None:
    """Start the application, call ``started``, serve until the first signal, then drain.

    ``stopping`` is called with that signal.

    After SIGTERM it reports not ready but keeps serving for ``shutdown_delay_s``, so that a load
    balancer can react. SIGINT and SIGQUIT skip that delay. RETIRE stops accepting connections but
    keeps it ready. Requests in progress always get up to ``SHUTDOWN_TIMEOUT_S`` to finish.
    """
    app = create_app(settings, registry)
    stop_signal = asyncio.create_task(signals.get())
    # aiohttp waits this long twice: also after it has ended the reading of bodies.
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT_S / 2)
    servers: list[asyncio.AbstractServer] = []
    try:
        if not await run_until(stop_signal, runner.setup()):
            return
        servers = await accept_clients(runner, listener)
        _freeze_startup_objects()
        started()
        received = await stop_signal
        stopping(received)
        # Responses close their connections from now on, so that no client is cut off at the end.
        app[LIFECYCLE].draining = True
        if received is RETIRE:
            for server in servers:
                server.close()
        else:
            app[LIFECYCLE].stopping = True
        if received not in AT_ONCE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.shutdown_delay_s):
                    while await signals.get() not in AT_ONCE:
                        pass
    finally:
        stop_signal.cancel()
        for server in servers:
            server.close()
        await runner.cleanup()


def _freeze_startup_objects() -> None:
    """Exclude permanent objects from garbage collection, and run it less often.

    Modules, routes and schemas are most of what a collection would traverse. With Python's default
    threshold, a single page of accounts could trigger one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


async def run_until(stop_signal: "asyncio.Task[Any]", work: Coroutine[Any, Any, None]) -> bool:
    """Do the work and return True; cancel it and return False if the stop signal comes first."""
    working = asyncio.create_task(work)
    either: set[asyncio.Task[Any]] = {working, stop_signal}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if stop_signal.done():
        working.cancel()
        await asyncio.wait({working})
        return False
    await working
    return True
