"""What is promised under faults holds under each of them, in each mode: see docs/reliability.md."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.run import Fault, run

RUNS = [
    pytest.param(
        fault,
        mode,
        id=f"{fault.name}, {mode}",
        marks=[pytest.mark.quick_fault] if mode == fault.quick else [],
    )
    for fault in FAULTS
    for mode in fault.modes
]


@pytest.mark.fault
@pytest.mark.parametrize(("fault", "mode"), RUNS)
async def test_promises_hold(
    fault: Fault, mode: str, template: Path, record_property: Callable[[str, object], None]
) -> None:
    report = await run(fault, mode, template)
    record_property("report", asdict(report))
    assert report.violations == []


def test_there_are_at_least_120_runs_and_ten_quick_ones() -> None:
    assert len(RUNS) >= 120
    assert all(fault.quick in ("", *fault.modes) for fault in FAULTS)
    assert sum(bool(fault.quick) for fault in FAULTS) >= 10
