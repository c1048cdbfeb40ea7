"""Measures scale and endurance: ``make bench-scale``.

It measures six lists of 1,000,000 accounts, startup, an idle worker, other requests during a flood
of sign-ins, and a soak. ONLY=lists,start,idle,flood,soak selects parts. SAMPLES is the number of
requests per list; IDLE_S and SOAK_S are durations.
"""

import asyncio
import contextlib
import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import asyncpg

from benchmarks import measure, stage
from service.http.codings import BODY_MAX_BYTES
from service.settings import Database, Settings

PARTS = ("lists", "start", "idle", "flood", "soak")
ONLY = set(filter(None, os.environ.get("ONLY", "").split(","))) or set(PARTS)
SAMPLES = int(os.environ.get("SAMPLES", "30"))
WARM_UP = 8
IDLE_S = float(os.environ.get("IDLE_S", "60"))
SOAK_S = float(os.environ.get("SOAK_S", "600"))
LISTED, USERS = 1_000_000, 100_000
SESSIONS = 5_000
FLOOD_CLIENTS, FLOOD_S = 64, 20
LIST_BAR_MS = 150
MIB = 2**20

# ``stage.USERS`` defines the accounts.
LISTS = {
    "`user9`, which 11 % have, by email: they come last": {"q": "user9", "sort": "email"},
    "settings that the oldest twentieth have": {"settings": '{"founder": true}'},
    "an email that is in no sample": {"q": "user612345@mail.example"},
    "a provider that all have": {"q": "@mail.example"},
    "a role with a status": {"role": "support", "status": "suspended"},
    "the newest hundredth, by email": {
        "created_after": stage.created_at(LISTED * 99 // 100 + 1),
        "sort": "email",
    },
}


def main() -> None:
    if ONLY & {"flood", "soak"}:
        measure.require_wrk()
    if unknown := ONLY - set(PARTS):
        sys.exit(f"bench: ONLY accepts {', '.join(PARTS)}; not {min(unknown)}")
    results: dict[str, Any] = {}
    with stage.stage() as (directory, postgres):
        results["machine"] = stage.machine(postgres.database)
        serve = partial(stage.serving, stage.SHINKEI, log=directory / "shinkei.log")
        if "lists" in ONLY:
            listed, (administrator, *_) = asyncio.run(_seed(postgres.database, LISTED))
            with serve(listed) as server:
                results["lists"] = _lists(server.url, administrator.access_token)
        if ONLY - {"lists"}:
            database, identities = asyncio.run(_seed(postgres.database, USERS))
            files = stage.write_files(directory, identities)
        if "start" in ONLY:
            results["start"] = _start(serve, database, directory)
        if "idle" in ONLY:
            results["idle"] = _idle(serve, database)
        if ONLY & {"flood", "soak"}:
            # Each sign-in comes from its own ip, as the rate limit of one ip is low.
            serve = partial(serve, database, pinned=False, TRUSTED_PROXIES="127.0.0.1")
        if "flood" in ONLY:
            results["flood"] = _flood(serve, files)
        if "soak" in ONLY:
            results["soak"] = asyncio.run(_soak(serve, files, database))
    if set(PARTS) == ONLY:
        path = Path(__file__).with_name("results-scale.json")
        path.write_text(json.dumps(results, indent=1) + "\n")
    if slow := [name for name, ms in results.get("lists", {}).items() if ms > LIST_BAR_MS]:
        sys.exit(f"bench: slower than {LIST_BAR_MS} ms: {'; '.join(slow)}")


async def _seed(server: Database, users: int) -> tuple[Database, list[stage.Identity]]:
    database = await stage.create_database(server, f"bench_{users}")
    return database, await stage.seed(database, users, SESSIONS)


def _table(title: str, header: str, rows: Iterator[tuple[object, ...]]) -> None:
    """Print a Markdown table."""
    columns = header.split("|")
    print(f"\n### {title}\n\n|{header}|\n|{'|'.join(['---'] + ['--:'] * (len(columns) - 1))}|")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row)
            + " |"
        )
    sys.stdout.flush()


