"""Background tasks that run while the application runs."""

import asyncio
from typing import Any

from aiohttp import web

from service.context import time_to_close_s


async def end_tasks(app: web.Application, *tasks: "asyncio.Task[Any]") -> None:
    """Cancel the tasks and wait for their end, until the application must have closed.

    A task may be unable to end, for example because asyncpg closes a connection that is silent.
    """
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=time_to_close_s(app))
