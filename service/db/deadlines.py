"""One timer shared by all waits with the same time limit.

``asyncio.timeout`` sets and cancels a timer for every wait, which is expensive for short requests.
Waits with the same limit expire in the order in which they started, so one timer for the oldest is
enough.
"""

import asyncio
from collections.abc import Awaitable
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlines:
    """Cancels every task that waits longer than ``limit_s`` seconds.

    A task may have only one wait at a time per instance.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        # Start time and ``cancelling()`` count of each waiting task, oldest first.
        self._began: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._timer_set = False

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Return the awaitable's result. Raises TimeoutError if it takes too long."""
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
        if not self._timer_set:
            self._timer_set = True
            # An empty context, as the timer would keep a request's context alive.
            loop.call_later(self._limit_s, self._cancel_overdue, loop, context=Context())

    def _end(self, task: asyncio.Task[Any]) -> bool:
        """Return whether the task was cancelled by its deadline, and for no other reason."""
        _, cancelled_before = self._began.pop(task)
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        return task.uncancel() <= cancelled_before

    def _cancel_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel overdue tasks, and set the timer for the next one to expire."""
        now = loop.time()
        for task, (began, _) in self._began.items():
            if now < began + self._limit_s:
                loop.call_at(began + self._limit_s, self._cancel_overdue, loop)
                return
            if task not in self._cancelled:
                self._cancelled.add(task)
                task.cancel()
        self._timer_set = False
