"""Requests that are made to wait for each other, so that a race has one course."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from tests.support.waiting import eventually

T = TypeVar("T")

# How many wait for this connection's locks, or for somebody who does.
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
# The application's first job: until it is done, it waits for whoever writes to the audit.
_PARTITIONS_ARE_MADE = """
    select count(*) > 1 from pg_inherits where inhparent = 'audit_events'::regclass
"""

# Starts a request, and returns once it waits behind the lock, or is answered.
Start = Callable[[Awaitable[T]], Awaitable["asyncio.Task[T]"]]


@contextlib.asynccontextmanager
async def holding(conn: Any, statement: str, *arguments: Any) -> AsyncIterator[Start[Any]]:
    """Hold the locks of a statement while the block lasts; what it wrote is committed then.

    Requests that are started in the block get past the lock in the order of their start. All are
    answered when the block has been left.
    """
    tasks: list[asyncio.Task[Any]] = []
    await eventually(lambda: conn.fetchval(_PARTITIONS_ARE_MADE))

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
