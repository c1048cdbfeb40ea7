"""The evidence in docs/reliability.json is what docs/reliability.md shows, and keeps the promises."""

import json

from tools.reliability import DOCUMENT, EVIDENCE, document


def test_document_shows_the_evidence() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(text), "run: python -m tools.reliability"


def test_evidence_has_at_least_120_runs_that_kept_the_promises() -> None:
    runs = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    assert len(runs) >= 120
    for run in runs:
        assert (run["lost"], run["doubled"], run["other_5xx"]) == (0, 0, 0), run
        assert run["acknowledged"] >= 100, run
        assert run["violations"] == [], run
