"""Requests that wait for each other in a fixed order, so that races are deterministic."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from tests.support.waiting import eventually

T = TypeVar("T")

# Counts the backends that wait for this connection, directly or through others.
_BEHIND_US = """
    with recursive behind (pid) as (
        select pg_backend_pid()
        union
        select waiting.pid
        from (
            select distinct pid, pg_blocking_pids(pid) as blockers from pg_locks where not granted
        ) as waiting
        join behind on behind.pid = any(waiting.blockers)
    )
    select count(*) - 1 from behind
"""
# Starts a request, and returns once it waits behind the lock or has completed.
Start = Callable[[Awaitable[T]], Awaitable["asyncio.Task[T]"]]


@contextlib.asynccontextmanager
async def holding(conn: Any, statement: str, *arguments: Any) -> AsyncIterator[Start[Any]]:
    """Hold a statement's locks for the duration of the block, then commit.

    The request started first passes the lock first. If it changes the row, all others then race
    for its new version, so an order of more than two cannot be relied on. All have completed when
    the context manager exits.
    """
    tasks: list[asyncio.Task[Any]] = []

    async def start(asked: Awaitable[T]) -> "asyncio.Task[T]":
        before = await conn.fetchval(_BEHIND_US)
        task = asyncio.ensure_future(asked)
        tasks.append(task)

        async def waits_or_is_done() -> bool:
            return task.done() or await conn.fetchval(_BEHIND_US) > before

        await eventually(waits_or_is_done)
        return task

    async with conn.transaction():
        await conn.execute(statement, *arguments)
        yield start
    if tasks:
        await asyncio.wait(tasks)
