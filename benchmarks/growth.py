"""Measures an account with a long history: ``.venv/bin/python -m benchmarks.growth``.

One account has 130,000 sessions and 400,000 audit events. This lists its sessions, exports it,
suspends it and has it erased, with 50 others, while /health/live is probed without pause. EVENTS
and SESSIONS are the numbers of rows.
"""

import asyncio
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg

from benchmarks import measure, stage
from service.settings import Database

SESSIONS = int(os.environ.get("SESSIONS", "130000"))
EVENTS = int(os.environ.get("EVENTS", "400000"))
USERS, OTHERS = 1_000, 50
SUSPEND_BAR_MS, PAGE_BAR_MS, LIVE_BAR_MS = 100, 20, 100
IDLE_S = 20
MIB = 2**20
PROBE_EVERY_S = 0.02
HISTORY = """
with added as (
    insert into sessions (id, user_id, expires_at, idle_expires_at, user_agent, ip)
    select gen_random_uuid(), $1, now() + interval '30 days', now() + interval '7 days',
           'a browser', '127.0.0.1'
    from generate_series(1, $2)
    returning id
)
insert into refresh_tokens (token_hash, session_id, used_at)
select sha256((id::text || n)::bytea), id, now() from added, generate_series(1, 2) n
"""
EVENTS_OF_IT = """
insert into audit_events (id, occurred_at, action, actor_id, actor_role, subject_id, ip, user_agent)
select gen_random_uuid(), now() - n * interval '1 second', 'session.start', $1, 'user', $1,
       '192.0.2.1', 'a browser'
from generate_series(1, $2) n
"""


class Client(NamedTuple):
    """Sends requests with an access token, one at a time."""

    host: str
    port: int
    token: str

    def ask(self, method: str, path: str, body: object = None) -> tuple[float, int, bytes]:
        """Return the time taken in ms, the status and the body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        started = time.perf_counter()
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        received = response.read()
        taken = (time.perf_counter() - started) * 1000
        connection.close()
        return taken, response.status, received


class Probe(threading.Thread):
    """Asks /health/live without pause, and keeps the slowest response and the highest memory."""

    def __init__(self, client: Client, pid: int) -> None:
        super().__init__(daemon=True)
        self.client, self.pid = client, pid
        self.slowest_ms, self.rss = 0.0, 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(PROBE_EVERY_S):
            taken, _, _ = self.client.ask("GET", "/health/live")
            self.slowest_ms = max(self.slowest_ms, taken)
            self.rss = max(self.rss, measure.rss_bytes(self.pid))

    def take(self) -> tuple[float, float]:
        """Return the slowest response in ms and the highest memory in MiB since the last call."""
        taken = self.slowest_ms, self.rss / MIB
        self.slowest_ms, self.rss = 0.0, 0
        return taken


def main() -> None:
    with stage.stage() as (directory, postgres):
        database, identities = asyncio.run(_seed(postgres.database))
        administrator, owner = identities[:2]
        log = directory / "shinkei.log"
        # As in production, but with one worker: what blocks it delays every response.
        with stage.serving(
            stage.SHINKEI, database, log, pinned=False, ready="/health/ready"
        ) as server:
            parts = urlsplit(server.url)
            client = partial(Client, parts.hostname or "", parts.port or 0)
            probe = Probe(client(""), server.pid)
            probe.start()
            try:
                results = _measure(
                    client(administrator.access_token), client(owner.access_token), database, probe
                )
            finally:
                probe.stopping.set()
                probe.join()
    for name, value in results.items():
        print(f"{name:48} {value:10.1f}")
    bars = {"first page, median, ms": PAGE_BAR_MS, "suspend, ms": SUSPEND_BAR_MS}
    bars |= {name: LIVE_BAR_MS for name in results if name.startswith("/health/live")}
    if slow := [name for name, bar in bars.items() if results[name] > bar]:
        sys.exit(f"bench: over the bar: {', '.join(slow)}")


async def _seed(server: Database) -> tuple[Database, list[stage.Identity]]:
    database = await stage.create_database(server, "bench_growth")
    identities = await stage.seed(database, USERS, 2)
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    user_id = await conn.fetchval("select id from users where email = $1", identities[1].email)
    await conn.execute(HISTORY, user_id, SESSIONS)
    await conn.execute(EVENTS_OF_IT, user_id, EVENTS)
    await conn.execute("vacuum (freeze, analyze)")
    await conn.close()
    return database, identities


def _measure(
    administrator: Client, owner: Client, database: Database, probe: Probe
) -> dict[str, float]:
    def of(sql: str, *arguments: object) -> Any:
        return asyncio.run(_fetch(database, sql, *arguments))

    def passed(what: str) -> float:
        """Note the slowest probe since the last call, and return the highest memory in MiB."""
        results[f"/health/live, slowest {what}, ms"], rss_mib = probe.take()
        return rss_mib

    results: dict[str, float] = {}
    probe.take()
    time.sleep(IDLE_S)
    passed("while idle")
    pages = [_expect(200, owner.ask("GET", "/api/v1/users/me/sessions"))[0] for _ in range(20)]
    results["first page, median, ms"] = statistics.median(pages)
    results["memory before, MiB"] = passed("during pages")
    taken, document = _expect(200, owner.ask("GET", "/api/v1/users/me/export"))
    results["export, s"] = taken / 1000
    results["export, MiB"] = len(document) / MIB
    results["export, highest memory, MiB"] = passed("during the export")
    user_id = json.loads(_expect(200, owner.ask("GET", "/api/v1/users/me"))[1])["id"]
    url = f"/api/v1/users/{user_id}/suspend"
    results["suspend, ms"] = _expect(200, administrator.ask("POST", url, {"reason": "x"}))[0]
    _expect(401, owner.ask("GET", "/api/v1/users/me"))
    ended = "select not exists (select from sessions where user_id = $1)"
    results["its sessions deleted, s later"] = _until(lambda: of(ended, user_id))
    passed("during their deletion")
    of(
        """
        update users
        set status = 'deleting', suspension_reason = null, purge_at = now() - interval '1 hour'
        where id = $1
        """,
        user_id,
    )
    of(
        f"""
        update users set status = 'deleting', purge_at = now() - interval '1 minute'
        where id in (select id from users where status = 'active' and role = 'user' limit {OTHERS})
        """
    )
    erased = "select not exists (select from users where purge_at is not null)"
    results["all due accounts erased, s later"] = _until(lambda: of(erased))
    personal = """
        select count(*) from audit_events
        where actor_id = $1 and num_nonnulls(ip, user_agent) > 0
    """
    results["its events with personal data left"] = of(personal, user_id)
    passed("during the erasure")
    probe.stopping.set()
    exported = json.loads(document)
    counts = len(exported["sessions"]) - 1, len(exported["audit_events"])
    if counts != (SESSIONS, EVENTS):
        sys.exit(f"bench: the export has {counts} rows")
    return results


def _expect(status: int, response: tuple[float, int, bytes]) -> tuple[float, bytes]:
    if response[1] != status:
        sys.exit(f"bench: unexpected response: {response[1]} {response[2][:500]!r}")
    return response[0], response[2]


def _until(condition: Callable[[], bool]) -> float:
    """Return after how many seconds the condition was met."""
    started = time.perf_counter()
    while not condition():
        time.sleep(0.5)
    return time.perf_counter() - started


async def _fetch(database: Database, sql: str, *arguments: object) -> Any:
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        return await conn.fetchval(sql, *arguments)
    finally:
        await conn.close()


if __name__ == "__main__":
    main()
