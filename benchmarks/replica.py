"""Measures how many lists a standby serves beside writes: ``python -m benchmarks.replica``.

For SECONDS, LISTS lists of worlds a second are read, while others write to the primary.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import asyncpg
from aiohttp.test_utils import TestClient

from benchmarks import stage
from service.app import create_app
from service.db import migrations
from service.db.replica import REPLICA
from service.embedded import server as embedded
from service.settings import Database, Settings
from tests.support.factories import register
from tests.support.served import Server
from tests.support.standby import start_standby
from tests.support.waiting import eventually
from tests.support.worlds import create_world

SECONDS = int(os.environ.get("SECONDS_EACH", "20"))
LISTS = int(os.environ.get("LISTS", "20"))
WORLDS = 20


class Case(NamedTuple):
    """What others write meanwhile."""

    name: str
    commits_a_second: int = 0
    long_transactions: bool = False
    synchronous_commit: str = "on"


CASES = (
    Case("nothing"),
    Case("100 commits a second", 100),
    Case("the same, and transactions of seconds, such as imports", 100, long_transactions=True),
    Case("only such transactions", long_transactions=True),
    Case("100 commits a second, `synchronous_commit = off`", 100, synchronous_commit="off"),
)


async def pace(a_second: int, send: Callable[[int], Awaitable[object]]) -> None:
    """Start so many a second, whether or not those before have ended."""
    sent: list[asyncio.Future[object]] = []
    began_at = time.perf_counter()
    while (passed_s := time.perf_counter() - began_at) < SECONDS:
        while len(sent) < passed_s * a_second:
            sent.append(asyncio.ensure_future(send(len(sent))))
        await asyncio.sleep(0.002)
    await asyncio.gather(*sent)


async def write_long(database: Database) -> None:
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    began_at = time.perf_counter()
    while time.perf_counter() - began_at < SECONDS:
        async with conn.transaction():
            for _ in range(100):
                await conn.execute("insert into load select from generate_series(1, 400)")
                await asyncio.sleep(0.01)
    await conn.close()


async def measure(case: Case, primary: Database, standby: Database, directory: Path) -> str:
    """Return a row of the table."""
    pool = await asyncpg.create_pool(**primary.asyncpg_arguments(), min_size=4, max_size=4)
    await pool.execute(f"alter system set synchronous_commit = {case.synchronous_commit}")
    await pool.execute("select pg_reload_conf()")
    settings = Settings(
        database=primary,
        replica_database=standby,
        secret_key=stage.SECRET,
        data_dir=directory / "data",
        throttle=False,
    )
    app = create_app(settings)
    took_ms: list[float] = []
    async with TestClient(Server(app)) as client:
        replica = app[REPLICA]
        assert replica is not None
        account = await register(client)
        for _ in range(WORLDS):
            await create_world(client, account)
        await eventually(lambda: replica.in_use)
        replica.reads_there = replica.reads_on_primary = 0

        async def list_worlds(_: int) -> None:
            began_at = time.perf_counter()
            async with client.get("/api/v1/worlds", headers=account.headers) as response:
                assert response.status == 200
                await response.read()
            took_ms.append((time.perf_counter() - began_at) * 1000)

        async def commit(_: int) -> None:
            await pool.execute("insert into load select")

        writing = [pace(case.commits_a_second, commit)]
        if case.long_transactions:
            writing.append(write_long(primary))
        await asyncio.gather(pace(LISTS, list_worlds), *writing)
        share = replica.reads_there / (replica.reads_there + replica.reads_on_primary)
    await pool.close()
    p50, p95 = (statistics.quantiles(took_ms, n=100)[place] for place in (49, 94))
    return f"| {case.name} | {len(took_ms)} | {share:.0%} | {p50:.1f} | {p95:.1f} |"


def main() -> None:
    with stage.stage() as (directory, primary):
        migrations.apply_pending(primary.database)
        standby: embedded.Server = start_standby(primary, directory, directory / "standby")
        try:
            asyncio.run(prepare(primary.database))
            print("| others write | lists | read on the standby | p50, ms | p95, ms |")
            print("|---|--:|--:|--:|--:|")
            for case in CASES:
                print(asyncio.run(measure(case, primary.database, standby.database, directory)))
        finally:
            standby.stop()


async def prepare(database: Database) -> None:
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    await conn.execute("create table load ()")
    await conn.close()


if __name__ == "__main__":
    main()
