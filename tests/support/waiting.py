"""Waiting for a condition: the only place where tests poll."""

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Only a failure takes this long, even on a slow machine.
DEADLINE_S = 120
LOOK_EVERY_S = 0.01


async def eventually(condition: Callable[[], Awaitable[object] | object]) -> Any:
    """Return the first true value of ``condition``, which may be a coroutine function."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"did not happen: {_describe(condition)}"
        await asyncio.sleep(LOOK_EVERY_S)


def eventually_blocking(condition: Callable[[], T]) -> T:
    """Do what ``eventually`` does, in a test without an event loop."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not happen: {_describe(condition)}"
        time.sleep(LOOK_EVERY_S)
    return value


def _describe(condition: Callable[[], object]) -> str:
    if isinstance(condition, functools.partial):
        return f"{condition}"
    return inspect.getsource(condition)
