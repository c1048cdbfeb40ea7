"""One run: a fault under load, and whether what the service promises held.

The promises G1 to G5 are those of docs/reliability.md.
"""

import asyncio
import contextlib
import hashlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg

from tests.faults.control import controlling
from tests.faults.load import BROKEN, TIMEOUT, TIMEOUT_S, Load, Outcome
from tests.faults.stage import NAME, SERVE, Stage, staged
from tests.support.waiting import eventually

MODES = ("direct", "pgbouncer", "two hosts", "two workers")
# Acknowledged writes before the fault, and again after it.
WRITES = 60
# After the fault, the load goes on until nothing has failed for this long.
CALM_S = 1.5
# The promises.
REQUEST_S = 5.0
RECOVERY_S = 5.0
READY_S = 2.0
MEMORY_BYTES = 128 * 2**20
IDLE_IN_TRANSACTION_S = 5
# Connections that clients keep open, and those of probes and of the search for a primary.
DESCRIPTORS = 30
# A machine that is slower still breaks the promises.
SLOWNESS_MAX = 10.0
# On a machine that is slower than this, the service's own deadlines refuse requests and fail its
# readiness, whatever the fault.
WAIVED_FROM = 5.0
# What hashing this much takes on the machine that the promises were measured on.
_HASHED, _HASH_S = b"\0" * 2**24, 0.015


@dataclass(frozen=True)
class Fault:
    """A fault, the modes in which it means something, and what is expected of it.

    ``happen`` returns when the fault has ended. It may return how often it was seen to be one, for
    faults that a client of the database does not see.
    """

    happen: Callable[[Stage, Load], Awaitable[int | None]]
    modes: tuple[str, ...] = MODES
    # What the client without defences does.
    control: str = "select count(*) from users"
    # The client without defences uses the replica.
    of_replica: bool = False
    # The replica serves again afterwards.
    replica_returns: bool = True
    # In this mode, it is among the quick runs.
    quick: str = ""
    # Readiness must fail within READY_S, because the fault lasts longer than that; or it must not.
    unready: bool | None = None
    # Requests may be refused or broken meanwhile.
    refusals: bool = True
    breaks: bool = False
    # The service sends mail to ``stage.mail_port``, instead of writing it to files.
    mails: bool = False
    settings: Callable[[], dict[str, str]] = dict

    @property
    def name(self) -> str:
        return self.happen.__name__.replace("_", " ")


@dataclass
class Report:
    """What a run measured; ``violations`` are the promises that it broke."""

    scenario: str
    mode: str
    requests: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    other_5xx: int = 0
    slowest_s: float = 0
    recovery_s: float = 0
    unready_after_s: float | None = None
    leaks: list[str] = field(default_factory=list)
    control_failures: int = 0
    slowness: float = 1
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is tried: the service, or a peer that does less."""

    command: tuple[str, ...] = SERVE
    load: type[Load] = Load
    is_peer: bool = False


OURS = Subject()


async def run(fault: Fault, mode: str, template: Path, subject: Subject = OURS) -> Report:
    """Run the fault in the mode, on a copy of the template's cluster."""
    async with (
        staged(
            mode, template, mails=fault.mails, command=subject.command, **fault.settings()
        ) as stage,
        loading(stage, subject) as load,
    ):
        load.start()
        await load.acknowledge(WRITES)
        if mode == "replica":
            await stage.until_replica_serves()
        before = stage.service.resources()
        report = await endure(fault, stage, load)
        if mode == "replica" and fault.replica_returns:
            await stage.until_replica_serves()
        await load.stop()
        await load.settle()
        report.lost, report.doubled = await load.compare(stage.primary)
        report.leaks = await find_leaks(stage, before)
        report.violations += [*judge_ledger(report), *find_mistakes(stage, subject)]
    return report


