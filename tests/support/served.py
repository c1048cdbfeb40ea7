"""The application behind the connections that it has in production."""

import asyncio
import socket
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import StrOrURL
from yarl import URL

from service.http.connections import accept_clients


class Server(TestServer):
    """Serves the application in the test's event loop, and cancels handlers of lost clients."""

    async def start_server(self, loop: asyncio.AbstractEventLoop | None = None, **_: Any) -> None:
        runner = web.AppRunner(self.app, handler_cancellation=True)
        self.runner = runner
        await runner.setup()
        listener = self.socket_factory(self.host, 0, socket.AF_INET)
        self.port = listener.getsockname()[1]
        self.accepting = await accept_clients(runner, listener)

    def make_url(self, path: StrOrURL) -> URL:
        return URL(f"http://{self.host}:{self.port}").join(URL(path))

    async def close(self) -> None:
        if not self.closed:
            for server in self.accepting:
                server.close()
        await super().close()
