"""A random fault every 20 s under load, for a quarter of an hour, with one ledger for all of it.

    .venv/bin/python -m tests.faults.mixed [--minutes 15] [--seed N] [--mode "two workers"]

Prints a line of JSON for each fault and one for the whole, and exits with 1 if a promise was broken.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.faults import of_networks, of_postgres
from tests.faults.load import Load
from tests.faults.run import (
    MODES,
    OURS,
    Report,
    Subject,
    endure,
    find_leaks,
    find_mistakes,
    judge_ledger,
    loading,
)
from tests.faults.stage import make_template, staged

EVERY_S = 20
# These change the cluster for good.
_ONCE = ("migrate", "migration", "promoted")


class SlowerLoad(Load):
    """A load that stays below the limit of 5,000 events in a world."""

    pause_s = 0.2


async def mix(
    seconds: float, mode: str, seed: int, template: Path, report_to: Path | None
) -> list[str]:
    """Return the promises that were broken, and append a report on the whole to the file."""
    chosen = random.Random(seed)
    faults = [
        fault
        for fault in (*of_postgres.FAULTS, *of_networks.FAULTS)
        if mode in fault.modes and not any(word in fault.name for word in _ONCE)
    ]
    whole = Report("", mode)
    happened = 0
    async with staged(mode, template) as stage, loading(stage, Subject(load=SlowerLoad)) as load:
        load.start()
        await load.acknowledge(100)
        before = stage.service.resources()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            next_one = asyncio.create_task(asyncio.sleep(EVERY_S))
            report = await endure(chosen.choice(faults), stage, load)
            memory, descriptors = stage.service.resources()
            measured = {**asdict(report), "memory_mib": memory >> 20, "descriptors": descriptors}
            print(json.dumps(measured), flush=True)
            happened += 1
            whole.requests += report.requests
            whole.refused += report.refused
            whole.other_5xx += report.other_5xx
            whole.control_failures += report.control_failures
            whole.slowest_s = max(whole.slowest_s, report.slowest_s)
            whole.recovery_s = max(whole.recovery_s, report.recovery_s)
            whole.slowness = max(whole.slowness, report.slowness)
            whole.violations += [f"{report.scenario}: {each}" for each in report.violations]
            await next_one
        await load.stop()
        await load.settle()
        whole.scenario = f"{happened} random faults in {seconds / 60:g} minutes"
        whole.acknowledged = load.acknowledged
        whole.lost, whole.doubled = await load.compare(stage.primary)
        whole.leaks = await find_leaks(stage, before)
        whole.violations += [*judge_ledger(whole), *find_mistakes(stage, OURS)]
        line = json.dumps(asdict(whole))
        print(line, flush=True)
        if report_to is not None:
            with report_to.open("a") as file:
                file.write(f"{line}\n")
    return whole.violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    parser.add_argument("--mode", choices=MODES, default="direct")
    parser.add_argument("--report", type=Path, help="append a line on the whole to this file")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="shinkei-faults-") as directory:
        template = make_template(Path(directory))
        broken = asyncio.run(
            mix(options.minutes * 60, options.mode, options.seed, template, options.report)
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
