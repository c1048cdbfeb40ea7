"""Writes docs/reliability.json and the tables of docs/reliability.md from runs of faults.

    python -m tools.reliability [RUNS] [--peer RUNS]

RUNS is a file with a line of JSON for each run, as ``make faults`` writes it. Without any, only the
tables are written again.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/reliability.md"
EVIDENCE = ROOT / "docs/reliability.json"
PEER = ROOT / "docs/reliability-peer.json"
MODES = ("direct", "pgbouncer", "two hosts", "two workers", "replica")
TABLE = r"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
Run = dict[str, Any]


def tables(runs: list[Run]) -> str:
    """Return the summary and the table of recoveries, a row for each fault."""
    rows = []
    for scenario in dict.fromkeys(run["scenario"] for run in runs):
        of_modes = {run["mode"]: run for run in runs if run["scenario"] == scenario}
        cells = [_cell(of_modes.get(mode)) for mode in MODES]
        slowest = max(run["slowest_s"] for run in of_modes.values())
        rows.append(f"| {scenario} | {' | '.join(cells)} | {slowest:.1f} |\n")
    return (
        f"\n{_sum_up(runs)}\n\nThe seconds from a fault's end until the last request that failed,"
        " by mode, and those of the slowest request:\n\n"
        f"| fault | {' | '.join(MODES)} | slowest |\n|{'---|' * 7}\n{''.join(rows)}\n"
    )


def peer_table(ours: list[Run], theirs: list[Run]) -> str:
    """Return a table that compares the runs of both."""
    own = {run["scenario"]: run for run in ours if run["mode"] == "direct"}
    rows = []
    for run in theirs:
        two = (own[run["scenario"]], run)
        cells = [f"{each[name]}" for name in ("lost", "other_5xx") for each in two]
        cells += [f"{each['slowest_s']:.1f}" for each in two]
        cells += [f"{each['recovery_s']:.1f}" for each in two]
        rows.append(f"| {run['scenario']} | {' | '.join(cells)} |\n")
    head = " | ".join(
        f"{name}, {whose}"
        for name in ("lost", "other 5xx", "slowest, s", "recovery, s")
        for whose in ("ours", "theirs")
    )
    return f"\n| fault | {head} |\n|{'---|' * 9}\n{''.join(rows)}\n"


def _cell(run: Run | None) -> str:
    if run is None:
        return ""
    return f"{run['recovery_s']:.1f}" + (" **(broken)**" if run["violations"] else "")


def _sum_up(runs: list[Run]) -> str:
    def total(name: str) -> str:
        return f"{sum(run[name] for run in runs):,}"

    broken = sum(bool(run["violations"]) for run in runs)
    return (
        f"{len(runs)} runs: {total('requests')} requests, of which {total('refused')} were answered"
        f" with 503; {total('acknowledged')} acknowledged writes, {total('lost')} of them lost and"
        f" {total('doubled')} doubled; {total('other_5xx')} responses of 5xx other than 503. A"
        f" promise was broken in {broken} runs."
    )


def _read(path: str | None) -> list[Run]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if path else []


def _write(path: Path, runs: list[Run]) -> None:
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?")
    parser.add_argument("--peer")
    options = parser.parse_args()
    if options.runs:
        # By name, whatever order they ran in.
        runs = sorted(_read(options.runs), key=lambda run: (run["scenario"], run["mode"]))
        _write(EVIDENCE, runs)
    if options.peer:
        _write(PEER, _read(options.peer))
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def document(text: str) -> str:
    """Return the document with its tables made from the evidence."""
    runs = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    theirs = json.loads(PEER.read_text(encoding="utf-8"))
    for name, written in (("runs", tables(runs)), ("peer", peer_table(runs, theirs))):
        table = TABLE.replace("{name}", name)
        text = re.sub(table, written.replace("\\", r"\\"), text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    main()
