"""Measures failover: ``make failover``, with CASES (a mode and a ttl each) and RUNS of each case.

A cluster of three nodes runs on this machine (``deploy/ha/cluster.py``). Clients create 100 worlds
a second through HAProxy. Then the primary's node is killed: PostgreSQL, Patroni, PgBouncer and
etcd at once. A ledger of the acknowledged writes is compared with the rows afterwards. Writes
without an acknowledgement are repeated with their Idempotency-Key, which must settle them.

In the mode ``lagging``, replication is asynchronous, and the primary sends nothing for LAG_S before
its node is killed. This shows that the ledger finds lost writes, and how many are lost.
"""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import measure, stage
from deploy.ha.cluster import Cluster, HaError, Node, found, postgres_bin, running

CASES = os.environ.get("CASES", "synchronous-20,asynchronous-20,synchronous-10,lagging-10").split(
    ","
)
RUNS = int(os.environ.get("RUNS", "3"))
WRITES_PER_S = 100
# No write may have failed for this long before the node is killed, and once service is full again.
STEADY_S = 5
CALM_S = 5
GIVE_UP_S = 180
SETTLED_AT_ONCE = 8
LAG_S = 1
# Writes of one account that count its worlds take turns, so one account would measure these turns.
ACCOUNTS = 16
LIMITS = {"THROTTLE": "false", "WORLDS_PER_ACCOUNT": "10000", "LOG_LEVEL": "warning"}
RESULTS = Path(__file__).with_name("results-failover.json")


@dataclass
class Write:
    """One write of the ledger. Its name is the world's name and its Idempotency-Key."""

    name: str
    token: str
    began: float
    ended: float = 0
    status: int = 0
    code: str = ""
    """Why it failed: the problem's code, or the error's type."""


