"""A map of statements to the tests that cover them, kept between runs and updated."""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from coverage import CoverageData

from tests.mutants.guards import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef


class CoverageMap:
    """The covering tests of each line, and the seconds that each test takes."""

    def __init__(self, kept: Path, sources: list[Source]) -> None:
        self._sources = {source.file: source for source in sources}
        self.seconds: dict[str, float] = json.loads((kept / "state.json").read_text())["seconds"]
        data = CoverageData(str(kept / "coverage"))
        data.read()
        self._lines: dict[str, dict[int, set[str]]] = {source.file: {} for source in sources}
        for measured in data.measured_files():
            for file in [file for file in self._lines if measured.endswith(f"/{file}")]:
                for line, contexts in data.contexts_by_lineno(measured).items():
                    tests = {context.partition("|")[0] for context in contexts}
                    self._lines[file].setdefault(line, set()).update(tests)

    def tests(self, file: str, line: int) -> list[str]:
        """Return the passing tests that cover the statement, quickest first.

        Code that runs at import belongs to no single test. A function's head counts as covered by
        the tests of its body, and a constant by those of the lines that name it. Anything else is
        covered by the whole suite, starting with the tests of the same folder.
        """
        path = _statements_at(self._sources[file].tree, line)
        innermost = path[-1]
        if any(isinstance(statement, Function) for statement in path[:-1]):
            found = self._covering(file, _extent(innermost, line))
        elif isinstance(innermost, Function):
            found = self._covering(file, range(innermost.lineno + 1, _end(innermost) + 1))
        elif names := _assigned(innermost):
            found = self._naming(names)
        else:
            found = set()
        first = f"tests/{'/'.join(Path(file).parts[1:-1])}"
        if not found & set(self.seconds) and "" in self._covering(file, _extent(innermost, line)):
            return sorted(self.seconds, key=lambda name: (first not in name, self.seconds[name]))
        return sorted(found & set(self.seconds), key=lambda name: self.seconds[name])

    def _covering(self, file: str, lines: Iterable[int]) -> set[str]:
        return set().union(*(self._lines[file].get(line, ()) for line in lines))

    def _naming(self, names: list[str]) -> set[str]:
        word = re.compile(rf"\b({'|'.join(names)})\b")
        return set().union(
            *(
                self._covering(file, [number])
                for file, source in self._sources.items()
                for number, text in enumerate(source.lines, 1)
                if word.search(text)
            )
        )


def bring_up_to_date(kept: Path, root: Path, measure: Callable[..., int]) -> None:
    """Run the suite, or only the test files that changed since the last run."""
    files = sorted(file for file in root.glob("tests/**/test_*.py"))
    tests = {str(file.relative_to(root)): _hash(root, [file]) for file in files}
    code = [*root.glob("service/**/*.py"), *root.glob("migrations/*"), root / "pyproject.toml"]
    helpers = [*root.glob("tests/support/*.py"), *root.glob("tests/**/conftest.py")]
    state: dict[str, Any] = {"code": _hash(root, [*code, *helpers]), "tests": {}, "seconds": {}}
    if (kept / "state.json").exists():
        known = json.loads((kept / "state.json").read_text())
        if known["code"] == state["code"]:
            state = known
    changed = [file for file, digest in tests.items() if state["tests"].get(file) != digest]
    if not changed:
        return
    kept.mkdir(exist_ok=True)
    if not state["tests"]:
        (kept / "coverage").unlink(missing_ok=True)
    print(f"measuring the coverage of {len(changed)} test files", flush=True)
    durations = kept / "durations.json"
    durations.unlink(missing_ok=True)
    code_of_pytest = measure(
        *(
            "--timeout=600",
            "--cov",
            "--cov-append",
            "--cov-context=test",
            "--cov-report=",
            *changed,
        ),
        COVERAGE_FILE=str(kept / "coverage"),
        MUTANTS_DURATIONS=str(durations),
    )
    if code_of_pytest not in (0, 1) or not durations.exists():
        raise SystemExit(f"pytest ended with {code_of_pytest}: nothing was measured")
    earlier = {
        name: seconds
        for name, seconds in state["seconds"].items()
        if name.partition("::")[0] in tests and name.partition("::")[0] not in changed
    }
    measured = json.loads(durations.read_text())
    # A file with a failed test is measured again next time; the failed test kills no mutant.
    failed = {name.partition("::")[0] for name in measured["failed"]}
    known_tests = {file: digest for file, digest in tests.items() if file not in failed}
    state |= {"tests": known_tests, "seconds": earlier | measured["passed"]}
    (kept / "state.json").write_text(json.dumps(state))


def _hash(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _statements_at(tree: ast.Module, line: int) -> list[ast.stmt]:
    """Return the statements around the line, outermost first."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and _start(node) <= line <= _end(node)
    ]
    return sorted(around, key=lambda node: (_start(node), -_end(node)))


def _extent(statement: ast.stmt, line: int) -> range:
    """Return the statement's lines; for a compound statement, its head or the line alone."""
    body = getattr(statement, "body", None)
    if not body:
        return range(_start(statement), _end(statement) + 1)
    head = range(_start(statement), max(_start(body[0]), statement.lineno + 1))
    return head if line in head else range(line, line + 1)


def _start(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _assigned(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of a module assigns."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
