"""Connections of clients: how many there may be, and which are let go.

aiohttp waits without end for a client that does not read, accepts any number of connections, drops
the request of a client that has closed its own side, and reads ahead.
"""

import asyncio
import contextlib
import fcntl
import logging
import math
import resource
import socket
import sys
import termios
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import cast

from aiohttp import web

from service.context import SETTINGS
from service.http.error_responses import outside_response
from service.http.headers import RESPONSE_HEADERS
from service.http.problems import OVERLOADED, Problem
from service.http.receiving import Receiving
from service.http.request_heads import HEADER_MAX_BYTES, HEADERS_MAX, TARGET_MAX_BYTES
from service.http.responses import PIECE_BYTES
from service.telemetry.access_log import PROBES, route_template
from service.telemetry.metrics import Dropped, count

log = logging.getLogger(__name__)

BACKLOG = 1024
# uvloop accepts one connection per server in each turn of the event loop.
ACCEPTS_PER_TURN = 16
# How long the rest of a rejected body is read and discarded, so that the response arrives.
LINGERING_TIME_S = 3
# How much of its responses the kernel keeps for a client; by itself it would keep up to megabytes
# for each client that does not read.
SEND_BUFFER_BYTES = 128 * 1024
# File descriptors for everything else: files, mail, probes, metrics.
DESCRIPTORS_RESERVED = 64
# Connections beyond the maximum that get a response: their probes, and a 503 for the rest.
SPARE_MAX = 32
# A new connection has this long to send a request before another may take its place. On a busy
# machine, that request may have arrived already.
IDLE_MIN_S = 5
# How much of a response a client has to take within ``write_timeout_s``.
PROGRESS_BYTES = 16 * 1024
WATCH_EVERY_S = 1
LOG_EVERY_S = 10
# With more requests in progress, new ones start in order of arrival, a few in each turn of the
# event loop. So its turns stay short, and probes, which need several of them, fast.
IN_PROGRESS_MAX = 50
STARTS_PER_TURN = 8
# What may arrive before a request starts: more than its head and a body with a length.
UNSTARTED_MAX_BYTES = 128 * 1024
# A complete request starts within so many turns, also after the response before it.
TURNS_TO_START = 4


async def accept_clients(
    runner: web.AppRunner, listener: socket.socket
) -> list[asyncio.AbstractServer]:
    """Accept clients of the runner's application until the returned servers are closed."""
    server, connections = runner.server, runner.app[CONNECTIONS]
    assert server is not None  # noqa: S101
    # Accepted sockets inherit these options.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The kernel, too, gives up on clients that do not read, and on those that are gone.
        unread_ms = int(2000 * runner.app[SETTINGS].write_timeout_s)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    loop = asyncio.get_running_loop()

    def connect() -> ClientConnection:
        return ClientConnection(connections, server, loop)

    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TURN - 1))]
    return [await loop.create_server(connect, sock=sock, backlog=BACKLOG) for sock in listeners]


