"""An event loop whose time advances only when nothing else is ready."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Advances the clock to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left to run"
        self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_on_own_clock(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on a simulated clock, so that timers fire on time on any machine."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
