"""Behaviour that all commands share: start, failures, output and completion."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from service.__main__ import _explain
from service.commands import COMMANDS, EXIT_CODES, shinkei
from service.commands.output import visible
from tests.support.clients import SECRET_KEY
from tests.support.processes import (
    SHINKEI,
    Terminal,
    environment,
    reserved_port,
    run,
    run_command,
    run_python,
    started,
)
from tests.support.shell import run_all
from tests.support.waiting import DEADLINE_S


def test_help_of_every_command_imports_no_heavy_library(tmp_path: Path) -> None:
    """Completion and ``--help`` must stay fast, whatever a command needs to run."""
    context = click.Context(shinkei, info_name="shinkei")
    assert shinkei.list_commands(context) == list(COMMANDS)
    script = """
import sys
from service.commands import COMMANDS, shinkei
for arguments in (["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
    shinkei.main(arguments, prog_name="shinkei", standalone_mode=False)
heavy = {"aiohttp", "asyncpg", "marshmallow", "rich", "cryptography"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    result = run_python(script, cwd=tmp_path)
    assert result.stderr == ""
    assert "2    invalid setting or argument" in EXIT_CODES
    assert EXIT_CODES.removeprefix("\b\n").replace("\n", "\n  ") in result.stdout
    for name in COMMANDS:
        assert f"Usage: shinkei {name} " in result.stdout


def test_failures_print_one_line(tmp_path: Path) -> None:
    with reserved_port() as port:
        variables = {
            "DATABASE_URL": f"postgresql://u:hush@127.0.0.1:{port}/n",
            "SECRET_KEY": SECRET_KEY,
            "DB_CONNECT_TIMEOUT_S": "0.1",
        }
        unknown, group, option, unreachable, status, nothing = run_all(
            tmp_path,
            variables,
            "user",
            "users nonsense",
            "keys list --nonsense",
            "users list",
            "migrate --status --json",
            "openapi --output /proc/nowhere/file",
        )
    assert unknown == (
        2,
        "",
        "shinkei: No such command 'user'. See shinkei --help.\n",
    )
    assert (group.code, option.code) == (2, 2)
    assert (unreachable.code, status.code, nothing.code) == (1, 1, 1)
    assert f"127.0.0.1:{port}, database n, as user u: connection refused" in unreachable.stderr
    assert nothing.stderr == "shinkei: /proc/nowhere/file: No such file or directory\n"


def test_missing_command_shows_the_help(tmp_path: Path) -> None:
    for arguments in ([], ["users"]):
        result = run(*arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("Usage: shinkei ")


def test_internal_error_is_one_line_without_its_message() -> None:
    try:
        raise KeyError("hush")
    except KeyError as error:
        line, code = _explain(error)
    assert code == 1
    assert line.startswith(f"shinkei: internal error: KeyError at {__file__}:")
    assert "hush" not in line


def test_ctrl_c_prints_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        url = f"postgresql://u:hush@127.0.0.1:{silent.getsockname()[1]}/n"
        env = environment(DATABASE_URL=url, SECRET_KEY=SECRET_KEY)
        with started(*SHINKEI, "users", "list", cwd=tmp_path, env=env) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, *output) == (130, "", "shinkei: interrupted\n")


@pytest.mark.parametrize("arguments", [["--version"], ["openapi"]])
def test_closed_pipe_and_full_disk_exit_with_code_1(tmp_path: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for stdout, stderr in (
        (writing, ""),
        (os.open("/dev/full", os.O_WRONLY), "shinkei: output: No space left on device\n"),
    ):
        result = run_command(*SHINKEI, *arguments, cwd=tmp_path, env=environment(), stdout=stdout)
        os.close(stdout)
        assert (result.returncode, result.stderr) == (1, stderr)


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "shown"),
    [
        ("--version", "<&- >&- 2>&-", 0, ""),
        ("nonsense", ">&-", 2, "shinkei: No such command 'nonsense'. See shinkei --help.\n"),
        ("nonsense", "<&- >&- 2>&-", 2, ""),
        ("users create a@example.com", "<&-", 2, "shinkei: password: Must not be empty.\n"),
        ("users create a@example.com", "<&- 2>&-", 2, ""),
    ],
)
def test_closed_streams_are_as_good_as_the_null_device(
    arguments: str, closed: str, code: int, shown: str, tmp_path: Path
) -> None:
    command = ("sh", "-c", f'exec "$@" {closed}', "sh", *SHINKEI, *arguments.split())
    result = run_command(*command, cwd=tmp_path, env=environment())
    assert (result.returncode, result.stdout, result.stderr) == (code, "", shown)


def test_password_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    script = 'exec "$@" 0> /dev/null'
    command = ("sh", "-c", script, "sh", *SHINKEI, "create-admin", "--email", "a@example.com")
    result = run_command(*command, cwd=tmp_path, env=environment())
    assert result.returncode == 2
    assert result.stderr.startswith("shinkei: password: cannot be read: ")
    assert result.stderr.count("\n") == 1


def test_password_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    script = "printf '\\377\\n' | exec \"$@\""
    command = ("sh", "-c", script, "sh", *SHINKEI, "create-admin", "--email", "a@example.com")
    result = run_command(*command, cwd=tmp_path, env=environment(PYTHONIOENCODING="utf-8:strict"))
    assert (result.returncode, result.stderr) == (2, "shinkei: password: expected text in utf-8\n")


def test_output_survives_an_encoding_that_cannot_hold_it(tmp_path: Path) -> None:
    result = run("completion", "bash", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = """
eval "$(shinkei completion bash)"
complete_words() {
  COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shinkei_completion shinkei
  echo "${COMPREPLY[@]}"
}
complete_words shinkei us
complete_words shinkei users s
complete_words shinkei users list --cre
complete_words shinkei users set-role ada@example.com a
complete_words shinkei audit l
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = run_command("bash", "-c", script, cwd=tmp_path, env=environment(PATH=path))
    assert result.stdout.splitlines() == [
        "users",
        "set-role show suspend",
        "--created-after --created-before",
        "admin",
        "list",
    ]


def test_completion_supports_zsh_and_fish_but_not_csh(tmp_path: Path) -> None:
    zsh, fish, other = run_all(tmp_path, {}, "completion zsh", "completion fish", "completion csh")
    assert "#compdef shinkei" in zsh.stdout
    assert "_SHINKEI_COMPLETE=fish_complete" in fish.stdout
    assert other.code == 2


def test_long_waits_are_reported_at_a_terminal(tmp_path: Path) -> None:
    """Progress is shown after ``SHOW_AFTER_S``, and only on stderr."""
    script = """
import sys
from service.commands import output
output.SHOW_AFTER_S = 0.05
with output.progress("waiting for [the] moon") as say:
    sys.stdin.readline()
    say("waiting for the sun")
    sys.stdin.readline()
print("done")
"""
    command = (sys.executable, "-c", script)
    env = environment(TERM="xterm")
    with (
        contextlib.closing(Terminal()) as terminal,
        started(
            *command, cwd=tmp_path, env=env, stdin=subprocess.PIPE, stderr=terminal.theirs
        ) as process,
    ):
        terminal.hand_over()
        assert process.stdin is not None
        for text in ("waiting for [the] moon", "waiting for the sun"):
            terminal.read_until(text)
            process.stdin.write("\n")
            process.stdin.flush()
        stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert stdout == "done\n"


def test_logged_tracebacks_show_no_locals(tmp_path: Path) -> None:
    """``rich``, which can print them and is slow to import, is not imported."""
    script = """
import logging
import sys
import service.app
from service.telemetry.logs import configure_logging
from service.settings import Settings
assert not [name for name in sys.modules if name.startswith("rich")]
configure_logging(Settings(log_format="console"))
def fail(password):
    raise ValueError(len(password))
try:
    fail("".join(["hu", "sh"]))
except ValueError:
    logging.getLogger("service.tests").exception("failed")
"""
    result = run_python(script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "ValueError: 4" in result.stderr
    assert "hush" not in result.stderr


def test_visible_escapes_control_characters() -> None:
    assert visible(None) == ""
    assert visible("plain Zoë 山") == "plain Zoë 山"
    assert visible("a\tb\rc\x7f\u2028\ud800") == "a\\tb\\rc\\x7f\\u2028\\ud800"
