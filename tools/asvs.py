"""Generates docs/asvs.md from the asvs markers on tests and asvs.toml: python -m tools.asvs."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/asvs.md"
REQUIREMENTS = Path(__file__).with_name("asvs.toml")
CHAPTERS = {
    "3": "V3 Web Frontend Security",
    "6": "V6 Authentication",
    "7": "V7 Session Management",
    "8": "V8 Authorization",
    "9": "V9 Self-contained Tokens",
    "10": "V10 OAuth and OIDC",
    "14": "V14 Data Protection",
    "16": "V16 Security Logging and Error Handling",
}
INTRODUCTION = """# OWASP ASVS

<!-- Written by python -m tools.asvs, from tools/asvs.toml and the tests marked with asvs. -->

How the service meets levels 1 and 2 of OWASP's Application Security Verification Standard 5.0.0.
The tables cover chapters V6 to V10 and V16, and the parts of V3 and V14 about headers, origins,
caches and the page at `/docs`. Of level 3, they have what is about second factors. `6.1.1` is
`v5.0.0-6.1.1` in the standard, paraphrased.

A requirement is met, as the tests in its row show, unless the row says **Does not apply** or
**Not met**. [security.md](security.md) explains the decisions. The service is neither an OAuth
authorization server nor an OAuth client. It accepts bearer tokens as an OAuth resource server does.
"""


def markdown() -> str:
    """Return the document, a table per chapter. Raises ValueError if markers and data disagree."""
    requirements = tomllib.loads(REQUIREMENTS.read_text(encoding="utf-8"))
    shown = defaultdict[str, list[str]](list)
    for id_, test in sorted(_marked()):
        if id_ not in requirements:
            raise ValueError(
                f"{test} is marked with {id_}, which {REQUIREMENTS.name} does not have"
            )
        shown[id_].append(f"`{test}`")
    tables = []
    for number, title in CHAPTERS.items():
        rows = [
            _row(id_, requirement, shown[id_])
            for id_, requirement in requirements.items()
            if id_.partition(".")[0] == number
        ]
        head = f"\n## {title}\n\n| id | level | requirement | shown by |\n|---|---|---|---|\n"
        tables.append(head + "".join(rows))
    return INTRODUCTION + "".join(tables)


def _marked() -> Iterator[tuple[str, str]]:
    """Yield each marked requirement with its test."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and (
                    ast.unparse(decorator.func) == "pytest.mark.asvs"
                ):
                    for argument in decorator.args:
                        test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                        yield ast.literal_eval(argument), test


def _row(id_: str, requirement: dict[str, Any], tests: list[str]) -> str:
    status, note = requirement.get("status"), requirement.get("note")
    if not tests and not note:
        raise ValueError(f"{id_}: mark a test, or say in {REQUIREMENTS.name} why there is none")
    words = " ".join(filter(None, (f"**{status.capitalize()}.**" if status else "", note)))
    shown = "<br>".join(filter(None, (words, *tests)))
    return f"| {id_} | {requirement['level']} | {requirement['requires']} | {shown} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(markdown(), encoding="utf-8")
