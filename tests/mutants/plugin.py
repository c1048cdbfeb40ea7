"""Pytest plugin for ``tests/mutants/run.py`` that selects tests and measures them.

``MUTANTS_SELECT`` names a file with the tests to run, in order. The first failure is written to a
file of the same name with the suffix ``.failed``. ``MUTANTS_DURATIONS`` names an output file for
the failed tests and the seconds that each passed test took.
"""

import base64
import json
import os
import threading
from pathlib import Path

import pytest

from tests.support import waiting

if "MUTANTS_SELECT" in os.environ:
    # Tests of a removed email wait this long for it. Set before they import it.
    waiting.DEADLINE_S = 20

# After a failure, teardown may wait forever for something that the test left behind.
_TEARDOWN_S = 20
_COVERAGE = "COVERAGE_PROCESS_CONFIG"
_seconds: dict[str, float] = {}
_failed: set[str] = set()
_skipped: set[str] = set()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "MUTANTS_SELECT" in os.environ:
        wanted = json.loads(Path(os.environ["MUTANTS_SELECT"]).read_text())
        found = {item.nodeid: item for item in items}
        items[:] = [found[name] for name in wanted if name in found]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the processes that a test starts record their coverage under its name."""
    if _COVERAGE in os.environ:
        config = json.loads(base64.b64decode(os.environ[_COVERAGE]))
        config["context"] = item.nodeid
        os.environ[_COVERAGE] = base64.b64encode(json.dumps(config).encode()).decode()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0) + report.duration
    if not report.passed:
        (_failed if report.failed else _skipped).add(report.nodeid)
    if report.failed and "MUTANTS_SELECT" in os.environ:
        Path(os.environ["MUTANTS_SELECT"]).with_suffix(".failed").write_text(report.nodeid)
        watchdog = threading.Timer(_TEARDOWN_S, os._exit, [pytest.ExitCode.TESTS_FAILED])
        watchdog.daemon = True
        watchdog.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "MUTANTS_DURATIONS" in os.environ and not hasattr(session.config, "workerinput"):
        passed = {name: _seconds[name] for name in _seconds if name not in _failed | _skipped}
        measured = {"passed": passed, "failed": sorted(_failed)}
        Path(os.environ["MUTANTS_DURATIONS"]).write_text(json.dumps(measured))
