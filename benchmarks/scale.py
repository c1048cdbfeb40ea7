"""How it grows and lasts: ``make bench-scale``.

Lists of 10,000 to 1,000,000 accounts with every set of filters and every sort; others' requests
during a flood of sign-ins; starting; idling; and a soak. ONLY=lists,start,idle,flood,soak chooses;
SAMPLES of each list, IDLE_S and SOAK_S say how long.
"""

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import asyncpg

from benchmarks import measure, stage
from service.admin.lists import SORTS
from service.requests import BODY_MAX_BYTES
from service.settings import Database, Settings

PARTS = ("lists", "start", "idle", "flood", "soak")
ONLY = set(filter(None, os.environ.get("ONLY", "").split(","))) or set(PARTS)
SAMPLES = int(os.environ.get("SAMPLES", "100"))
WARM_UP = 4
IDLE_S = float(os.environ.get("IDLE_S", "60"))
SOAK_S = float(os.environ.get("SOAK_S", "600"))
SIZES = (10_000, 100_000, 1_000_000)
SESSIONS = 5_000
FLOOD_CLIENTS, FLOOD_S = 64, 20
GROWTH_BAR = 1.3
# Where a size differs from another by more than that, either way, all are measured up to so many
# times again, each as fast as in its best run: a machine's hiccups are no growth, nor do they
# hide one. (On a virtual machine two processes that do no more than answer each other over a socket
# may wait 4 ms for it, twice a second.)
AGAIN = 2
MIB = 2**20

# Three values of each filter, by how many accounts have it: so many that a page is soon full; 0.1
# to 0.5 % of them, which is a hundred times as many at the largest size as at the smallest; and as
# many at every size, 1 to 200. Of those that are asked for together, one account at least has all.
RANKS = ("common", "a share", "as many")
UNFILTERED = "no filter"
FILTERS = ("email", "q", "status", "role", "created_after", "created_before", "settings")


class Combination(NamedTuple):
    filters: tuple[str, ...]
    rank: str
    sort: str

    def query(self, users: int) -> str:
        values = self._values(users)
        return urlencode({**{name: values[name] for name in self.filters}, "sort": self.sort})

    def _values(self, users: int) -> dict[str, str]:
        """The value of each filter; see ``stage.USERS`` for who has it."""
        if self.rank == "common":
            return {
                "email": "user505@mail.example",
                "q": "example",
                "status": "active",
                "role": "user",
                "created_after": stage.created_at(10),
                "created_before": "2035-01-01T00:00:00Z",
                "settings": '{"language": "fr"}',
            }
        after, before = (f"created_{end}" in self.filters for end in ("after", "before"))
        width = users // 1000 if self.rank == "a share" else 100
        first = users // 5 * 2 if after == before else 1 if before else users - width + 1
        times = {
            "created_after": stage.created_at(first),
            "created_before": stage.created_at(first + width),
        }
        if self.rank == "a share":
            one = users if after and not before else first
            return times | {
                "email": f"user{one}@acme.example",
                "q": "@acme",
                "status": "suspended",
                "role": "support",
                "settings": '{"plan": 0}',
            }
        return times | {
            "email": f"user{first + 2}@mail.example",
            "q": f"user{first + 2}@",
            "status": "deleting",
            "role": "admin",
            "settings": '{"tester": true}',
        }

    def __str__(self) -> str:
        filters = "+".join(self.filters)
        return ", ".join(filter(None, (filters, self.rank, f"by {self.sort}")))


