"""Commands run as an operator would, in forks to save startup time."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from service.settings import Database
from tests.support.forks import run_in_fork
from tests.support.processes import environment, url_of


class Result(NamedTuple):
    """The result of a command whose stdout and stderr were not terminals."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        assert (self.code, self.stderr) == (0, "")
        return json.loads(self.stdout)

    def rows(self) -> list[list[str]]:
        assert (self.code, self.stderr) == (0, "")
        return [line.split("\t") for line in self.stdout.splitlines()]


def run_all(
    cwd: Path,
    variables: dict[str, str],
    *commands: str | list[str],
    read: Sequence[str] = (),
) -> list[Result]:
    """Run each command, given as a string to split at blanks or as a list of words.

    As in a shell, words such as ``PORT=0`` before a command set variables for it alone. ``read``
    has the stdin of each command.
    """
    words = [each.split() if isinstance(each, str) else each for each in commands]
    texts = [*read, *[""] * (len(words) - len(read))]
    tasks = [(*_split_variables(each), text) for each, text in zip(words, texts, strict=True)]
    results = [Result(*each) for each in run_in_fork(cwd, environment(**variables), tasks)]
    for result in results:
        assert "Traceback" not in result.stderr
        if result.code:
            assert result.stderr.startswith("shinkei: ")
            assert result.stderr.count("\n") == 1, result.stderr
    return results


def _split_variables(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split the variables before a command from the command."""
    variables = {}
    while words and (found := re.fullmatch("([A-Z_]+)=(.*)", words[0])):
        variables[found[1]] = found[2]
        words = words[1:]
    return variables, words


class Shell:
    """Runs commands on a test's database; see ``run_all``."""

    def __init__(self, database: Database, cwd: Path) -> None:
        self.variables, self.cwd = url_of(database), cwd

    async def __call__(self, *commands: str | list[str], read: Sequence[str] = ()) -> list[Result]:
        def run_them() -> list[Result]:
            return run_all(self.cwd, self.variables, *commands, read=read)

        return await asyncio.to_thread(run_them)