def _lists(url: str, token: str) -> dict[str, float]:
    """Measure each list's p50 in ms over HTTP, one request at a time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)

    def time_ms(query: str) -> float:
        started = time.perf_counter()
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET", f"/api/v1/users?{query}", headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200 or b'"items":[]' in body:
            raise RuntimeError(f"{query}: unexpected response: {body.decode()}")
        return (time.perf_counter() - started) * 1000

    p50: dict[str, float] = {}
    for name, filters in LISTS.items():
        times = [time_ms(urlencode(filters)) for _ in range(WARM_UP + SAMPLES)]
        p50[name] = round(statistics.median(times[WARM_UP:]), 1)
    _table(f"Lists of {LISTED:,} accounts", " list | p50, ms ", iter(p50.items()))
    return p50


# Startup, an idle worker, a flood


def _start(serve: Any, database: Database, directory: Path) -> dict[str, Any]:
    def ready_s(**environ: str) -> float:
        started = time.perf_counter()
        with serve(database, ready="/health/ready", **environ):
            return time.perf_counter() - started

    existing = [ready_s() for _ in range(5)]
    first = ready_s(DATABASE_URL="", DATA_DIR=str(directory / "first"))
    _table(
        "Start to ready",
        " database | seconds ",
        iter(
            [
                ("existing, median of 5", statistics.median(existing)),
                ("embedded, first ever", first),
            ]
        ),
    )
    return {"existing_s": existing, "embedded_first_s": first}


def _idle(serve: Any, database: Database) -> dict[str, float]:
    with serve(database) as server:
        time.sleep(5)
        before = measure.cpu_s(server.pid)
        time.sleep(IDLE_S)
        percent = (measure.cpu_s(server.pid) - before) / IDLE_S * 100
        rss_mib = measure.rss_bytes(server.pid) / MIB
    _table(
        "An idle worker",
        " | ",
        iter([(f"CPU over {IDLE_S:g} s, % of a core", percent), ("RSS, MiB", rss_mib)]),
    )
    return {"cpu_percent": percent, "rss_mib": rss_mib}


def _flood(serve: Any, files: dict[str, Path]) -> dict[str, Any]:
    """Measure ``users/me`` alone and while other clients sign in. No core is reserved."""
    with serve() as server:
        me = partial(
            measure.start_wrk, f"{server.url}/api/v1/users/me", "get",
            [files["access_token"], SESSIONS], connections=4, seconds=FLOOD_S,
        )  # fmt: skip
        alone = measure.finish_wrk(me(), FLOOD_S + 30)
        idle, peak, before = measure.rss_bytes(server.pid), 0, measure.cpu_s(server.pid)
        others = me()
        sign_ins = measure.start_wrk(
            f"{server.url}/api/v1/auth/login", "login", [files["email"], stage.PASSWORD, "json"],
            connections=FLOOD_CLIENTS, seconds=FLOOD_S,
        )  # fmt: skip
        while others.poll() is None:
            peak = max(peak, measure.rss_bytes(server.pid))
            time.sleep(0.05)
        loads = measure.finish_wrk(others, 30), measure.finish_wrk(sign_ins, 30)
        cores = (measure.cpu_s(server.pid) - before) / FLOOD_S
    # A connection's memory is small; a body takes at most what is allowed.
    workers = os.cpu_count() or 1
    hashes = workers * Settings.password_hash_memory_kib * 1024
    bound = idle + hashes + FLOOD_CLIENTS * BODY_MAX_BYTES
    result = {
        "users_me_alone": alone._asdict(),
        "users_me": loads[0]._asdict(),
        "sign_ins": loads[1]._asdict(),
        "cores_busy": cores,
        "rss_idle_mib": idle / MIB,
        "rss_peak_mib": peak / MIB,
        "rss_bound_mib": bound / MIB,
    }
    _table(
        f"{FLOOD_CLIENTS} clients signing in, on {workers} cores",
        " | ",
        iter([
            ("users/me p99 of others, ms", loads[0].p99_ms),
            ("users/me p99 without the flood, ms", alone.p99_ms),
            ("sign-ins/s", loads[1].requests / loads[1].duration_s),
            ("cores busy", cores),
            ("RSS before, MiB", idle / MIB),
            ("RSS peak, MiB", peak / MIB),
            (f"RSS before + {workers} hashes + {FLOOD_CLIENTS} bodies, MiB", bound / MIB),
            ("users/me, not 2xx", loads[0].non_2xx),
            ("sign-ins, not 2xx", loads[1].non_2xx),
        ]),
    )  # fmt: skip
    measure.require_answers([alone, *loads])
    if peak > bound:
        sys.exit("bench: the sign-ins took more memory than the bound")
    return result


# The soak


async def _soak(serve: Any, files: dict[str, Path], database: Database) -> dict[str, Any]:
    """Mix requests for ``SOAK_S`` and sample memory, file descriptors and connections."""
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    samples: list[dict[str, float]] = []
    with serve() as server, contextlib.ExitStack() as stack:
        started = time.monotonic()
        loads = []
        for path, script, arguments, connections in (
            ("users/me", "get", [files["access_token"], SESSIONS], 16),
            ("users/me", "patch", [files["access_token"]], 4),
            ("users?role=support", "get", [files["access_token"], 1], 2),
            ("auth/refresh", "refresh", [files["refresh_token"], 1, 64], 4),
            ("auth/login", "login", [files["email"], stage.PASSWORD, "json"], 2),
        ):
            wrk = measure.start_wrk(
                f"{server.url}/api/v1/{path}", script, arguments,
                connections=connections, seconds=SOAK_S,
            )  # fmt: skip
            stack.callback(wrk.kill)
            loads.append(wrk)
        while loads[0].poll() is None:
            pool = await conn.fetchval(
                "select count(*) from pg_stat_activity where application_name = 'shinkei'"
            )
            samples.append(
                {
                    "at_s": round(time.monotonic() - started),
                    "rss_mib": round(measure.rss_bytes(server.pid) / MIB, 1),
                    "fds": measure.fds(server.pid),
                    "connections": pool,
                }
            )
            await asyncio.sleep(5)
        done = [measure.finish_wrk(wrk, 60) for wrk in loads]
    await conn.close()
    total = sum(load.requests for load in done)
    failed = sum(load.non_2xx + load.socket_errors for load in done)
    _table(
        f"A soak: {total} requests in {SOAK_S:g} s, {failed} failed",
        " at, s | RSS, MiB | descriptors | connections ",
        (tuple(sample.values()) for sample in samples[:: max(1, len(samples) // 10)]),
    )
    measure.require_answers(done)
    return {"loads": [load._asdict() for load in done], "samples": samples}


if __name__ == "__main__":
    main()
