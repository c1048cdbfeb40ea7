"""Opening connections: the one place that calls asyncpg, and the wait for a database."""

import asyncio
from typing import Any

import asyncpg

from service.db.connection import LOST, explain
from service.exceptions import StartError
from service.settings import Database

# A network that drops packets gets three attempts (SYN after 0, 1 and 3 s).
CONNECT_TIMEOUT_S = 4
RETRY_S = 0.2


async def connect(
    database: Database, *, timeout_s: float = CONNECT_TIMEOUT_S, **arguments: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    """Open a connection; ``arguments`` are those of ``asyncpg.connect``.

    Raises what ``explain`` explains.
    """
    return await asyncpg.connect(**database.asyncpg_arguments(), timeout=timeout_s, **arguments)


async def wait_for_database(
    database: Database, timeout_s: float
) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect, retrying for ``timeout_s`` seconds unless waiting cannot help.

    Raises StartError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        left_s = max(1, deadline - loop.time())
        try:
            return await connect(database, timeout_s=min(CONNECT_TIMEOUT_S, left_s))
        except (*LOST, asyncpg.PostgresError) as error:
            _, reason, hopeless = explain(error)
        if hopeless or loop.time() >= deadline:
            tried = "" if hopeless else f" (tried for {timeout_s:g} s, DB_CONNECT_TIMEOUT_S)"
            raise cannot_connect(database, reason + tried)
        await asyncio.sleep(min(RETRY_S, max(0, deadline - loop.time())))


def cannot_connect(database: Database, reason: str) -> StartError:
    return StartError(
        f"cannot connect to PostgreSQL at {database.address}, database {database.name},"
        f" as user {database.user}: {reason}"
    )
