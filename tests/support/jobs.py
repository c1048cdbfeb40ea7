"""Background jobs, run by a newly started replica."""

from typing import Any

from service.db.connection import POOL
from tests.support.clients import Client, StartApp
from tests.support.waiting import eventually


async def run_jobs(client: Client, start_app: StartApp, until: str, *arguments: Any) -> None:
    """Start a replica and wait until the query ``until`` returns true."""
    await start_app()
    assert client.app is not None
    pool = client.app[POOL]
    await eventually(lambda: pool.fetchval(until, *arguments))
