"""Batching of concurrent reads into one query, like DataLoader, on the pool.

One query for many keys is far cheaper than many queries. Callers see no difference:

- A query never starts before the reads that it serves. Its keys are taken once it has a connection,
  so each read sees everything committed before it was requested.
- Cancelling one caller does not affect the others.
- An error reaches every caller of the batch, as the same exception.
- A batch has at most ``BATCH_MAX`` keys, and one batch runs at a time; later reads share the next.
- If a batch takes longer than ``NEXT_BATCH_AFTER_S``, another starts in parallel, so that a hanging
  connection does not block reads. At most ``BATCHES_MAX`` run, to leave most of the pool to others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context, copy_context
from functools import wraps
from itertools import islice
from typing import Generic, TypeVar

from aiohttp import web

from service.context import REQUEST_CONTEXT, RequestContext
from service.db.connection import Connection
from service.db.transactions import read

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

BATCH_MAX = 100
BATCHES_MAX = 2
NEXT_BATCH_AFTER_S = 0.01


class Coalesced(Generic[K, V]):
    """Coalesced reads by key. ``query`` returns a mapping of the keys that it found."""

    def __init__(
        self,
        app: web.Application,
        query: Callable[[Connection, Sequence[K]], Awaitable[Mapping[K, V]]],
    ) -> None:
        self._app = app
        self._query = query
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._batches: set[asyncio.Task[None]] = set()
        # The batch that holds back the next one. It takes new keys until it has a connection.
        self._current: asyncio.Task[None] | None = None
        self._started_at: float | None = None
        self._timer_set = False
        self._context = copy_context()

    async def find(self, key: K) -> V | None:
        """Return the value of the key, or None. Raises DatabaseUnavailable like ``read``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        self._context = copy_context()
        if self._current is None:
            self._start_batch()
        else:
            self._set_timer(loop)
        asked = time.perf_counter()
        try:
            return await future
        finally:
            if context := REQUEST_CONTEXT.get(None):
                context.add_database_time(time.perf_counter() - asked)

    def _start_batch(self) -> None:
        """Start a batch, if any reads are waiting and another batch is allowed."""
        if not self._waiting or len(self._batches) == BATCHES_MAX:
            return
        self._started_at = None
        # In the latest caller's context, so that the query belongs to that request's trace and log.
        # The context of the previous batch's done callback may belong to a finished request.
        self._current = asyncio.create_task(self._run_batch(), context=self._context)
        self._batches.add(self._current)
        self._current.add_done_callback(self._on_batch_done)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Limit how long the waiting reads are held back by a batch that hangs."""
        if self._waiting and not self._timer_set:
            self._timer_set = True
            # An empty context, as the timer would keep a request's context alive.
            loop.call_later(NEXT_BATCH_AFTER_S, self._on_timer, loop, context=Context())

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer_set = False
        if self._started_at is not None and loop.time() - self._started_at >= NEXT_BATCH_AFTER_S:
            self._current = None
            self._start_batch()
        self._set_timer(loop)

    def _on_batch_done(self, batch: "asyncio.Task[None]") -> None:
        self._batches.discard(batch)
        if self._current is batch:
            self._current = None
        if self._current is None:
            self._start_batch()

    async def _run_batch(self) -> None:
        # A context of its own, because each caller already counts the time that it waits.
        REQUEST_CONTEXT.set(RequestContext(""))
        taken: dict[K, list[asyncio.Future[V | None]]] = {}

        @wraps(self._query)  # keeps the name for metrics and logs
        async def query(conn: Connection) -> Mapping[K, V]:
            if not taken:
                for key in list(islice(self._waiting, BATCH_MAX)):
                    taken[key] = self._waiting.pop(key)
                loop = asyncio.get_running_loop()
                self._started_at = loop.time()
                self._set_timer(loop)
            return await self._query(conn, list(taken))

        try:
            found = await read(self._app, query)
        except Exception as error:
            if not taken:
                # No connection could be acquired, so every waiting read fails.
                taken, self._waiting = self._waiting, {}
            for futures in taken.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                        # Marks it as retrieved: a caller cancelled at this moment never does.
                        future.exception()
        else:
            for key, futures in taken.items():
                value = found.get(key)
                for future in futures:
                    if not future.done():
                        future.set_result(value)
