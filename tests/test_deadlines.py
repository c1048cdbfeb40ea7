"""Deadlines that share a timer: each task is cancelled when its own time is up, and no other."""

import asyncio

import pytest

from service.deadlines import Deadlines


async def test_each_is_given_its_own_time() -> None:
    deadlines = Deadlines(0.1)
    loop = asyncio.get_running_loop()

    async def late(after_s: float) -> float:
        await asyncio.sleep(after_s)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await deadlines.wait(asyncio.sleep(10))
        return loop.time() - began

    took = await asyncio.gather(*(late(after_s) for after_s in (0, 0.03, 0.03, 0.06, 0.25)))
    # uvloop's clock has milliseconds.
    assert min(took) >= 0.098


async def test_what_ends_in_time_gives_its_result_or_its_error() -> None:
    deadlines = Deadlines(0.1)
    assert await deadlines.wait(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        await deadlines.wait(_fail())
    # The timer of the first one looks while another waits.
    await asyncio.sleep(0.06)
    assert await deadlines.wait(asyncio.sleep(0.06, "done")) == "done"


async def _fail() -> None:
    raise ZeroDivisionError


async def test_a_cancellation_by_others_stays_one() -> None:
    deadlines = Deadlines(10)
    task = asyncio.create_task(deadlines.wait(asyncio.sleep(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_goes_on_after_its_time_was_up() -> None:
    """As it is not cancelled any more: asyncio.timeout around it is none the wiser."""
    deadlines = Deadlines(0.01)
    async with asyncio.timeout(5):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await deadlines.wait(asyncio.sleep(10))
        assert await deadlines.wait(asyncio.sleep(0, "done")) == "done"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_deadline_within_another() -> None:
    outer, inner = Deadlines(0.02), Deadlines(10)
    with pytest.raises(TimeoutError):
        await outer.wait(inner.wait(asyncio.sleep(10)))
    assert await inner.wait(asyncio.sleep(0, "done")) == "done"