class Connections:
    """The open connections of a process, and the requests that wait for their turn."""

    def __init__(self, app: web.Application) -> None:
        self.app = app
        self.settings = app[SETTINGS]
        self.maximum = self.settings.connections_max
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors != resource.RLIM_INFINITY:
            others = self.settings.db_pool_size + DESCRIPTORS_RESERVED + SPARE_MAX
            self.maximum = max(1, min(self.maximum, descriptors - others))
        self.open: dict[ClientConnection, asyncio.Transport] = {}
        # Those without a request in progress since this time, the longest idle first.
        self.idle: dict[ClientConnection, float] = {}
        # Those with unsent bytes: the most that was unread, and since when that has not shrunk.
        self.unsent: dict[ClientConnection, tuple[float, float]] = {}
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.dropped: Counter[Dropped] = Counter()

    def opened(self, connection: "ClientConnection", transport: asyncio.Transport) -> None:
        """Admit a new connection; if there are too many, at the cost of the longest idle one."""
        now = connection.now()
        if len(self.open) >= self.maximum:
            oldest = next(iter(self.idle), None)
            if oldest is not None and now - self.idle[oldest] >= IDLE_MIN_S:
                self.drop(oldest, "idle")
            else:
                connection.spare = True
        self.open[connection] = transport
        if len(self.open) > self.maximum + SPARE_MAX:
            self.drop(connection, "overload")
        else:
            self.idle[connection] = now

    def closed(self, connection: "ClientConnection") -> None:
        self.open.pop(connection, None)
        self.idle.pop(connection, None)

    def drop(self, connection: "ClientConnection", reason: Dropped) -> None:
        self.open[connection].abort()
        self.closed(connection)
        self.dropped[reason] += 1
        count(self.app, "connections_dropped", reason=reason)

    async def turn(self) -> None:
        """Wait until the requests before this one have started, and for the next turn."""
        loop = asyncio.get_running_loop()
        start = loop.create_future()
        self.waiting.append(start)
        if len(self.waiting) == 1:
            loop.call_soon(self._start_some)
        await start

    def _start_some(self) -> None:
        started = 0
        while self.waiting and started < STARTS_PER_TURN:
            start = self.waiting.popleft()
            if not start.done():
                start.set_result(None)
                started += 1
        if self.waiting:
            asyncio.get_running_loop().call_soon(self._start_some)

    async def watch(self) -> None:
        """Let go of clients that do not read, and log how many clients have been let go of."""
        loop = asyncio.get_running_loop()
        next_log = -math.inf
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                self._drop_unread(loop.time())
            except Exception:
                log.exception("unexpected error")
            if self.dropped and loop.time() >= next_log:
                log.warning(
                    "connections dropped",
                    extra={
                        "not_reading": self.dropped["not_reading"],
                        "idle": self.dropped["idle"],
                        "overload": self.dropped["overload"],
                    },
                )
                self.dropped.clear()
                next_log = loop.time() + LOG_EVERY_S

    def _drop_unread(self, now: float) -> None:
        """Drop the connections whose clients have taken too little for ``write_timeout_s``."""
        before, self.unsent = self.unsent, {}
        for connection, transport in list(self.open.items()):
            if not transport.get_write_buffer_size():
                continue
            size = _unread_bytes(transport)
            most, since = before.get(connection, (math.inf, now))
            if size <= most - PROGRESS_BYTES:
                most, since = size, now
            if now - since > self.settings.write_timeout_s:
                self.drop(connection, "not_reading")
            else:
                self.unsent[connection] = (max(most, size), since)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not acknowledged.

    The kernel takes more from us only in large steps, so the write buffer alone may not shrink for
    long. Outside Linux it has to do.
    """
    unread = transport.get_write_buffer_size()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            descriptor = transport.get_extra_info("socket").fileno()
            queued = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(queued, sys.byteorder)
    return unread


class ClientConnection(web.RequestHandler):
    """aiohttp's protocol of one connection, which may be let go.

    ``spare`` connections exceed the maximum. ``ended`` means that the client has closed its side,
    and ``discards`` that the rest of a rejected body is being read.
    """

    __slots__ = (
        "arrived_bytes",
        "connections",
        "discards",
        "ended",
        "held",
        "idle",
        "must_wait",
        "now",
        "pipelined",
        "received_at",
        "receiving",
        "spare",
        "turns_left",
    )

    def __init__(
        self, connections: Connections, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            # Also how long a client may take to send its headers.
            keepalive_timeout=connections.settings.keepalive_timeout_s,
            lingering_time=LINGERING_TIME_S,
            max_line_size=TARGET_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
            max_headers=HEADERS_MAX,
            # ``codings`` does it, within limits.
            auto_decompress=False,
        )
        self.connections = connections
        self.idle = connections.idle
        self.now = loop.time
        # When bytes last arrived, until a request starts.
        self.received_at: float | None = None
        # Bytes since the last response, without those that ``receiving`` counts.
        self.arrived_bytes = 0
        self.turns_left = 0
        self.receiving: Receiving | None = None
        self.spare = self.ended = self.held = self.pipelined = self.must_wait = False
        self.discards = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to a request that is not valid HTTP, among others.

        aiohttp's own text response repeats the request.
        """
        return outside_response(request, exc, self.connections.app[RESPONSE_HEADERS])

    async def read_body(self, request: web.Request) -> None:
        """Read and cache the whole body. Raises a Problem if that fails."""
        timeout_s = self.connections.settings.body_timeout_s
        self.receiving = Receiving(request, timeout_s, self.arrived_bytes)
        try:
            await self.receiving.read()
        finally:
            self.receiving = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # uvloop's transports have another base class.
        transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=PIECE_BYTES)
        self.connections.opened(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.connections.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived. While a request is in progress, read no further than this."""
        self.received_at = self.now()
        if self.receiving is None:
            self.arrived_bytes += len(data)
        else:
            self.receiving.count(data)
        super().data_received(data)
        if self.sends_endless_head and not self.turns_left:
            self._close_when_idle()
        if self not in self.idle and self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()
            self.held = True

    @property
    def sends_endless_head(self) -> bool:
        """Whether more has arrived than a head may have, if no request starts soon."""
        if self.arrived_bytes <= UNSTARTED_MAX_BYTES:
            return False
        return not (self.receiving or self.discards)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open for the responses to what has been received."""
        self.ended = True
        self._close_when_idle()
        return True

    def _close_when_idle(self) -> None:
        """Close the connection if no request starts within the next ``TURNS_TO_START``."""
        if not self.turns_left:
            asyncio.get_running_loop().call_soon(self._count_turn)
        self.turns_left = TURNS_TO_START

    def _count_turn(self) -> None:
        self.turns_left -= 1
        if self.turns_left:
            asyncio.get_running_loop().call_soon(self._count_turn)
        elif (
            self in self.idle
            and self.transport is not None
            and (self.ended or self.sends_endless_head)
        ):
            self.transport.close()

    def started(self) -> float:
        """Note that a request is in progress. Return when it arrived, body included.

        A pipelined request arrives when the response before it has been sent.
        """
        self.idle.pop(self, None)
        arrived, self.received_at = self.received_at, None
        self.pipelined = arrived is None
        in_progress = len(self.connections.open) - len(self.idle)
        self.must_wait = self.pipelined or self.spare or in_progress > IN_PROGRESS_MAX
        return self.now() if arrived is None else arrived

    async def turn(self, request: web.Request) -> None:
        """Wait until a request may start. Probes need not wait, unless they are pipelined.

        Raises Problem 503 if there are too many connections.
        """
        if route_template(request) not in PROBES:
            if self.spare:
                raise Problem(OVERLOADED)
        elif not self.pipelined:
            return
        await self.connections.turn()

    @property
    def client_gone(self) -> bool:
        return self.ended or self.transport is None or self.transport.is_closing()

    def log_access(
        self, request: web.BaseRequest, response: web.StreamResponse, time: float | None
    ) -> None:
        """Note that a response has been sent; aiohttp calls this for each."""
        if self.transport is None:
            return
        self.idle.pop(self, None)
        self.idle[self] = self.now()
        # What has arrived meanwhile waited for this response; its time begins now.
        self.received_at = None
        self.arrived_bytes = 0
        self.discards = not request.content.is_eof()
        if self.held:
            self.held = False
            self.transport.resume_reading()
        if self.ended:
            self._close_when_idle()


async def connections_context(app: web.Application) -> AsyncIterator[None]:
    """Watch the connections while the application runs."""
    watching = asyncio.create_task(app[CONNECTIONS].watch(), name="connections")
    yield
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


CONNECTIONS = web.AppKey("connections", Connections)
