"""Compares the CPU cost of requests with that of other stacks: ``make bench``.

Each peer does the same work: verify the token, read the user from PostgreSQL, return the same
fields. Each is one process, pinned to one core; PostgreSQL and wrk share the other cores. Rounds
are interleaved, so that other load on the machine affects all peers alike, and ratios compare two
runs of the same round. ``benchmarks/README.md`` lists the remaining differences.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from benchmarks import plot, stage
from benchmarks.measure import Cost, measure, require_answers, require_wrk, run_wrk
from service import __version__
from service.settings import Database

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-bench/bin/python"
ROUNDS = int(os.environ.get("ROUNDS", "12"))
SECONDS = int(os.environ.get("SECONDS", "1"))
ONLY = set(filter(None, os.environ.get("ONLY", "").split(",")))
# The first warm-up is long enough to use every token.
FIRST_WARM_UP_S, WARM_UP_S = 5, 1
USERS, SESSIONS = 100_000, 5_000
# Chains of refresh tokens per run of wrk; each session can start one chain.
CHAINS = 48

ME = {"id", "email", "email_verified", "name", "role", "settings", "created_at", "updated_at"}
ACCOUNT = ME | {"status", "suspended_until", "suspension_reason", "purge_at", "version"}

# The columns that fastapi-users requires. It looks users up by lower(email).
FASTAPI_USERS = """
create table fastapi_users as
select id, email, password_hash as hashed_password, status = 'active' as is_active,
       role = 'admin' as is_superuser, email_verified_at is not null as is_verified,
       name, role, settings, created_at, updated_at