async def endure(fault: Fault, stage: Stage, load: Load) -> Report:
    """Have the fault happen, wait for the recovery, and report all but the ledger and the leaks."""
    report = Report(fault.name, stage.mode)
    report.slowness = await asyncio.to_thread(measure_slowness)
    load.forget()
    before = load.acknowledged
    database = stage.database
    if fault.of_replica:
        assert stage.second is not None
        database = stage.second.database
    async with watching_sessions(stage) as idle, controlling(database, fault.control) as control:
        control.failures = 0
        began = time.monotonic()
        seen = await fault.happen(stage, load)
        ended = time.monotonic()
    report.control_failures = control.failures if seen is None else seen
    await load.acknowledge(WRITES)
    await calm(load, ended)
    report.slowness = max(report.slowness, await asyncio.to_thread(measure_slowness))
    # With those of the fault, and those before it.
    report.acknowledged = load.acknowledged - before + WRITES
    measure(report, load, began, ended)
    report.violations = judge(report, fault, load, ended)
    if idle:
        report.violations.append(f"G5: {len(idle)} sessions idle in transaction during the fault")
    return report


@contextlib.asynccontextmanager
async def loading(stage: Stage, subject: Subject) -> AsyncIterator[Load]:
    """Yield a load that has been set up, and stop it at the end of the block."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        load = subject.load(session, stage.service.url)
        await load.set_up(stage.postgres)
        try:
            yield load
        finally:
            with contextlib.suppress(Exception):
                await load.stop()


async def calm(load: Load, ended: float) -> None:
    """Return once all requests of before are answered, and nothing has failed for ``CALM_S``."""

    def is_calm() -> bool:
        waits = any(began <= ended for began in load.waiting)
        return not waits and time.monotonic() - last_failure(load, ended) > CALM_S

    await eventually(is_calm)


def last_failure(load: Load, otherwise: float) -> float:
    """Return when a request or the readiness last failed."""
    unready = [each for each in load.probes if each.kind == "ready" and each.status != 200]
    failed = [each for each in load.requests if _failed(each)]
    return max((each.ended for each in (*unready, *failed)), default=otherwise)


async def find_leaks(stage: Stage, before: tuple[int, int]) -> list[str]:
    """Return what has not returned to what it was, once it has had time to."""
    leaks: list[str] = []

    async def look() -> bool:
        leaks.clear()
        memory, descriptors = stage.service.resources()
        if memory > before[0] + MEMORY_BYTES:
            leaks.append(f"{(memory - before[0]) >> 20} MiB")
        if descriptors > before[1] + DESCRIPTORS:
            leaks.append(f"{descriptors - before[1]} descriptors")
        if idle := await idle_sessions(stage):
            leaks.append(f"{len(idle)} sessions idle in transaction")
        return not leaks

    slower = min(SLOWNESS_MAX, await asyncio.to_thread(measure_slowness))
    deadline = time.monotonic() + RECOVERY_S * slower

    async def has_none_or_had_its_time() -> bool:
        return await look() or time.monotonic() > deadline

    await eventually(has_none_or_had_its_time)
    return leaks


async def idle_sessions(stage: Stage) -> set[int]:
    """Return the process ids of sessions that have been idle in a transaction for too long."""
    pids: list[int] | None = await stage.primary.value(
        "select array_agg(pid) from pg_stat_activity where state like 'idle in transaction%'"
        f" and state_change < now() - interval '{IDLE_IN_TRANSACTION_S} s'"
        f" and application_name <> '{NAME}'"
    )
    return set(pids or ())


@contextlib.asynccontextmanager
async def watching_sessions(stage: Stage) -> AsyncIterator[set[int]]:
    """Yield a set, to which sessions are added that two looks in turn find idle in a transaction."""
    found: set[int] = set()

    async def watch() -> None:
        before: set[int] = set()
        while True:
            idle: set[int] = set()
            # PostgreSQL may be what fails.
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with asyncio.timeout(IDLE_IN_TRANSACTION_S):
                    idle = await idle_sessions(stage)
            found.update(idle & before)
            before = idle
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()


def measure(report: Report, load: Load, began: float, ended: float) -> None:
    report.requests = len(load.requests) + len(load.probes)
    report.refused = sum(each.status == 503 for each in load.requests)
    report.other_5xx = sum(each.status >= 500 and each.status != 503 for each in load.requests)
    slowest = max(each.ended - each.began for each in load.requests)
    report.slowest_s = round(slowest, 2)
    report.recovery_s = round(max(0.0, last_failure(load, ended) - ended), 2)
    unready = [
        each.ended
        for each in load.probes
        if each.kind == "ready" and each.status != 200 and each.began >= began
    ]
    report.unready_after_s = round(unready[0] - began, 2) if unready else None


def judge(report: Report, fault: Fault, load: Load, ended: float) -> list[str]:
    """Return the promises that were broken, in words."""
    slower = min(SLOWNESS_MAX, report.slowness)
    broken: list[str] = []

    def require(kept: object, otherwise: str) -> None:
        if not kept:
            broken.append(otherwise)

    require(report.control_failures, "nothing shows that the fault took effect")
    require(report.acknowledged >= 100, f"only {report.acknowledged} writes")
    require(not report.other_5xx, f"G2: {report.other_5xx} responses of 5xx other than 503")
    refusals = fault.refusals or slower >= WAIVED_FROM
    wrong = [each for each in load.requests if _is_wrong(each, fault, refusals=refusals)]
    require(not wrong, f"G2: {len(wrong)} wrong responses, such as {wrong[:2]}")
    require(not load.stale, f"{len(load.stale)} lists lacked what their reader had written")
    if not fault.breaks:
        dead = [each for each in load.probes if each.kind == "live" and each.status != 200]
        require(not dead, f"live: {dead[:2]}")
    require(report.slowest_s <= REQUEST_S * slower, f"G3: a request took {report.slowest_s} s")
    require(
        report.recovery_s <= RECOVERY_S * slower,
        f"G4: full service only after {report.recovery_s} s",
    )
    after = report.unready_after_s
    if fault.unready and load.has_readiness:
        kept = after is not None and after <= READY_S * slower
        require(kept, f"G4: readiness failed after {after} s, not within {READY_S} s")
    if fault.unready is False and slower < WAIVED_FROM:
        require(after is None, f"G4: readiness failed after {after} s")
    return broken


def judge_ledger(report: Report) -> list[str]:
    """Return what the ledger and the resources have broken."""
    found = {
        f"G1: {report.lost} acknowledged writes lost": report.lost,
        f"G1: {report.doubled} writes doubled": report.doubled,
        f"G5: {', '.join(report.leaks)}": report.leaks,
    }
    return [words for words, broken in found.items() if broken]


def find_mistakes(stage: Stage, subject: Subject) -> list[str]:
    """Return the errors that the service logged with a traceback, as it does with its own."""
    events = (
        [] if subject.is_peer else [event for event in stage.service.log if "exception" in event]
    )
    return [f"G2: logged {len(events)} mistakes, such as {events[0]}"] if events else []


def _failed(outcome: Outcome) -> bool:
    return outcome.status in (BROKEN, TIMEOUT) or outcome.status >= 500


def _is_wrong(outcome: Outcome, fault: Fault, *, refusals: bool) -> bool:
    if outcome.status == 503:
        return bool(outcome.wrong) or not refusals
    if outcome.status == BROKEN:
        return not fault.breaks
    return outcome.status == TIMEOUT or bool(outcome.wrong)


def measure_slowness() -> float:
    """Return how many times slower than the reference this machine is now, at least 1."""

    def hash_s() -> float:
        began = time.perf_counter()
        hashlib.sha256(_HASHED).digest()
        return time.perf_counter() - began

    return round(max(1.0, statistics.median(hash_s() for _ in range(9)) / _HASH_S), 1)
