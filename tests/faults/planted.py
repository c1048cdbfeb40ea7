"""The service with a defect, to show that runs of faults notice it.

python -m tests.faults.planted DEFECT serve
"""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import service.__main__
from service.db import transactions
from service.db.connection import LOST
from service.exceptions import DatabaseUnavailable
from service.factors import challenge_queries, queries
from service.health import handlers as health
from service.http import problems


def a_retry_too_many() -> None:
    """Repeat a transaction whose connection was lost, even at its commit."""
    transactions.RETRYABLE += LOST  # type: ignore[assignment]


def a_commit_that_is_swallowed() -> None:
    """Report success whatever became of the commit."""

    @contextlib.asynccontextmanager
    async def transaction(conn: Any, **options: Any) -> AsyncIterator[None]:
        started = conn.transaction(**options)
        await started.start()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                await started.rollback()
            raise
        with contextlib.suppress(Exception):
            await started.commit()

    transactions._transaction = transaction


def a_sign_in_that_works_twice() -> None:
    """Accept a passkey's signature however often it is sent."""

    async def accept(*_: Any, **__: Any) -> bool:
        return True

    challenge_queries.use_challenge = accept
    queries.use_passkey = accept


def a_leak() -> None:
    """Leave a descriptor open for each request that the database could not serve."""
    original = DatabaseUnavailable.__init__

    def leak(self: Any, *args: Any) -> None:
        original(self, *args)
        os.dup(2)

    DatabaseUnavailable.__init__ = leak  # type: ignore[method-assign]


def a_missing_retry_after() -> None:
    problems.RETRY_SOON.clear()


def a_stale_readiness() -> None:
    """Keep what the first probe found."""
    health.CACHE_S = 1e9


DEFECTS: dict[str, Callable[[], None]] = {
    defect.__name__: defect
    for defect in (
        a_retry_too_many,
        a_commit_that_is_swallowed,
        a_sign_in_that_works_twice,
        a_leak,
        a_missing_retry_after,
        a_stale_readiness,
    )
}

if __name__ == "__main__":
    DEFECTS[sys.argv.pop(1)]()
    service.__main__.main()