from users;
alter table fastapi_users add primary key (id);
create unique index on fastapi_users (lower(email));
vacuum (freeze, analyze) fastapi_users;
"""


class Peer(NamedTuple):
    """A server, the workloads that it supports, and the field of Identity with its tokens."""

    title: str
    command: list[str]
    token: str
    workloads: set[str]
    api: str = ""
    packages: tuple[str, ...] = ()


class Workload(NamedTuple):
    """A path, and the script that wrk runs on it."""

    title: str
    path: str
    script: str
    connections: int = 32
    seconds: int = SECONDS


WORKLOADS = {
    "me": Workload("GET /users/me, one token", "/users/me", "get"),
    "me-5000": Workload("GET /users/me, 5,000 tokens of 5,000 users", "/users/me", "get"),
    "patch": Workload("PATCH /users/me, of 5,000 users", "/users/me", "patch"),
    "refresh": Workload("POST /auth/refresh", "/auth/refresh", "refresh"),
    "list": Workload(
        "GET /users, 50 of 100,000 by a filter", "/users?role=support&limit=50", "get"
    ),
    # A hash keeps a core busy. More connections would only queue, and shorter runs would see too
    # few sign-ins.
    "login": Workload(
        "POST /auth/login, argon2id 19 MiB, t=2, p=1", "/auth/login", "login", 4, 4 * SECONDS
    ),
    "live": Workload("GET /health/live", "/health/live", "get"),
}


def _python(script: str) -> list[str]:
    return [str(PYTHON), str(HERE / "peers" / f"{script}.py")]


def _uvicorn(module: str) -> list[str]:
    return [
        *(str(PYTHON), "-m", "uvicorn", f"{module}:app", "--app-dir", str(HERE / "peers")),
        *("--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning"),
    ]


OURS = "shinkei"
_READS = {"me", "me-5000", "live"}
PEERS = {
    OURS: Peer("Shinkei", stage.SHINKEI, "access_token", set(WORKLOADS), "/api/v1"),
    "constant": Peer(
        "aiohttp, a constant", _python("aiohttp_constant"), "peer_token", _READS,
        packages=("aiohttp", "uvloop"),
    ),
    "fastify": Peer(
        "Fastify + postgres.js", ["node", str(HERE / "peers/fastify/server.js")], "peer_token",
        {*_READS, "patch", "list"},
    ),
    "aiohttp": Peer(
        "aiohttp + asyncpg", _python("aiohttp_asyncpg"), "peer_token", {*_READS, "patch", "list"},
        packages=("aiohttp", "asyncpg", "marshmallow", "PyJWT", "uvloop"),
    ),
    "litestar": Peer(
        "Litestar + asyncpg", _uvicorn("litestar_asyncpg"), "peer_token", {*_READS, "patch"},
        packages=("litestar", "asyncpg", "msgspec", "PyJWT", "uvicorn", "uvloop", "httptools"),
    ),
    "fastapi": Peer(
        "FastAPI + asyncpg", _uvicorn("fastapi_asyncpg"), "peer_token", {*_READS, "patch", "list"},
        packages=("fastapi", "asyncpg", "pydantic", "PyJWT", "uvicorn", "uvloop", "httptools"),
    ),
    "fastapi-users": Peer(
        "fastapi-users + SQLAlchemy", _uvicorn("fastapi_users_sqlalchemy"), "fastapi_users_token",
        {*_READS, "patch", "login"},
        packages=("fastapi-users", "fastapi", "SQLAlchemy", "asyncpg", "pydantic", "uvicorn"),
    ),
}  # fmt: skip


class Stand(NamedTuple):
    """Everything that runs: servers by peer, and files for wrk by the field that they hold."""

    servers: dict[str, stage.Server]
    postgres: Database
    postgres_pid: int
    files: dict[str, Path]
    identities: list[stage.Identity]


def main() -> None:
    require_wrk()
    workloads = [name for name in WORKLOADS if not ONLY & set(WORKLOADS) or name in ONLY]
    peers = [name for name in PEERS if not ONLY & set(PEERS) or name in ONLY | {OURS}]
    if unknown := ONLY - set(WORKLOADS) - set(PEERS):
        sys.exit(f"bench: ONLY accepts {', '.join([*WORKLOADS, *PEERS])}; not {min(unknown)}")
    if "fastify" in peers and not (HERE / "peers/fastify/node_modules").exists():
        peers.remove("fastify")
        print("bench: skipping Fastify, which needs node and npm")
    with contextlib.ExitStack() as stack:
        stand = asyncio.run(_set_up(stack, peers))
        machine = _machine(stand)
        costs = {name: _measure_all(stand, peers, name) for name in workloads}
    every = [cost for peer in costs.values() for rounds in peer.values() for cost in rounds]
    require_answers(cost.load for cost in every)
    results = {"machine": machine, "workloads": {name: _summary(costs[name]) for name in costs}}
    if not ONLY and peers == list(PEERS) and ROUNDS >= 12:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        plotted = {name: WORKLOADS[name].title for name in ("me-5000", "patch", "list")}
        plot.write(results, HERE.parent / "docs/benchmark.svg", plotted, OURS)


async def _set_up(stack: contextlib.ExitStack, peers: list[str]) -> Stand:
    directory, postgres = stack.enter_context(stage.stage())
    database = await stage.create_database(postgres.database, "bench")
    identities = await stage.seed(database, USERS, SESSIONS)
    if "fastapi-users" in peers:
        conn = await asyncpg.connect(**database.asyncpg_arguments())
        for statement in FASTAPI_USERS.split(";")[:-1]:
            await conn.execute(statement)
        await conn.close()
    files = stage.write_files(directory, identities)
    serving = partial(stage.serving, database=database)
    servers = {
        peer: stack.enter_context(serving(PEERS[peer].command, log=directory / f"{peer}.log"))
        for peer in peers
    }
    return Stand(servers, postgres.database, postgres.process.pid, files, identities)


def _measure_all(stand: Stand, peers: Iterable[str], name: str) -> dict[str, list[Cost]]:
    """Run every round of a workload for each peer that supports it, and print the results."""
    workload = WORKLOADS[name]
    having = [peer for peer in peers if name in PEERS[peer].workloads]
    costs: dict[str, list[Cost]] = {peer: [] for peer in having}
    for peer in having:
        _check(stand, peer, name)
        _warm_up(stand, peer, name, -1, FIRST_WARM_UP_S)
    for number in range(ROUNDS):
        for peer in having:
            # Caches have gone cold while the peer idled.
            _warm_up(stand, peer, name, number, WARM_UP_S)
            url, arguments = _target(stand, peer, name, 2 * number + 1)
            cost = measure(
                stand.servers[peer].pid,
                stand.postgres_pid,
                url,
                workload.script,
                arguments,
                connections=workload.connections,
                seconds=workload.seconds,
            )
            costs[peer].append(cost)
    _print_table(workload.title, costs)
    return costs


def _warm_up(stand: Stand, peer: str, name: str, number: int, seconds: float) -> None:
    workload = WORKLOADS[name]
    url, arguments = _target(stand, peer, name, 2 * number + 2)
    run_wrk(url, workload.script, arguments, connections=workload.connections, seconds=seconds)


def _target(stand: Stand, peer: str, name: str, number: int) -> tuple[str, list[object]]:
    """Return the URL and the script's arguments for a peer's run of a workload."""
    tokens = stand.files[PEERS[peer].token]
    arguments: dict[str, list[object]] = {
        "me": [tokens, 1],
        "me-5000": [tokens, SESSIONS],
        "patch": [tokens],
        "refresh": [stand.files["refresh_token"], number * CHAINS + 1, CHAINS],
        "list": [tokens, 1],
        "login": [stand.files["email"], stage.PASSWORD, "json" if peer == OURS else "form"],
        "live": [],
    }
    prefix = "" if name == "live" else PEERS[peer].api
    return f"{stand.servers[peer].url}{prefix}{WORKLOADS[name].path}", arguments[name]


def _check(stand: Stand, peer: str, name: str) -> None:
    """Check one response, so that no peer skips the work. Raises RuntimeError."""
    url, _ = _target(stand, peer, name, 0)
    one = stand.identities[0]
    ask = partial(stage.ask, url, token=getattr(one, PEERS[peer].token))
    # fastapi-users calls email_verified is_verified.
    me = ME - {"email_verified"} | {"is_verified"} if peer == "fastapi-users" else ME
    if name in ("me", "me-5000"):
        status, body = ask()
        right = body.keys() >= me
    elif name == "patch":
        status, body = ask("PATCH", body=b'{"name": "Another"}')
        right = body.keys() >= me and body["name"] == "Another"
    elif name == "list":
        status, body = ask()
        right = len(body["items"]) == 50 and all(row.keys() >= ACCOUNT for row in body["items"])
    elif name == "live":
        status, body = stage.ask(url)
        right = "status" in body
    else:
        return
    if status != 200 or not right:
        raise RuntimeError(f"{peer} responds to {name} with {status}: {str(body)[:500]}")


def _ratios(costs: dict[str, list[Cost]], peer: str) -> list[float]:
    """Our CPU time divided by the peer's, for each round."""
    return [
        ours.cpu_us / theirs.cpu_us for ours, theirs in zip(costs[OURS], costs[peer], strict=True)
    ]


