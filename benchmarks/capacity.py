"""Estimates what a number of accounts needs: ``.venv/bin/python -m benchmarks.capacity``.

Measured: bytes per row, here, with ROWS accounts; CPU time per request, from ``results.json``.
Assumed: how people use the service (``Use``). From both follow, by calculation, requests, cores and
disk. Simulated, with a fixed seed: how evenly shards are loaded, and how long a request to all of
them takes. Prints tables in Markdown, for docs/scaling.md.
"""

import asyncio
import json
import math
import os
import random
import statistics
from pathlib import Path
from typing import NamedTuple

import asyncpg

from benchmarks import stage
from service.settings import Database

ROWS = int(os.environ.get("ROWS", "50000"))
SESSIONS = 5000
MIB, GIB = 2**20, 2**30
DAY_S = 86_400


class Use(NamedTuple):
    """What one account that is active on a day does, and how many are."""

    active_share: float = 0.10
    reads: float = 200
    changes: float = 1
    # Two hours of use, with access tokens of 15 minutes.
    refreshes: float = 8
    # A session ends after 30 days.
    sign_ins: float = 1 / 30
    # A busy hour, compared with the mean.
    peak: float = 4
    # Of what a core can do, what it should do.
    utilization: float = 0.5
    sessions_per_account: float = 1.5
    audit_events_per_account: float = 20


# Rows of each table per account. Used refresh tokens stay until their session ends.
def rows_per_account(use: Use) -> dict[str, float]:
    return {
        "users": 1,
        "sessions": use.sessions_per_account,
        "refresh_tokens": use.sessions_per_account + use.active_share * use.refreshes * 30 / 2,
        "audit_events": use.audit_events_per_account,
    }


class Cost(NamedTuple):
    """Seconds of CPU per request, of the service and of PostgreSQL."""

    service_s: float
    postgres_s: float


def measured_costs() -> dict[str, Cost]:
    workloads = json.loads(Path(__file__).with_name("results.json").read_text())["workloads"]
    return {
        name: Cost(of["shinkei"]["cpu_us"] / 1e6, of["shinkei"]["postgres_cpu_us"] / 1e6)
        for name, of in workloads.items()
        if "shinkei" in of
    }


class Need(NamedTuple):
    """What a number of accounts needs in a busy hour."""

    requests_per_s: float
    writes_per_s: float
    sign_ins_per_s: float
    service_cores: float
    hashing_cores: float
    postgres_cores: float
    disk_gib: float


def need(accounts: int, use: Use, costs: dict[str, Cost], row_bytes: dict[str, float]) -> Need:
    per_s = accounts * use.active_share * use.peak / DAY_S
    rates = {
        "me-5000": per_s * use.reads,
        "patch": per_s * use.changes,
        "refresh": per_s * use.refreshes,
    }
    sign_ins = per_s * use.sign_ins
    rows = rows_per_account(use)
    return Need(
        sum(rates.values()) + sign_ins,
        rates["patch"] + rates["refresh"] + sign_ins,
        sign_ins,
        sum(rate * costs[name].service_s for name, rate in rates.items()) / use.utilization,
        sign_ins * costs["login"].service_s / use.utilization,
        (
            sum(rate * costs[name].postgres_s for name, rate in rates.items())
            + sign_ins * costs["login"].postgres_s
        )
        / use.utilization,
        accounts * sum(row_bytes[name] * number for name, number in rows.items()) / GIB,
    )


async def measure_rows(server: Database) -> dict[str, float]:
    """Return bytes per row, with indexes, of the tables that grow with accounts."""
    database = await stage.create_database(server, "capacity")
    await stage.seed(database, ROWS, SESSIONS)
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        await conn.execute(
            """
            insert into audit_events (id, occurred_at, action, actor_id, actor_role, subject_id,
                                      ip, user_agent, request_id)
            select gen_random_uuid(), created_at, 'session.start', user_id, 'user', user_id,
                   ip, 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0',
                   md5(id::text)
            from sessions
            """
        )
        rows = await conn.fetch(
            """
            select name, pg_total_relation_size(name::regclass) + (
                select coalesce(sum(pg_total_relation_size(relid)), 0)
                from pg_partition_tree(name::regclass)
            ) as bytes
            from unnest($1::text[]) as name
            """,
            list(rows_per_account(Use())),
        )
        found = {}
        for row in rows:
            count = await conn.fetchval(f"select count(*) from {row['name']}")
            found[row["name"]] = float(row["bytes"]) / count
        return found
    finally:
        await conn.close()


def busiest_shard(accounts: int, shards: int, random_: random.Random) -> float:
    """Return the load of the busiest shard, compared with the mean.

    Accounts are placed at random, as by a hash. Their activity is log-normal, so that the busiest
    hundredth makes two fifths of the load.
    """
    loads = [0.0] * shards
    for _ in range(accounts):
        loads[random_.randrange(shards)] += random_.lognormvariate(0, 2)
    return max(loads) / statistics.mean(loads)


def slowest_of(shards: int, random_: random.Random) -> tuple[float, float]:
    """Return p50 and p99, in ms, of a page that waits for the slowest of all shards.

    Each shard responds as the measured list does: log-normal with p50 9.4 ms and p99 13.5 ms.
    """
    sigma = math.log(13.5 / 9.4) / 2.326
    slowest = sorted(
        max(random_.lognormvariate(math.log(9.4), sigma) for _ in range(shards))
        for _ in range(20_000)
    )
    return slowest[10_000], slowest[19_800]


def main() -> None:
    with stage.stage() as (_, postgres):
        row_bytes = asyncio.run(measure_rows(postgres.database))
    use, costs = Use(), measured_costs()
    print(f"Measured with {ROWS} accounts:\n\n| table | bytes per row, with indexes |\n|---|--:|")
    for name, size in row_bytes.items():
        print(f"| `{name}` | {size:,.0f} |")
    print(
        "\nCalculated:\n\n| accounts | requests a second | writes | sign-ins | cores of the service"
        " | of them hashing | cores of PostgreSQL | disk, GiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for accounts in (100_000, 1_000_000, 10_000_000, 100_000_000):
        of = need(accounts, use, costs, row_bytes)
        print(
            f"| {accounts:,} | {of.requests_per_s:,.0f} | {of.writes_per_s:,.0f}"
            f" | {of.sign_ins_per_s:,.1f} | {of.service_cores + of.hashing_cores:,.2f}"
            f" | {of.hashing_cores:,.2f} | {of.postgres_cores:,.2f} | {of.disk_gib:,.0f} |"
        )
    print(
        "\nSimulated:\n\n| shards | busiest shard / mean | a list from all: p50, ms | p99, ms |"
        "\n|--:|--:|--:|--:|"
    )
    random_ = random.Random(1)
    for shards in (1, 2, 4, 8, 16, 32):
        p50, p99 = slowest_of(shards, random_)
        busiest = busiest_shard(1_000_000, shards, random_)
        print(f"| {shards} | {busiest:.2f} | {p50:.1f} | {p99:.1f} |")


if __name__ == "__main__":
    main()