def main() -> None:
    measure.require_wrk()
    if unknown := ONLY - set(PARTS):
        sys.exit(f"bench: ONLY takes {', '.join(PARTS)}; not {min(unknown)}")
    results: dict[str, Any] = {}
    with stage.stage() as (directory, postgres):
        results["machine"] = stage.machine(postgres.database)
        sizes = SIZES if "lists" in ONLY else SIZES[1:2]
        databases = {n: asyncio.run(_seed(postgres.database, n)) for n in sizes}
        middle, identities = databases[SIZES[1]]
        files = stage.write_files(directory, identities)
        serve = partial(stage.serving, stage.SHINKEI, log=directory / "shinkei.log")
        if "lists" in ONLY:
            with contextlib.ExitStack() as stack:
                urls = {
                    n: (stack.enter_context(serve(database)).url, those[0].access_token)
                    for n, (database, those) in databases.items()
                }
                results["lists"] = asyncio.run(_lists(urls))
        if "start" in ONLY:
            results["start"] = _start(serve, middle, directory)
        if "idle" in ONLY:
            results["idle"] = _idle(serve, middle)
        # Each sign-in from an address of its own: one alone has a limit of 50 at a time.
        serve = partial(serve, middle, pinned=False, TRUSTED_PROXIES="127.0.0.1")
        if "flood" in ONLY:
            results["flood"] = _flood(serve, files)
        if "soak" in ONLY:
            results["soak"] = asyncio.run(_soak(serve, files, middle))
    if set(PARTS) == ONLY:
        path = Path(__file__).with_name("results-scale.json")
        path.write_text(json.dumps(results, indent=1) + "\n")


async def _seed(server: Database, users: int) -> tuple[Database, list[stage.Identity]]:
    database = await stage.create_database(server, f"bench_{users}")
    return database, await stage.seed(database, users, SESSIONS)


def _table(title: str, header: str, rows: Iterator[tuple[object, ...]]) -> None:
    """A Markdown table on stdout."""
    columns = header.split("|")
    print(f"\n### {title}\n\n|{header}|\n|{'|'.join(['---'] + ['--:'] * (len(columns) - 1))}|")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row)
            + " |"
        )
    sys.stdout.flush()


# Lists


async def _lists(services: dict[int, tuple[str, str]]) -> dict[str, Any]:
    """The p99 of each combination at each size, one request at a time, the sizes in turn."""
    clients = {n: await Client.open(url, token) for n, (url, token) in services.items()}
    combinations = [
        Combination(filters, rank, sort)
        for count in range(len(FILTERS) + 1)
        for filters in itertools.combinations(FILTERS, count)
        for rank in (RANKS if filters else [UNFILTERED])
        for sort in SORTS
    ]
    runs: dict[Combination, list[dict[int, list[float]]]] = {one: [] for one in combinations}
    again = combinations
    for _ in range(1 + AGAIN):
        for one in again:
            runs[one].append(await _sample(clients, one))
        again = [one for one in combinations if _spread(runs[one]) > GROWTH_BAR]
        differ = f"{len(again)} of {len(combinations)} combinations"
        print(f"{differ} differ by more than {GROWTH_BAR}×", flush=True)
    grown = [one for one in combinations if _growth(runs[one]) > GROWTH_BAR]
    _table(
        "Lists, p99 in ms by how many accounts have a filter's value",
        " | combinations | 10,000 | 100,000 | 1,000,000 | growth | worst | beyond the bar "
        "| of medians: worst | beyond the bar ",
        (
            _row(rank, [runs[one] for one in combinations if one.rank == rank])
            for rank in (UNFILTERED, *RANKS)
        ),
    )
    worst = sorted(combinations, key=lambda one: -_growth(runs[one]))
    _table(
        "Lists, the combinations that grew most",
        " combination | 10,000 | 100,000 | 1,000,000 | growth | of the median ",
        (
            (one, *_percentiles(runs[one]).values(), _growth(runs[one]), _growth(runs[one], 50))
            for one in worst[: max(10, len(grown))]
        ),
    )
    return {
        "sizes": list(services),
        "samples": SAMPLES,
        "p99": _summary(runs, 99),
        "p50": _summary(runs, 50),
    }


def _summary(
    runs: dict[Combination, list[dict[int, list[float]]]], percent: int
) -> dict[str, object]:
    worst, beyond = _worst([_growth(of, percent) for of in runs.values()])
    times_ms = {
        str(one): " ".join(f"{of_ms:.2f}" for of_ms in _percentiles(of, percent).values())
        for one, of in runs.items()
    }
    return {"worst_growth": round(worst, 2), "beyond_the_bar": beyond, "ms": times_ms}


