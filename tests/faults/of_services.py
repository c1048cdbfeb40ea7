"""Faults of the service itself: its processes, its machine, and what operators do to it."""

import asyncio
import contextlib
import io
import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.faults.load import BROKEN, WRITERS, Load
from tests.faults.of_clients import connected
from tests.faults.run import Fault, measure_slowness
from tests.faults.stage import Stage
from tests.support.factories import PASSWORD
from tests.support.processes import SHINKEI, dies_with_parent
from tests.support.waiting import eventually

HELD_S = 3
# Connections are still accepted for so long after SIGTERM.
DRAIN_S = 5
# As many events as a world may have.
IMPORTED = 5_000
ALONE_OR_TWO = ("direct", "two workers")


class Asked(NamedTuple):
    """A request: its method, path, body and headers."""

    method: str
    path: str
    body: object
    headers: dict[str, str]


def real_hashes() -> dict[str, str]:
    """The cost of a hash as in production."""
    return {"PASSWORD_HASH_MEMORY_KIB": "19456", "PASSWORD_HASH_ITERATIONS": "2"}


def long_drain() -> dict[str, str]:
    return {"SHUTDOWN_DELAY_S": str(DRAIN_S)}


def small_pool() -> dict[str, str]:
    return {"DB_POOL_SIZE": "4"}


async def the_service_is_killed(stage: Stage, load: Load) -> int:
    await stage.service.kill()
    await asyncio.sleep(0.5)
    await stage.service.start()
    return sum(each.status == BROKEN for each in load.requests)


async def a_worker_is_killed(stage: Stage, load: Load) -> int:
    _, worker, *_ = stage.service.pids
    stage.service.send(signal.SIGKILL, worker)

    def is_replaced() -> bool:
        pids = stage.service.pids
        return worker not in pids and len(pids) == 3

    await eventually(is_replaced)
    return 1


async def the_service_hangs(stage: Stage, load: Load) -> int:
    stage.service.send(signal.SIGSTOP, *stage.service.pids)
    await asyncio.sleep(2)
    stage.service.send(signal.SIGCONT, *stage.service.pids)
    await load.acknowledge(WRITERS)
    return load.count_hindered()


async def a_worker_hangs(stage: Stage, load: Load) -> int:
    """It is replaced if it is silent for longer than this."""
    _, *workers = stage.service.pids
    # The kernel may have given most connections to one of them.
    worker = max(workers, key=_count_descriptors)
    stage.service.send(signal.SIGSTOP, worker)
    await asyncio.sleep(HELD_S)
    stage.service.send(signal.SIGCONT, worker)
    await load.acknowledge(WRITERS)
    return load.count_hindered()


async def the_service_is_stopped_and_started(stage: Stage, load: Load) -> int:
    """Whoever got through has an answer: the load pauses before new connections are refused."""
    writer = load.writers[3]
    world = await _import(load, json.dumps(await _large_world(load)).encode())
    first = len(load.probes)

    def says_so() -> bool:
        return any(each.kind == "ready" and each.status == 503 for each in load.probes[first:])

    export = f"{load.url}{load.api}/worlds/{world}/export"
    async with load.session.get(export, headers=writer.headers) as response:
        received = await response.content.readany()
        stage.service.send(signal.SIGTERM)
        began = time.monotonic()
        await eventually(says_so)
        # As a load balancer does, once the probe has failed.
        await load.pause()
        received += await response.content.read()
    assert len(json.loads(received)["world_events"]) == IMPORTED
    broken = [each for each in load.requests if each.status == BROKEN]
    assert not broken, broken[:2]
    assert await stage.service.end() == 0
    took_s = time.monotonic() - began - DRAIN_S
    assert took_s < 10 * await asyncio.to_thread(measure_slowness), took_s
    await stage.service.start()
    load.resume()
    return 1


async def the_workers_are_replaced(stage: Stage, load: Load) -> int:
    """By SIGHUP, while everything goes on."""
    _, *before = stage.service.pids
    stage.service.send(signal.SIGHUP)

    def are_replaced() -> bool:
        _, *now = stage.service.pids
        return len(now) == 2 and not set(now) & set(before)

    await eventually(are_replaced)
    return 1


async def two_hundred_requests_arrive_at_a_pool_that_is_held(stage: Stage, load: Load) -> int:
    """By requests that wait for rows, while probes go on."""
    headers = load.writers[0].headers
    async with stage.postgres.administrator() as administrator, administrator.transaction():
        await administrator.execute("lock table users, worlds, sessions")
        asked = [Asked("GET", "/users/me", None, headers)] * 200
        return (await _ask_at_once(load, asked)).count(503)


async def two_hundred_sign_in_at_once(stage: Stage, load: Load) -> int:
    """With passwords that are wrong, each of which costs as much as a right one."""
    asked = [
        Asked(
            "POST",
            "/auth/login",
            {"email": f"nobody{number}@example.com", "password": PASSWORD},
            {},
        )
        for number in range(200)
    ]
    statuses = await _ask_at_once(load, asked)
    assert set(statuses) <= {401, 503}, set(statuses)
    return len(statuses)


