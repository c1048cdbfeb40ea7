"""A client without any of the service's defences, which shows that a fault was one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg

from service.settings import Database

EVERY_S = 0.05
PATIENCE_S = 0.5


@dataclass
class Control:
    """How often the client failed, or waited for longer than ``PATIENCE_S``.

    ``has_succeeded`` is set by each try that succeeds, ``has_tried`` by each of them.
    """

    failures: int = 0
    has_succeeded: asyncio.Event = field(default_factory=asyncio.Event)
    has_tried: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def controlling(database: Database, statement: str) -> AsyncIterator[Control]:
    """Run the statement again and again on one connection, for the duration of the block.

    It is prepared once for each connection and runs in a transaction, as in a program that knows
    nothing of faults. It tries once more at the end, because a short fault may come and go while
    it sleeps.
    """
    control = Control()
    task = asyncio.create_task(_run(control, database, statement))
    try:
        await control.has_succeeded.wait()
        yield control
        control.has_tried.clear()
        await control.has_tried.wait()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _run(control: Control, database: Database, statement: str) -> None:
    while True:
        connection = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await asyncpg.connect(**database.asyncpg_arguments())
            while True:
                async with asyncio.timeout(PATIENCE_S), connection.transaction():
                    await connection.fetch(statement)
                control.has_succeeded.set()
                control.has_tried.set()
                await asyncio.sleep(EVERY_S)
        except Exception:
            control.failures += 1
            control.has_tried.set()
        finally:
            if connection is not None:
                connection.terminate()
        await asyncio.sleep(EVERY_S)
