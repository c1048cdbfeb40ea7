"""A defect that is planted into the service breaks a promise under faults."""

import sys
from pathlib import Path

import pytest

from tests.faults import of_networks, of_postgres, of_sign_ins
from tests.faults.run import Fault, Subject, run

_FAULTS: list[Fault] = [*of_networks.FAULTS, *of_postgres.FAULTS, *of_sign_ins.FAULTS]
# The defect, a fault under which it shows, and the promise that it breaks.
CASES = [
    ("a_retry_too_many", of_networks.responses_to_commits_are_lost, "doubled"),
    ("a_commit_that_is_swallowed", of_postgres.a_third_of_commits_cannot_be_serialized, "lost"),
    ("a_sign_in_that_works_twice", of_sign_ins.responses_to_sign_ins_are_lost, "doubled"),
    ("a_leak", of_postgres.the_server_is_stopped_and_started, "descriptors"),
    pytest.param(
        *("a_missing_retry_after", of_postgres.all_worlds_are_locked, "503 without Retry-After"),
        marks=pytest.mark.quick_fault,
    ),
    (
        "a_stale_readiness",
        of_postgres.the_server_is_stopped_and_started,
        "readiness failed after None",
    ),
]


@pytest.mark.fault
@pytest.mark.parametrize(("defect", "happen", "broken"), CASES)
async def test_planted_defect_is_noticed(
    defect: str, happen: object, broken: str, template: Path
) -> None:
    (fault,) = [each for each in _FAULTS if each.happen is happen]
    command = (sys.executable, "-m", "tests.faults.planted", defect, "serve")
    report = await run(fault, "direct", template, Subject(command))
    assert [each for each in report.violations if broken in each], report
