"""Commands run as an operator would, several in one process, as each start costs half a second."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import environment

_DRIVER = """
import contextlib, io, json, sys
from service.__main__ import main
results = []
for arguments in json.load(sys.stdin):
    sys.argv = ["shinkei", *arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    for file in (out, err):
        file.flush()
    results.append([code, *(file.buffer.getvalue().decode() for file in (out, err))])
json.dump(results, sys.stdout)
"""


class Result(NamedTuple):
    """What a command ended with. Neither stdout nor stderr was a terminal."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        assert (self.code, self.stderr) == (0, "")
        return json.loads(self.stdout)

    def rows(self) -> list[list[str]]:
        assert (self.code, self.stderr) == (0, "")
        return [line.split("\t") for line in self.stdout.splitlines()]


def run_all(cwd: Path, variables: dict[str, str], *commands: str | list[str]) -> list[Result]:
    """Run each command, its words parted by blanks, or as they are in a list."""
    words = [each.split() if isinstance(each, str) else each for each in commands]
    ended = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        cwd=cwd,
        env=environment(**variables),
        input=json.dumps(words),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = [Result(*result) for result in json.loads(ended.stdout)]
    for result in results:
        assert "Traceback" not in result.stderr
        if result.code:
            assert result.stderr.startswith("shinkei: ")
            assert result.stderr.count("\n") == 1, result.stderr
    return results