@dataclass
class Ledger:
    """All writes of a run."""

    http: aiohttp.ClientSession
    url: str
    tokens: list[str]
    writes: list[Write] = field(default_factory=list)

    def acknowledged(self) -> list[Write]:
        return [write for write in self.writes if write.status == 201]

    async def send(self, write: Write) -> None:
        headers = {"Authorization": f"Bearer {write.token}", "Idempotency-Key": write.name}
        try:
            async with self.http.post(
                f"{self.url}/api/v1/worlds", json={"name": write.name}, headers=headers
            ) as response:
                write.status = response.status
                write.code = (await response.json(content_type=None)).get("code", "")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            write.status, write.code = 0, type(error).__name__
        write.ended = time.monotonic()

    async def write_steadily(self, stopped: asyncio.Event) -> None:
        """Start a write every 10 ms, however long the others take."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not stopped.is_set():
                number = len(self.writes)
                token = self.tokens[number % len(self.tokens)]
                write = Write(uuid.uuid4().hex, token, time.monotonic())
                self.writes.append(write)
                tasks.create_task(self.send(write))
                due = began + (number + 1) / WRITES_PER_S
                await asyncio.sleep(max(0, due - time.monotonic()))

    async def settle(self) -> None:
        """Repeat each write without an acknowledgement until it has one, a few at a time."""
        deadline = time.monotonic() + GIVE_UP_S
        few = asyncio.Semaphore(SETTLED_AT_ONCE)

        async def settle(write: Write) -> None:
            async with few:
                while write.status != 201:
                    if time.monotonic() > deadline:
                        raise HaError(f"a write cannot be settled: {write.status} {write.code}")
                    await self.send(write)

        await asyncio.gather(*(settle(write) for write in self.writes))


async def open_ledger(http: aiohttp.ClientSession, url: str) -> Ledger:
    """Register the accounts that will write."""
    ledger = Ledger(http, url, [])
    for _ in range(ACCOUNTS):
        body = {
            "email": f"{uuid.uuid4().hex}@example.com",
            "password": uuid.uuid4().hex,
            "name": "Ledger",
        }
        async with http.post(f"{url}/api/v1/auth/register", json=body) as response:
            response.raise_for_status()
            ledger.tokens.append((await response.json())["access_token"])
    return ledger


async def promoted(cluster: Cluster, lost: Node) -> tuple[float, Node]:
    """Return when Patroni has made another node the primary, and which."""
    others = [node for node in cluster.nodes if node is not lost]
    while True:
        for node in others:
            if await asyncio.to_thread(node.patroni, "/primary"):
                return time.monotonic(), node
        await asyncio.sleep(0.05)


def stop_sending(primary: Node) -> None:
    """Stop the processes that send WAL to the standbys."""
    assert primary.process is not None
    for pid in measure.tree(primary.process.pid):
        if b"walsender" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)


def written_lsn(cluster: Cluster, primary: Node) -> int:
    """Return how far the primary's WAL is flushed, in bytes."""
    with cluster.connect(primary) as conn:
        row = conn.execute("select pg_current_wal_flush_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def forked_lsn(cluster: Cluster, primary: Node) -> int:
    """Return where the new primary's timeline begins, in bytes of WAL."""
    *_, (_, lsn, *_) = primary.patroni("/history")
    return int(lsn)


def rows_of(cluster: Cluster, primary: Node) -> dict[str, int]:
    """Return how often each write is in the database."""
    with cluster.connect(primary, "shinkei") as conn:
        rows = conn.execute("select name, count(*) from worlds group by name").fetchall()
    return {name: int(count) for name, count in rows}


@asynccontextmanager
async def writing(ledger: Ledger) -> AsyncIterator[None]:
    """Write during the block, and wait for the last writes after it."""
    stopped = asyncio.Event()
    load = asyncio.create_task(ledger.write_steadily(stopped))
    try:
        yield
    finally:
        stopped.set()
        await load


async def calm(ledger: Ledger, since: float, seconds: float) -> None:
    """Wait until all writes of this many seconds are acknowledged, counted from ``since`` on."""
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        begin = time.monotonic() - seconds
        recent = [write for write in ledger.writes if write.ended > begin or not write.ended]
        late = [write for write in recent if not write.ended and write.began < begin]
        failed = [write for write in recent if write.ended and write.status != 201]
        if begin > since and not late and not failed:
            return
        if time.monotonic() > deadline:
            raise HaError(f"after {GIVE_UP_S} s {len(failed)} writes still fail in {seconds} s")
        await asyncio.sleep(0.1)


async def run_once(cluster: Cluster, mode: str) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        ledger = await open_ledger(http, cluster.url)
        async with writing(ledger):
            await calm(ledger, time.monotonic(), STEADY_S)
            lost = await asyncio.to_thread(cluster.await_primary)
            led_etcd = await asyncio.to_thread(lost.leads_etcd)
            if mode == "lagging":
                stop_sending(lost)
                await asyncio.sleep(LAG_S)
            flushed = await asyncio.to_thread(written_lsn, cluster, lost)
            killed = time.monotonic()
            await asyncio.to_thread(cluster.lose, lost)
            at, primary = await asyncio.wait_for(promoted(cluster, lost), GIVE_UP_S)
            await calm(ledger, at, CALM_S)

        acknowledged = ledger.acknowledged()
        failed = [w for w in ledger.writes if w.status != 201 and w.ended > killed]
        failing = min(write.began for write in failed)
        first = min(write.ended for write in acknowledged if write.began > failing)
        before = sorted(w.ended - w.began for w in acknowledged if w.ended < killed)
        result = {
            "etcd_leader_lost": led_etcd,
            "promoted_s": round(at - killed, 2),
            "first_write_s": round(first - killed, 2),
            "full_service_s": round(max(first, *(w.ended for w in failed)) - killed, 2),
            "writes": len(ledger.writes),
            "acknowledged": len(acknowledged),
            "failed": Counter(f"{write.status} {write.code}" for write in failed),
            "slowest_failure_s": round(max(write.ended - write.began for write in failed), 2),
            "p50_before_ms": round(1000 * before[len(before) // 2], 1),
            "p99_before_ms": round(1000 * before[len(before) * 99 // 100], 1),
        }
        await ledger.settle()

    rows = await asyncio.to_thread(rows_of, cluster, primary)
    forked = await asyncio.to_thread(forked_lsn, cluster, primary)
    began = time.monotonic()
    cluster.start(lost)
    await asyncio.to_thread(cluster.await_standbys)
    return {
        **result,
        "lost": sum(write.name not in rows for write in acknowledged),
        "twice": sum(count > 1 for count in rows.values()),
        "unsettled": sum(write.name not in rows for write in failed),
        "wal_lost_bytes": max(0, flushed - forked),
        "node_back_s": round(time.monotonic() - began, 1),
    }


def programs() -> dict[str, str]:
    """Return the versions of the programs that ran."""
    commands = ("patroni --version", "etcd --version", "haproxy -v", "pgbouncer --version")
    named = [*commands, f"{postgres_bin()}/postgres --version"]
    return {
        Path(name).name: stage.output(found(name), option).splitlines()[0]
        for name, option in map(str.split, named)
    }


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = []
    try:
        with running(**LIMITS) as cluster:
            for case in CASES:
                mode, ttl = case.split("-")
                cluster.configure(synchronous_mode=mode == "synchronous", ttl=int(ttl))
                for _ in range(RUNS):
                    result = asyncio.run(run_once(cluster, mode))
                    results.append({"mode": mode, "ttl_s": int(ttl), **result})
                    print(json.dumps(results[-1]), flush=True)
    except HaError as error:
        sys.exit(f"failover: {error}")
    except KeyboardInterrupt:
        sys.exit("failover: stopped")
    if "CASES" not in os.environ and "RUNS" not in os.environ:
        document = {**stage.host(), "programs": programs(), "runs": results}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
