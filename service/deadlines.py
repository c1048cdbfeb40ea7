"""One timer for all requests, in place of one for each.

``asyncio.timeout`` sets a timer at the start of each request and takes it back at its end: 7 % of
what ``GET /users/me`` costs. All requests have the same time, so they run out of it in the order in
which they began, and it is enough to look when the oldest one may have.
"""

import asyncio
from typing import Any, TypeAlias

Task: TypeAlias = asyncio.Task[Any]


class Deadlines:
    """Cancels each task that it was told of once it has taken ``limit_s`` seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        # When each began, in that order.
        self._began: dict[Task, float] = {}
        self._cancelled: set[Task] = set()
        self._looks = False

    def begin(self, task: Task) -> None:
        """From now on the task's time is running; ``end`` has to be called for it."""
        loop = asyncio.get_running_loop()
        self._began[task] = loop.time()
        if not self._looks:
            self._looks = True
            loop.call_later(self._limit_s, self._look, loop)

    def end(self, task: Task) -> bool:
        """Whether the task was cancelled because its time was up, and for no other reason."""
        del self._began[task]
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        return task.uncancel() == 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel those whose time is up, and look again when that of the next one will be."""
        now = loop.time()
        for task, began in self._began.items():
            if now < began + self._limit_s:
                loop.call_at(began + self._limit_s, self._look, loop)
                return
            if task not in self._cancelled:
                self._cancelled.add(task)
                task.cancel()
        self._looks = False