def _summary(costs: dict[str, list[Cost]]) -> dict[str, Any]:
    summary = {}
    for peer, rounds in costs.items():
        ratios = sorted(_ratios(costs, peer))
        quarter = len(ratios) // 4
        loads = [cost.load for cost in rounds]
        summary[peer] = {
            "title": PEERS[peer].title,
            "cpu_us": _median(cost.cpu_us for cost in rounds),
            "cpu_us_rounds": [round(cost.cpu_us, 1) for cost in rounds],
            "ours_to_theirs": {
                "median": round(statistics.median(ratios), 3),
                # The range of the middle half of the rounds.
                "low": round(ratios[quarter], 3),
                "high": round(ratios[-1 - quarter], 3),
            },
            "postgres_cpu_us": _median(cost.postgres_cpu_us for cost in rounds),
            "requests_per_s": _median(load.requests / load.duration_s for load in loads),
            "p50_ms": _median((load.p50_ms for load in loads), 2),
            "p99_ms": _median((load.p99_ms for load in loads), 2),
            "non_2xx": sum(load.non_2xx for load in loads),
            "socket_errors": sum(load.socket_errors for load in loads),
        }
    return summary


def _median(values: Iterable[float], digits: int = 1) -> float:
    return round(statistics.median(values), digits)


def _print_table(title: str, costs: dict[str, list[Cost]]) -> None:
    print(f"\n{title}\n{'':28}{'CPU µs':>8}{'ours/theirs (middle half)':>27}{'PG µs':>8}"
          f"{'req/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'non-2xx':>9}{'errors':>8}")  # fmt: skip
    for one in _summary(costs).values():
        ratio = one["ours_to_theirs"]
        spread = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        print(f"{one['title']:28}{one['cpu_us']:8.0f}{spread:>27}{one['postgres_cpu_us']:8.0f}"
              f"{one['requests_per_s']:9.0f}{one['p50_ms']:8.2f}{one['p99_ms']:8.2f}"
              f"{one['non_2xx']:9}{one['socket_errors']:8}", flush=True)  # fmt: skip


def _machine(stand: Stand) -> dict[str, Any]:
    """Describe the machine, the run and the versions of the peers."""
    pinned = dict(
        line.strip().split("==") for line in (HERE / "requirements.txt").read_text().splitlines()
    )
    versions = {
        peer: {name: pinned[name] for name in PEERS[peer].packages} for peer in stand.servers
    }
    versions[OURS] = {"shinkei": __version__}
    if "fastify" in versions:
        package = json.loads((HERE / "peers/fastify/package.json").read_text())
        versions["fastify"] = {**package["dependencies"], "node": stage.output("node", "--version")}
    machine = stage.machine(stand.postgres)
    return {**machine, "rounds": ROUNDS, "seconds": SECONDS, "versions": versions}


if __name__ == "__main__":
    main()
