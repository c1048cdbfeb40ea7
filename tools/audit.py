"""Look for known vulnerabilities in the pinned dependencies: ``make audit``.

pip-audit reads ``requirements/*.txt``, and npm reads each ``package-lock.json``. Prints one line
for each vulnerability, and one for what could not be checked. Exits with 1 if there is a
vulnerability. Without a connection nothing can be checked, which is said, and is no failure.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Report(NamedTuple):
    """What was found, what could not be checked, and how many packages were."""

    vulnerable: list[str]
    unchecked: list[str]
    checked: int


def run(command: list[str], directory: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason was given"


def read_pip_audit(written: str, errors: str) -> Report:
    """Read pip-audit's JSON. A package that the database does not know counts as unchecked."""
    try:
        dependencies = json.loads(written)["dependencies"]
    except ValueError:
        return Report([], [f"requirements/*.txt: {last_line(errors)}"], 0)
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    vulnerable = [
        f"{one['name']} {one['version']}: {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for one in dependencies
        for found in one.get("vulns", ())
    ]
    unchecked = []
    if skipped:
        names = ", ".join(sorted(skipped)[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        unchecked = [f"requirements/*.txt: the advisory database has no {names}{more}"]
    return Report(vulnerable, unchecked, len(dependencies) - len(skipped))


def read_npm(name: str, written: str, errors: str) -> Report:
    """Read npm's JSON for one file. Of a chain of packages, only those with an advisory count."""
    try:
        answer: dict[str, Any] = json.loads(written)
    except ValueError:
        return Report([], [f"{name}: {last_line(errors)}"], 0)
    if "vulnerabilities" not in answer:
        reason = (
            answer.get("message") or answer.get("error", {}).get("summary") or last_line(errors)
        )
        return Report([], [f"{name}: {last_line(reason)}"], 0)
    vulnerable = [
        f"{package}, in {name}: {via['title']}, {via['url']}"
        for package, found in answer["vulnerabilities"].items()
        for via in found["via"]
        if isinstance(via, dict)
    ]
    return Report(vulnerable, [], answer["metadata"]["dependencies"]["total"])


def audit_python() -> Report:
    files = [str(path) for path in sorted((ROOT / "requirements").glob("*.txt"))]
    program = str(Path(sys.executable).with_name("pip-audit"))
    options = ["--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off"]
    done = run([program, *options, *(f"--requirement={path}" for path in files)])
    return read_pip_audit(done.stdout, done.stderr)


def audit_npm(lock: Path) -> Report:
    name = str(lock.relative_to(ROOT))
    if shutil.which("npm") is None:
        return Report([], [f"{name}: npm is not installed"], 0)
    done = run(["npm", "audit", "--json", "--package-lock-only"], lock.parent)
    return read_npm(name, done.stdout, done.stderr)


def main() -> None:
    locks = [ROOT / name for name in run(["git", "ls-files", "*package-lock.json"]).stdout.split()]
    reports = [audit_python(), *map(audit_npm, locks)]
    for report in reports:
        for line in report.unchecked:
            print(f"not checked: {line}")
        for line in report.vulnerable:
            print(f"vulnerable: {line}")
    vulnerable = sum(len(report.vulnerable) for report in reports)
    print(f"checked {sum(report.checked for report in reports)} packages: {vulnerable} vulnerable")
    sys.exit(vulnerable > 0)


if __name__ == "__main__":
    main()
