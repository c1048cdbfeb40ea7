"""The end of background tasks."""

import asyncio
import contextlib
import dataclasses

from service.app import create_app
from service.context import time_to_close_s
from service.jobs.tasks import end_tasks
from service.settings import Settings


async def test_task_that_cannot_end_does_not_hold_up_the_stop(settings: Settings) -> None:
    app = create_app(dataclasses.replace(settings, db_close_timeout_s=0.01))
    may_end = asyncio.Event()

    async def cling() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await may_end.wait()

    task = asyncio.create_task(cling())
    await asyncio.sleep(0)
    await end_tasks(app, task)
    assert not task.done()
    may_end.set()
    await task


async def test_all_that_ends_shares_the_time_to_close(settings: Settings) -> None:
    app = create_app(dataclasses.replace(settings, db_close_timeout_s=0.01))
    assert time_to_close_s(app) > 0
    await asyncio.sleep(0.02)
    assert time_to_close_s(app) == 0
