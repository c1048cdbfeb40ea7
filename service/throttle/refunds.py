"""Refunds of attempts that the service itself failed: those answered with a 5xx."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from service.db.connection import Connection
from service.db.transactions import write
from service.exceptions import DatabaseUnavailable
from service.jobs.tasks import end_tasks
from service.throttle.limits import COUNTS, Count, refund_count

log = logging.getLogger(__name__)

# How long a 5xx waits for its refund, so that the client's next attempt usually finds it.
WAIT_S = 0.25
RETRY_S = 0.2
# Refunds that may wait for the database; more are lost.
OWED_MAX = 10_000


class Owed(NamedTuple):
    """The counts of a failed request; ``paid`` is set once they are refunded."""

    counts: Sequence[Count]
    paid: asyncio.Event


OWED: web.AppKey[asyncio.Queue[Owed]] = web.AppKey("owed_refunds")


@web.middleware
async def refund_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refund all counts of a request that is answered with a 5xx.

    So a right password is never locked out by a fault of ours. The response waits only briefly:
    the database may be what failed.
    """
    response = await handler(request)
    counts = request.get(COUNTS)
    if response.status >= 500 and counts and not request.app[OWED].full():
        owed = Owed(counts, asyncio.Event())
        request.app[OWED].put_nowait(owed)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await owed.paid.wait()
    return response


async def refunds_context(app: web.Application) -> AsyncIterator[None]:
    """Pay refunds one after another, retrying until the database is available.

    What is owed is kept in memory, and is lost if the process ends before. A refund that fails for
    another reason is logged, and does not stop the others.
    """
    app[OWED] = asyncio.Queue(OWED_MAX)
    paying = asyncio.create_task(_pay(app))
    yield
    await end_tasks(app, paying)


async def _pay(app: web.Application) -> None:
    while True:
        owed = await app[OWED].get()
        while not owed.paid.is_set():
            try:
                await write(app, _refund_all, owed.counts)
                owed.paid.set()
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("attempt not refunded")
                break


async def _refund_all(conn: Connection, counts: Sequence[Count]) -> None:
    for count in counts:
        await refund_count(conn, count)