def _row(name: str, all_runs: list[list[dict[int, list[float]]]]) -> tuple[object, ...]:
    medians = (statistics.median(_percentiles(runs)[n] for runs in all_runs) for n in SIZES)
    of_p99, of_p50 = ([_growth(runs, percent) for runs in all_runs] for percent in (99, 50))
    median = statistics.median(of_p99)
    return name, len(all_runs), *medians, median, *_worst(of_p99), *_worst(of_p50)


def _worst(growths: list[float]) -> tuple[float, int]:
    """The largest, and how many are beyond the bar."""
    return max(growths), sum(growth > GROWTH_BAR for growth in growths)


def _growth(runs: list[dict[int, list[float]]], percent: int = 99) -> float:
    """How many times the percentile of the smallest size that of the largest is."""
    percentiles = _percentiles(runs, percent)
    return percentiles[SIZES[-1]] / percentiles[SIZES[0]]


def _spread(runs: list[dict[int, list[float]]]) -> float:
    """How far the sizes are from each other, whichever is the slowest, by p99 or median."""
    by_percent = (_percentiles(runs, percent).values() for percent in (99, 50))
    return max(max(times) / min(times) for times in by_percent)


def _percentiles(runs: list[dict[int, list[float]]], percent: int = 99) -> dict[int, float]:
    """Of each size, in ms, in its best run; the p99 of fewer than a hundred is the slowest."""
    return {
        n: min(sorted(run[n])[-(-len(run[n]) * percent // 100) - 1] for run in runs)
        for n in runs[0]
    }


async def _sample(clients: dict[int, "Client"], one: Combination) -> dict[int, list[float]]:
    """The milliseconds of ``SAMPLES`` requests of each size, one of each in turn."""
    queries = {n: one.query(n) for n in clients}
    times: dict[int, list[float]] = {n: [] for n in clients}
    for number in range(WARM_UP + SAMPLES):
        for n, client in clients.items():
            taken_ms = await client.time_ms(queries[n])
            if number >= WARM_UP:
                times[n].append(taken_ms)
    return times


class Client(NamedTuple):
    """A keep-alive connection that costs next to nothing itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    token: str

    @classmethod
    async def open(cls, url: str, token: str) -> "Client":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port), token)

    async def time_ms(self, query: str) -> float:
        """How long a page of accounts took."""
        line = f"GET /api/v1/users?{query} HTTP/1.1"
        request = f"{line}\r\nHost: bench\r\nAuthorization: Bearer {self.token}\r\n\r\n".encode()
        started = time.perf_counter()
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
        body = await self.reader.readexactly(int(length))
        taken_ms = (time.perf_counter() - started) * 1000
        if not head.startswith("HTTP/1.1 200") or b'"items":[]' in body:
            raise RuntimeError(f"{query} was answered {body.decode()}")
        return taken_ms


# One worker: starting, idling, a flood


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
    """``users/me`` on 4 connections, alone and while 64 clients sign in; no core is kept apart."""
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
    # A connection takes 22 KiB, from 2 to 128 of them, and its body at most what is allowed.
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
            ("users/me not answered 2xx", loads[0].non_2xx),
            ("sign-ins not answered 2xx", loads[1].non_2xx),
        ]),
    )  # fmt: skip
    measure.require_answers([alone, *loads])
    if peak > bound:
        sys.exit("bench: the sign-ins took more memory than computed")
    return result


# The soak


async def _soak(serve: Any, files: dict[str, Path], database: Database) -> dict[str, Any]:
    """All kinds of requests at once for ``SOAK_S``: memory, descriptors and connections by time."""
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
    answered = sum(load.requests for load in done)
    failed = sum(load.non_2xx + load.socket_errors for load in done)
    _table(
        f"A soak: {answered} requests in {SOAK_S:g} s, of which {failed} failed",
        " at, s | RSS, MiB | descriptors | connections ",
        (tuple(sample.values()) for sample in samples[:: max(1, len(samples) // 10)]),
    )
    measure.require_answers(done)
    return {"loads": [load._asdict() for load in done], "samples": samples}


if __name__ == "__main__":
    main()
