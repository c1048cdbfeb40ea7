"""Background jobs, run by a newly started replica."""

from typing import Any

from tests.support.clients import WITH_JOBS, Client, StartApp, pool_of
from tests.support.waiting import eventually


async def run_jobs(client: Client, start_app: StartApp, until: str, *arguments: Any) -> None:
    """Start a replica and wait until the query ``until`` returns true."""
    await start_app(**WITH_JOBS)
    pool = pool_of(client)
    await eventually(lambda: pool.fetchval(until, *arguments))
