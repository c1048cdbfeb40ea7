"""Serving: listen, say where, and stop gracefully."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop
from aiohttp import web

from service.app import create_app
from service.context import LIFECYCLE
from service.exceptions import StartError
from service.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# Also the time that a client has to send its headers.
KEEPALIVE_TIMEOUT_S = 15
SHUTDOWN_TIMEOUT_S = 5
# How long what is left of a refused body is read away, so that the answer arrives.
LINGERING_TIME_S = 3
BACKLOG = 1024
# Tells a worker to leave while others go on: it takes no new connections, but stays ready.
RETIRE = signal.SIGUSR2
AT_ONCE = (signal.SIGINT, signal.SIGQUIT)
# For mail on its way and a busy machine, beyond the delay, requests under way and the pool.
STOP_MARGIN_S = 5


def listen(host: str, port: int, prefix: str = "") -> socket.socket:
    """A listening socket, before anything else is started: a port in use is told at once.

    ``prefix`` is that of the two variables, for the StartError that this raises.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise StartError(f"cannot listen on {prefix}HOST {host}: no such address") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {prefix}HOST {host}, {prefix}PORT {port}: {error.strerror}"
        ) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    settings: Settings,
    listener: socket.socket,
    announce: Callable[[str], None],
    registry: "CollectorRegistry | None" = None,
) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` is called with the URL once requests are taken.

    Raises StartError where the database cannot be reached.
    """

    async def until_told() -> None:
        await serve_until_told(
            settings, listener, hear_signals(), lambda: announce(url_of(listener)), registry
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_told())


def stop_timeout_s(settings: Settings) -> float:
    """How long stopping may take at most."""
    return (
        settings.shutdown_delay_s + SHUTDOWN_TIMEOUT_S + settings.db_close_timeout_s + STOP_MARGIN_S
    )


def hear_signals(*more: signal.Signals) -> "asyncio.Queue[signal.Signals]":
    """A queue of the signals that the process gets from now on: SIGTERM, SIGINT, and ``more``."""
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for wanted in (signal.SIGTERM, signal.SIGINT, *more):
        asyncio.get_running_loop().add_signal_handler(wanted, signals.put_nowait, wanted)
    return signals


async def serve_until_told(
    settings: Settings,
    listener: socket.socket,
    signals: "asyncio.Queue[signal.Signals]",
    started: Callable[[], None],
    registry: "CollectorRegistry | None" = None,
) -> None:
    """Start the application, call ``started``, and serve until the first signal; then drain.

    SIGTERM: not ready, so that a balancer looks elsewhere, and serving for ``shutdown_delay_s``
    more; SIGINT and SIGQUIT: without that delay. What is under way is answered in any case.
    """
    app = create_app(settings, registry)
    told = asyncio.create_task(signals.get())
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        lingering_time=LINGERING_TIME_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        if not await unless(told, runner.setup()):
            return
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        _spare_what_stays()
        started()
        received = await told
        # Answers end their connections from now on, so that no client is cut off at the end.
        app[LIFECYCLE].draining = True
        if received is RETIRE:
            await site.stop()
        else:
            app[LIFECYCLE].stopping = True
        if received not in AT_ONCE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.shutdown_delay_s):
                    while await signals.get() not in AT_ONCE:
                        pass
    finally:
        told.cancel()
        await runner.cleanup()


def _spare_what_stays() -> None:
    """Keep the garbage collector from what is there for good, and from looking all the time.

    Modules, routes and schemas are most of what it would go through, 20 ms each time; and a page of
    accounts alone makes enough objects for a look (700).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


async def unless(told: "asyncio.Task[Any]", work: Coroutine[Any, Any, None]) -> bool:
    """Do the work and return True, unless the process is told to stop before it is done."""
    working = asyncio.create_task(work)
    either: set[asyncio.Task[Any]] = {working, told}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        working.cancel()
        await asyncio.wait({working})
        return False
    await working
    return True
