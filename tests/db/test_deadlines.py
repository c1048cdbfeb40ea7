"""Deadlines that share a timer, on a simulated clock so that times are exact."""

import asyncio

import pytest

from service.db.deadlines import Deadlines
from tests.support.clock import run_on_own_clock


def test_each_task_gets_its_full_time() -> None:
    async def main() -> None:
        deadlines = Deadlines(0.1)
        loop = asyncio.get_running_loop()

        async def late(after_s: float) -> float:
            await asyncio.sleep(after_s)
            with pytest.raises(TimeoutError):
                await deadlines.wait(asyncio.Event().wait())
            return loop.time()

        starts = (0, 0.03, 0.03, 0.06, 0.25)
        ended = await asyncio.gather(*(late(after_s) for after_s in starts))
        assert ended == pytest.approx([start + 0.1 for start in starts])

    run_on_own_clock(main())


def test_task_that_ends_in_time_returns_its_result_or_error() -> None:
    async def main() -> None:
        deadlines = Deadlines(0.1)
        assert await deadlines.wait(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ZeroDivisionError):
            await deadlines.wait(_fail())

    run_on_own_clock(main())


def test_timer_of_a_finished_task_does_not_cancel_the_next() -> None:
    async def main() -> None:
        deadlines = Deadlines(0.1)
        assert await deadlines.wait(asyncio.sleep(0, "done")) == "done"
        await asyncio.sleep(0.06)
        assert await deadlines.wait(asyncio.sleep(0.09, "done")) == "done"

    run_on_own_clock(main())


async def _fail() -> None:
    raise ZeroDivisionError


def test_cancellation_from_outside_is_not_a_timeout() -> None:
    async def main() -> None:
        deadlines = Deadlines(10)
        task = asyncio.create_task(deadlines.wait(asyncio.Event().wait()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_on_own_clock(main())


def test_task_continues_after_a_timeout() -> None:
    """It no longer counts as cancelled, so an asyncio.timeout around it is unaffected."""

    async def main() -> None:
        deadlines = Deadlines(0.01)
        async with asyncio.timeout(5):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await deadlines.wait(asyncio.Event().wait())
            assert await deadlines.wait(asyncio.sleep(0, "done")) == "done"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_on_own_clock(main())


def test_outer_deadline_cancels_an_inner_one() -> None:
    async def main() -> None:
        outer, inner = Deadlines(0.02), Deadlines(10)
        with pytest.raises(TimeoutError):
            await outer.wait(inner.wait(asyncio.Event().wait()))
        assert await inner.wait(asyncio.sleep(0, "done")) == "done"

    run_on_own_clock(main())
