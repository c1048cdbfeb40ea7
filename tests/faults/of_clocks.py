"""Faults of the service's clock: it is set forward or back by minutes."""

import asyncio
import functools
import subprocess
from email.utils import parsedate_to_datetime
from pathlib import Path

from tests.faults.load import Load
from tests.faults.run import Fault
from tests.faults.stage import Stage
from tests.support.programs import require
from tests.support.scratch import make_directory

HELD_S = 2
STEP_S = 300
HERE = Path(__file__).parent
MODES = ("direct", "two workers")


@functools.cache
def library() -> Path:
    """Compile the library that sets the clock of one process."""
    built = make_directory() / "clock.so"
    options = ("-shared", "-fPIC", "-O2", "-ldl")
    subprocess.run([require("gcc"), HERE / "clock.c", "-o", built, *options], check=True)
    return built


def preloaded() -> dict[str, str]:
    return {"LD_PRELOAD": str(library()), "CLOCK_OFFSET_FILE": "clock"}


async def the_clock_is_set_forward(stage: Stage, load: Load) -> int:
    return await _set_for_a_while(stage, load, STEP_S)


async def the_clock_is_set_back(stage: Stage, load: Load) -> int:
    return await _set_for_a_while(stage, load, -STEP_S)


async def the_clock_is_set_back_and_forth(stage: Stage, load: Load) -> int:
    steps = (STEP_S, -STEP_S) * 3
    return sum([await _set_for_a_while(stage, load, offset_s) for offset_s in steps])


async def _set_for_a_while(stage: Stage, load: Load, offset_s: int) -> int:
    """Set the clock, and set it right again; return whether the service had the wrong time."""
    seen = await set_clock(stage, load, offset_s)
    _file(stage).write_text("0")
    return seen


async def set_clock(stage: Stage, load: Load, offset_s: int) -> int:
    """Set the service's clock off by this much; return whether it moved by minutes."""
    before = await _date(load)
    _file(stage).write_text(str(offset_s))
    # The Date header is written once a second.
    await asyncio.sleep(HELD_S)
    return int(abs(await _date(load) - before) > STEP_S / 2)


def _file(stage: Stage) -> Path:
    return stage.directory / "service" / "clock"


async def _date(load: Load) -> float:
    async with load.session.get(f"{load.url}/health/live") as response:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()


FAULTS = [
    Fault(happen, modes=MODES, refusals=False, settings=preloaded)
    for happen in (the_clock_is_set_forward, the_clock_is_set_back, the_clock_is_set_back_and_forth)
]
