"""Client types and common settings of the tests."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.db.connection import POOL
from service.settings import Rate

ROOT = Path(__file__).parents[2]

Client = TestClient[web.Request, web.Application]
StartApp = Callable[..., Awaitable[Client]]


def pool_of(client: Client) -> "asyncpg.Pool[asyncpg.Record]":
    """Return the pool of the client's application."""
    server = client.server
    assert isinstance(server, TestServer)
    return server.app[POOL]


SECRET_KEY = "a secret key of the tests, long enough to be taken"
# Replaces it.
NEW_KEY = "a secret key of the tests that replaces the first"
# More than any test uses.
PLENTY = Rate(10_000, 60)
# Settings with which each periodic job first runs within a second, but not together with another:
# it would skip the rows that the other has locked, until its next run.
WITH_JOBS: dict[str, Any] = {"jobs_start_within_s": 1}
# Options for a PostgreSQL that need not survive a crash.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "max_wal_size": "256MB",
}
