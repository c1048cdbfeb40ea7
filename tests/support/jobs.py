"""The jobs that run in the background, as a replica does them that starts now."""

from typing import Any

from service.db.connection import POOL
from tests.support.clients import Client, StartApp
from tests.support.waiting import eventually


async def run_jobs(client: Client, start_app: StartApp, until: str, *arguments: Any) -> None:
    """Start a replica, and wait until the database says that the job in question is done."""
    await start_app()
    assert client.app is not None
    pool = client.app[POOL]
    await eventually(lambda: pool.fetchval(until, *arguments))
