"""The evidence in docs/reliability.json is what docs/reliability.md shows, and keeps the promises."""

import json

from tests.faults.catalogue import FAULTS
from tests.faults.run import WAIVED_FROM
from tools.reliability import DOCUMENT, EVIDENCE, document


def test_document_shows_the_evidence() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(text), "run: python -m tools.reliability"


def test_evidence_has_every_run() -> None:
    runs = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    wanted = {(fault.name, mode) for fault in FAULTS for mode in fault.modes}
    found = {(run["scenario"], run["mode"]) for run in runs}
    assert wanted <= found
    # And those of many faults with one ledger.
    assert all("random faults" in scenario for scenario, _ in found - wanted)


def test_promises_were_kept_in_every_run() -> None:
    for run in json.loads(EVIDENCE.read_text(encoding="utf-8")):
        assert (run["lost"], run["doubled"], run["other_5xx"]) == (0, 0, 0), run
        assert run["acknowledged"] >= 100, run
        assert run["violations"] == [], run
        assert run["control_failures"] > 0, run
        assert max(run["slowest_s"], run["recovery_s"]) <= 5, run
        assert run["slowness"] < WAIVED_FROM, run
