"""The cluster that runs of faults copy, and the line of JSON that each run prints."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.stage import make_template


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print what a run measured, and append it to the file that FAULTS_REPORT names."""
    measured = dict(report.user_properties).get("report")
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    if report.when != "call" or measured is None or in_worker:
        return
    line = json.dumps(measured)
    print(f"\n{line}")
    if path := os.environ.get("FAULTS_REPORT"):
        with Path(path).open("a") as file:
            file.write(f"{line}\n")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a migrated cluster, which is not running."""
    return make_template(tmp_path_factory.mktemp("template"))
