"""The log of slow statements.

asyncpg measures a statement until its task runs again, and on a busy machine that is later than the
response. So a task measures how long the event loop was held up meanwhile, which is left out.
"""

import asyncio
import functools
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from asyncpg.connection import LoggedQuery

from service.db.connection import PURPOSE, STATEMENT_MAX_CHARS

log = logging.getLogger(__name__)

# The loop is held up if it is late for a timer; shorter delays than this may go unnoticed.
BEAT_S = 0.1
DELAYS_MAX = 1000


class Delay(NamedTuple):
    """When the loop should have run, and when it did (``time.monotonic``): infinity until then."""

    due: float
    ran: float


@asynccontextmanager
async def slow_query_logger(
    slow_query_ms: float,
) -> AsyncIterator[Callable[[LoggedQuery], None] | None]:
    """Yield a query logger for asyncpg, or None if ``slow_query_ms`` is 0."""
    if not slow_query_ms:
        yield None
        return
    # The last one has not ended: a response may be read before the timer that is late.
    delays: deque[Delay] = deque(maxlen=DELAYS_MAX)
    watching = asyncio.create_task(_watch_loop(delays), name="event loop delays")
    try:
        yield functools.partial(_log_if_slow, slow_query_ms / 1000, delays)
    finally:
        watching.cancel()


async def _watch_loop(delays: deque[Delay]) -> None:
    """Record when the event loop is late."""
    while True:
        due = time.monotonic() + BEAT_S
        delays.append(Delay(due, math.inf))
        await asyncio.sleep(BEAT_S)
        ran = time.monotonic()
        delays.pop()
        if ran - due > BEAT_S / 10:
            delays.append(Delay(due, ran))


def held_up_s(delays: Iterable[Delay], since: float) -> float:
    """Return for how many seconds the loop was held up since then."""
    now = time.monotonic()
    return sum(max(0, min(ran, now) - max(due, since)) for due, ran in delays)


def _log_if_slow(slow_s: float, delays: Iterable[Delay], query: LoggedQuery) -> None:
    """Log a slow statement with its placeholders, never with its parameters.

    asyncpg calls this in the statement's context, so that the line carries its request's id.
    """
    if query.elapsed < slow_s:
        return
    elapsed_s = query.elapsed - held_up_s(delays, time.monotonic() - query.elapsed)
    if elapsed_s >= slow_s:
        log.warning(
            "slow query",
            extra={
                "query": PURPOSE.get(),
                "elapsed_ms": round(elapsed_s * 1000, 1),
                "statement": " ".join(query.query.split())[:STATEMENT_MAX_CHARS],
                "error": type(query.exception).__name__ if query.exception else None,
            },
        )
