"""``make mutants``: change the service in one place at a time and check that a test fails.

    .venv/bin/python -m tests.mutants.run [--only PATTERN] [--guards-only] [--sample 100] …

The changes remove every guard in turn (``guards.py``) and apply a seeded sample of cosmic-ray's
mutants (``operators.py``). Each is made in a copy of the checkout and run against the tests that
cover its statement, on one PostgreSQL that all runs share. Results are kept in ``.mutants``. Fails
if any guard can be removed unnoticed, or more than a tenth of the sample survives.
"""

import argparse
import contextlib
import difflib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from service.embedded import server as embedded
from service.settings import VARIABLES
from tests.mutants.coverage_map import CoverageMap, bring_up_to_date
from tests.mutants.guards import Mutant, Source, guards
from tests.support.clients import FAST, ROOT
from tests.support.processes import started, url_of

# The code from which the sample is drawn.
SAMPLED = (
    "service/auth",
    "service/sessions",
    "service/recovery",
    "service/throttle",
    "service/sealing.py",
    "service/resealing.py",
    "service/http/idempotency.py",
    "service/db/transactions.py",
)
SCORE_WANTED = 0.9
KEPT = ROOT / ".mutants"
HERE = Path(__file__).parent
# Most mutants are killed by one of these tests; the others run only if none of them fails.
FIRST_TESTS = 60
# How many tests of a survivor are shown; results.json has all.
SHOWN_TESTS = 12
# A run may take this many times as long as its tests did, plus the time to start.
SLOWER = 10
START_S = 60
# A test may say this on a slow machine, too.
LATE = re.compile("did not happen|Timeout|timed out")
# The meaning of pytest's exit codes for a mutant.
ENDS = {1: "after its tests", 2: "no import", 3: "internal error of pytest", 4: "no import"}