async def _ask_at_once(load: Load, asked: list[Asked]) -> list[int]:
    """Send all requests at once, each on a connection of its own, and return their statuses."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        crowd = Load(session, load.url)
        answers = await asyncio.gather(*(crowd.send(*each) for each in asked))
        # A wrong password is refused as it should be.
        load.requests += [each for each in crowd.requests if each.status != 401]
    return [status for status, _ in answers]


async def descriptors_run_out(stage: Stage, load: Load) -> int:
    """The process sleeps meanwhile: a loop that accepts in vain would use a whole core."""
    pid = stage.service.pids[-1]
    used = _count_descriptors(pid)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    async with connected(stage, 200) as streams:
        for _, writer in streams:
            if not writer.is_closing():
                writer.write(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        # Without the CPU of the load.
        await load.pause()
        began_s = _cpu_s(pid)
        await asyncio.sleep(HELD_S)
        spent_s = _cpu_s(pid) - began_s
        load.resume()
        unanswered = [await _has_nothing(reader) for reader, _ in streams]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert spent_s < HELD_S / 2, f"{spent_s} s of CPU"
    return sum(unanswered)


async def _has_nothing(reader: asyncio.StreamReader) -> bool:
    """Return whether no response has arrived, on a connection that is open or has been closed."""
    try:
        async with asyncio.timeout(0.001):
            return not await reader.read(1)
    except (TimeoutError, ConnectionResetError):
        return True


def _count_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def the_signing_key_is_replaced(stage: Stage, load: Load) -> int:
    for _ in range(2):
        command = dies_with_parent(*SHINKEI, "keys", "rotate", "--now")
        rotating = await asyncio.create_subprocess_exec(
            *command,
            cwd=stage.directory / "service",
            env=stage.service.environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=sys.stderr,
        )
        assert await rotating.wait() == 0
        await asyncio.sleep(0.5)
    return 2


async def _large_world(load: Load) -> dict[str, Any]:
    """Return a copy of a world, with as many events as it may have."""
    writer = load.writers[3]
    document: dict[str, Any] = await load.expect(
        "GET", f"/worlds/{writer.world}/export", None, writer.headers
    )
    template = document["world_events"][0]
    document["world"]["name"] = "Copied"
    document["world_events"] = [
        template | {"id": f"00000000-0000-4000-8000-{number:012}", "caused_by_ids": []}
        for number in range(IMPORTED)
    ]
    document["stories"] = []
    return document


async def _import(load: Load, content: bytes) -> str:
    """Import a world, and return its id."""
    headers = load.writers[3].headers | {"Content-Type": "application/json"}
    url = f"{load.url}{load.api}/worlds/import"
    async with load.session.post(url, data=io.BytesIO(content), headers=headers) as response:
        assert response.status == 201, (response.status, await response.text())
        return str((await response.json())["id"])


async def an_import_is_killed(stage: Stage, load: Load) -> int:
    """Either all of the world is there, or none of it."""
    content = json.dumps(await _large_world(load)).encode()

    async def send() -> bool:
        """Return whether the world has been imported."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await _import(load, content)
            return True
        return False

    async def is_inserting() -> bool:
        long = "select count(*) from pg_stat_activity where now() - xact_start > interval '0.05 s'"
        ours = f"{long} and backend_type = 'client backend' and state <> 'idle'"
        return bool(await stage.postgres.value(ours))

    killed = 0
    for _ in range(3):
        sending = asyncio.create_task(send())
        await eventually(is_inserting)
        await stage.service.kill()
        killed += not await sending
        await stage.service.start()
    assert await _count_events_of_copies(stage) == []
    await _import(load, content)
    assert await _count_events_of_copies(stage) == [IMPORTED]
    return killed


async def _count_events_of_copies(stage: Stage) -> list[int]:
    async with stage.postgres.administrator() as administrator:
        rows = await administrator.fetch(
            "select (select count(*) from world_events where world_id = worlds.id) as events"
            " from worlds where name = 'Copied'"
        )
    return [row["events"] for row in rows]


FAULTS = [
    Fault(the_service_is_killed, breaks=True, quick="pgbouncer"),
    Fault(a_worker_is_killed, modes=("two workers",), breaks=True, quick="two workers"),
    Fault(the_service_hangs, modes=ALONE_OR_TWO),
    Fault(a_worker_hangs, modes=("two workers",)),
    Fault(the_service_is_stopped_and_started, breaks=True, settings=long_drain),
    Fault(the_workers_are_replaced, modes=("two workers",), refusals=False),
    Fault(
        two_hundred_requests_arrive_at_a_pool_that_is_held,
        modes=ALONE_OR_TWO,
        settings=small_pool,
    ),
    Fault(two_hundred_sign_in_at_once, modes=ALONE_OR_TWO, settings=real_hashes),
    Fault(descriptors_run_out, modes=("direct",), breaks=True),
    Fault(the_signing_key_is_replaced, refusals=False),
    Fault(an_import_is_killed, modes=ALONE_OR_TWO, breaks=True),
]
