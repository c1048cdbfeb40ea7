"""One timer for all that may take equally long, in place of one for each.

``asyncio.timeout`` sets a timer at the start of each request and takes it back at its end: 7 % of
what ``GET /users/me`` cost, and as much again for a connection of the pool. Where all have the same
time, they run out of it in the order in which they began, and it is enough to look when the oldest
one may have.
"""

import asyncio
from collections.abc import Awaitable
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlines:
    """Lets nothing take longer than ``limit_s`` seconds, by cancelling the task that waits for it.

    A task may wait for one thing at a time here.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        # When each began, in that order, and how often it had been cancelled by then.
        self._began: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._looks = False

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Its result. Raises TimeoutError where it takes too long."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._begin(task)
        late = False
        try:
            try:
                return await awaitable
            finally:
                late = self._end(task)
        except asyncio.CancelledError:
            if late:
                raise TimeoutError from None
            raise

    def _begin(self, task: asyncio.Task[Any]) -> None:
        loop = task.get_loop()
        self._began[task] = loop.time(), task.cancelling()
        if not self._looks:
            self._looks = True
            # In no request's context, which it would keep.
            loop.call_later(self._limit_s, self._look, loop, context=Context())

    def _end(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was cancelled because its time was up, and for no other reason."""
        _, cancelled_before = self._began.pop(task)
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        return task.uncancel() <= cancelled_before

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel those whose time is up, and look again when that of the next one will be."""
        now = loop.time()
        for task, (began, _) in self._began.items():
            if now < began + self._limit_s:
                loop.call_at(began + self._limit_s, self._look, loop)
                return
            if task not in self._cancelled:
                self._cancelled.add(task)
                task.cancel()
        self._looks = False
