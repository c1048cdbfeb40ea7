"""Serving: listen, say where, and stop gracefully."""

import asyncio
import signal
import socket
from collections.abc import Callable

import structlog
import uvloop
from aiohttp import web

from service.app import create_app
from service.errors import StartError
from service.keys import HEALTH
from service.settings import Settings

log = structlog.get_logger(__name__)

# Also the time that a client has to send its headers.
KEEPALIVE_TIMEOUT_S = 15
SHUTDOWN_TIMEOUT_S = 5


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` is called with the URL once requests are taken.

    Raises StartError where the address cannot be listened on or the database not be reached.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(received: signal.Signals) -> None:
        if not stopping.done():
            stopping.set_result(received)

    for wanted in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wanted, stop, wanted)

    listener = _listen(settings)
    app = create_app(settings)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener, backlog=1024).start()
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
        listener.close()


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything else starts, so that a port in use is told at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(
            f"cannot listen on HOST {settings.host}, PORT {settings.port}: {error.strerror}"
        ) from None
    listener.setblocking(False)
    return listener
