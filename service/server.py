"""Serving: listen, say where, and stop gracefully."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvloop
from aiohttp import web

from service.app import create_app
from service.errors import StartError
from service.keys import HEALTH
from service.settings import Settings

# Also the time that a client has to send its headers.
KEEPALIVE_TIMEOUT_S = 15
SHUTDOWN_TIMEOUT_S = 5
# How long what is left of a refused body is read away, so that the answer arrives.
LINGERING_TIME_S = 3
BACKLOG = 1024


def listen(settings: Settings) -> socket.socket:
    """A listening socket, before anything else is started: a port in use is told at once.

    Raises StartError.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise StartError(f"cannot listen on HOST {settings.host}: no such address") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on HOST {settings.host}, PORT {settings.port}: {error.strerror}"
        ) from None
    listener.setblocking(False)
    return listener


def serve(settings: Settings, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` is called with the URL once requests are taken.

    Raises StartError where the database cannot be reached.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, announce))


async def _serve(
    settings: Settings, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(received: signal.Signals) -> None:
        if not stopping.done():
            stopping.set_result(received)

    for wanted in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wanted, stop, wanted)

    app = create_app(settings)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        lingering_time=LINGERING_TIME_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        if not await _set_up(runner, stopping):
            return
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        host, port = listener.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        received = await stopping
        # Not ready first, so that a balancer looks elsewhere; then stop listening and finish what
        # is under way. At a terminal nobody balances.
        app[HEALTH].draining = True
        if received is signal.SIGTERM:
            await asyncio.sleep(settings.shutdown_delay_s)
    finally:
        await runner.cleanup()


async def _set_up(runner: web.AppRunner, stopping: "asyncio.Future[signal.Signals]") -> bool:
    """Start the application, unless the process is told to stop while it waits for the database."""
    setting_up = asyncio.create_task(runner.setup())
    either: set[asyncio.Future[Any]] = {setting_up, stopping}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        setting_up.cancel()
        await asyncio.wait({setting_up})
        return False
    await setting_up
    return True