@dataclass
class Result:
    """The outcome of a mutant: killed, survived, not covered, equivalent or not run."""

    mutant: Mutant
    outcome: str = "not run"
    by: str = ""
    tests: list[str] = field(default_factory=list)
    seconds: float = 0
    diff: str = ""

    def describe(self) -> str:
        mutant = self.mutant
        by = f" ({self.by})" if self.by else ""
        where = f"{mutant.file}:{mutant.line} {mutant.operator}"
        return f"{self.outcome:11} {self.seconds:5.1f} s {len(self.tests):4} tests  {where}{by}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="regular expression for files and operators")
    parser.add_argument("--guards-only", action="store_true", help="skip the sample")
    parser.add_argument("--sample", type=int, default=100, help="size of the sample (default 100)")
    parser.add_argument("--seed", type=int, default=17, help="seed of the sample (default 17)")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs (default 2)")
    parser.add_argument(
        "--minutes", type=float, default=120, help="start no run later (default 120)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with shared_server() as environment, contextlib.ExitStack() as stack:
        copies = [stack.enter_context(copied()) for _ in range(options.jobs)]
        bring_up_to_date(
            KEPT, copies[0], lambda *given, **more: measure(copies[0], environment, *given, **more)
        )
        files = sorted(
            str(path.relative_to(copies[0])) for path in copies[0].glob("service/**/*.py")
        )
        sources = [Source(copies[0], file) for file in files]
        runner = Runner(environment, copies, CoverageMap(KEPT, sources), options.minutes)
        mutants = [one for one in guards(sources) if re.search(options.only, _about(one))]
        if not options.guards_only:
            mutants += sample(copies[0], files, options.seed, options.sample, options.only)
        runner.check(runner.typical())
        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                results = list(pool.map(runner.run, mutants))
            except BaseException:  # including Ctrl-C
                runner.stop()
                save(runner.results)
                raise
        save(results)
        code = report(results)
        runner.check(sorted({one.by for one in results if one.by in runner.covered.seconds}))
    return code


def sample(copy: Path, files: list[str], seed: int, count: int, only: str) -> list[Mutant]:
    if gone := [path for path in SAMPLED if not (copy / path).exists()]:
        raise SystemExit(f"tests/mutants/run.py: there is no {', '.join(gone)}")
    among = [f for f in files if f.startswith(SAMPLED) and re.search(only, f)]
    command = [ROOT / ".venv-mutants" / "bin" / "python", HERE / "operators.py"]
    drawn = subprocess.run(
        [*command, str(seed), str(count), *among], cwd=copy, stdout=subprocess.PIPE, check=True
    ).stdout
    return [Mutant(kind="sample", **one) for one in json.loads(drawn)]


def _about(mutant: Mutant) -> str:
    return f"{' '.join(mutant.code)} {mutant.operator}"


@contextlib.contextmanager
def shared_server() -> Iterator[dict[str, str]]:
    """Start one PostgreSQL for all runs; yields the environment that names it."""
    memory = Path("/dev/shm")
    directory = Path(
        tempfile.mkdtemp(prefix="shinkei-mutants-", dir=memory if memory.is_dir() else None)
    )
    server = embedded.start(directory, options=FAST)
    ours = (*VARIABLES, *(name for name in os.environ if name.startswith("COV")))
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        yield {**inherited, "DATABASE_URL": url_of(server.database)["DATABASE_URL"]}
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """Copy the files that git tracks or would add, with uncommitted changes."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="shinkei-mutants-") as directory:
        for name in filter(None, names.decode().split("\0")):
            if (ROOT / name).is_file():
                (target := Path(directory, name)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
                shutil.copymode(ROOT / name, target)
        yield Path(directory)


def pytest_command(*arguments: str) -> list[str]:
    options = ("-q", "-p", "no:cacheprovider", "-p", "tests.mutants.plugin", "-m", "not fault")
    return [sys.executable, "-m", "pytest", *options, *arguments]


def measure(copy: Path, environment: dict[str, str], *arguments: str, **more: str) -> int:
    """Run tests for the coverage map, show their output and return pytest's exit code."""
    environment = {**environment, "PYTHONPATH": str(copy), **more}
    command = pytest_command("--tb=line", *arguments)
    return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


class Runner:
    """Runs mutants in the copies until time is up."""

    def __init__(
        self, environment: dict[str, str], copies: list[Path], covered: CoverageMap, minutes: float
    ) -> None:
        self._environment = environment
        self.covered = covered
        self._until = time.monotonic() + minutes * 60
        self._copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in copies:
            self._copies.put(copy)
        self._equivalent = _load_equivalent()
        self._killers = _load_killers()
        self.results: list[Result] = []
        self._running: set[subprocess.Popen[str]] = set()

    def typical(self) -> list[str]:
        """Return tests that are neither slow nor among the quickest, which need no database."""
        quickest = sorted(self.covered.seconds, key=self.covered.seconds.__getitem__)
        return quickest[len(quickest) // 4 :][:FIRST_TESTS]

    def check(self, tests: list[str]) -> None:
        """Run tests without a mutant. Raises SystemExit if they fail, as they would for any mutant."""
        copy = self._copies.get()
        ended, failed, output = self._pytest(copy, tests) if tests else (0, "", "")
        self._copies.put(copy)
        if ended != 0:
            raise SystemExit(f"{failed} fails without a mutant ({ended})\n{output}")

    def stop(self) -> None:
        """Kill the running processes and start no more."""
        self._until = 0
        for process in list(self._running):
            process.kill()

    def run(self, mutant: Mutant) -> Result:
        copy = self._copies.get()
        try:
            result = self._run(mutant, copy)
        finally:
            self._copies.put(copy)
        self.results.append(result)
        print(result.describe(), flush=True)
        return result

    def _run(self, mutant: Mutant, copy: Path) -> Result:
        originals = {file: (copy / file).read_text() for file in mutant.code}
        result = Result(mutant, diff=_diff(originals, mutant.code))
        if reason := self._reason_to_exclude(mutant, originals[mutant.file]):
            result.outcome, result.by = "equivalent", reason
            return result
        tests = self.covered.tests(mutant.file, mutant.line)
        # Start with the test that killed it before, then tests with related names.
        said = _about(mutant) if mutant.kind == "guard" else mutant.file
        about = {word for word in re.findall(r"[a-z]{4,}", said) if word != "service"}
        tests.sort(key=lambda name: not any(word in name for word in about))
        tests.sort(key=lambda name: name != self._killers.get(result.diff))
        if not tests or time.monotonic() > self._until:
            result.outcome = "not run" if tests else "not covered"
            return result
        started = time.monotonic()
        try:
            for file, text in mutant.code.items():
                _write(copy / file, text)
            result.outcome = "survived"
            for batch in filter(None, (tests[:FIRST_TESTS], tests[FIRST_TESTS:])):
                result.tests += batch
                ended, failed, output = self._pytest(copy, batch)
                if ended == 1 and failed and not LATE.search(output):
                    result.outcome, result.by = "killed", failed
                    break
                if ended == 5:
                    raise SystemExit(f"pytest found none of {batch}")
                if ended == -signal.SIGKILL:  # by us, or out of memory: inconclusive
                    result.outcome = "not run"
                    break
                if ended != 0:
                    # Was it the mutant, or a slow machine?
                    passes = self._pass_without(originals, copy, [failed] if failed else batch)
                    end = "hangs" if ended is None else ENDS.get(ended, f"ended with {ended}")
                    result.outcome = "killed" if passes else "not run"
                    result.by = failed or end
                    break
        finally:
            for file, text in originals.items():
                _write(copy / file, text)
        result.seconds = time.monotonic() - started
        return result

    def _reason_to_exclude(self, mutant: Mutant, text: str) -> str | None:
        before = text.splitlines()[mutant.line - 1].strip()
        after = mutant.code[mutant.file].splitlines()[mutant.line - 1].strip()
        for one in self._equivalent:
            same = (one["file"], one["line"], one["operator"])
            if (
                same == (mutant.file, before, mutant.operator)
                and one.get("becomes", after) == after
            ):
                return one["reason"]
        return None

    def _pass_without(self, originals: dict[str, str], copy: Path, tests: list[str]) -> bool:
        """Restore the code, and return whether the tests then pass."""
        for file, text in originals.items():
            _write(copy / file, text)
        return self._pytest(copy, tests)[0] == 0

    def _pytest(self, copy: Path, tests: list[str]) -> tuple[int | None, str, str]:
        """Run the tests in this order, up to the first that fails.

        Returns pytest's exit code (None after a timeout), the failed test and the output.
        """
        selected, failed = copy / "selected.json", copy / "selected.failed"
        failed.write_text("")
        selected.write_text(json.dumps(tests))
        files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
        expected_s = sum(self.covered.seconds[name] for name in tests)
        with started(
            *pytest_command("-x", "-n", "0", "--tb=short", "--no-header", *files),
            cwd=copy,
            env={**self._environment, "PYTHONPATH": str(copy), "MUTANTS_SELECT": str(selected)},
            stderr=subprocess.STDOUT,
        ) as process:
            self._running.add(process)
            try:
                output, _ = process.communicate(timeout=START_S + SLOWER * expected_s)
                return process.returncode, failed.read_text(), output
            except subprocess.TimeoutExpired:
                return None, "", ""
            finally:
                self._running.discard(process)


def _write(path: Path, text: str) -> None:
    """Write the module and delete its compiled form, which could look as recent."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def _diff(before: dict[str, str], after: dict[str, str]) -> str:
    lines = []
    for file in after:
        texts = before[file].splitlines(), after[file].splitlines()
        changes = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
        lines += [file, *(line for line in changes if not line.startswith("@@"))]
    return "\n".join(lines)


def _load_equivalent() -> list[dict[str, str]]:
    """Return the mutants that no test can kill, with the reason."""
    tables: list[dict[str, str]] = tomllib.loads((HERE / "equivalent.toml").read_text())[
        "equivalent"
    ]
    return tables


def _load_killers() -> dict[str, str]:
    """Return the test that killed each mutant in an earlier run, by the mutant's diff."""
    path = KEPT / "killers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(results: list[Result]) -> None:
    rows = [asdict(one) | {"mutant": one.mutant._replace(code={})._asdict()} for one in results]
    (KEPT / "results.json").write_text(json.dumps(rows, indent=1))
    killers = {one.diff: one.by for one in results if one.outcome == "killed"}
    (KEPT / "killers.json").write_text(json.dumps(_load_killers() | killers, indent=1))


def report(results: list[Result]) -> int:
    """Print the table and the survivors, and return the exit code."""
    counted = [one for one in results if one.outcome != "equivalent"]
    score = Counter((one.mutant.file, one.mutant.kind, one.outcome) for one in counted)
    score += Counter(("total", one.mutant.kind, one.outcome) for one in counted)

    def killed_of(name: str, kind: str) -> tuple[int, int]:
        mine = {key: score[key] for key in score if key[:2] == (name, kind)}
        return mine.get((name, kind, "killed"), 0), sum(mine.values())

    print(f"\n{'':40} {'guards':>9} {'sample':>9}")
    for name in [*sorted({one.mutant.file for one in counted}), "total"]:
        figures = (killed_of(name, kind) for kind in ("guard", "sample"))
        print(f"{name:40} " + " ".join(f"{f'{killed}/{of}':>9}" for killed, of in figures))
    for one in counted:
        if one.outcome != "killed":
            print(f"\n{one.describe()}\n{one.diff}")
            print(*(f"    {name}" for name in one.tests[:SHOWN_TESTS]), sep="\n")
    outcomes = Counter(one.outcome for one in results)
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    (guards_killed, guards_all), (killed, of) = (
        killed_of("total", "guard"),
        killed_of("total", "sample"),
    )
    return int(guards_killed < guards_all or killed < SCORE_WANTED * of)


if __name__ == "__main__":
    sys.exit(main())
