"""``shinkei`` and ``python -m service``: run a command, and report a failure in one line."""

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run the command. A failure prints one line on stderr, never a traceback."""
    _open_closed_streams()
    code: object
    try:
        from service.commands import shinkei

        code = shinkei.main(prog_name="shinkei", standalone_mode=False)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        line, code = _explain(error)
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr)  # noqa: T201
    try:
        sys.stdout.flush()
    except OSError:
        # The reader is gone or the disk is full. Python would flush again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)  # type: ignore[arg-type]


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller has closed.

    Python has no object for such a stream, and the next file or socket would get its descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free descriptor, which is the stream's. Child processes get it too.
            fd = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, mode))  # noqa: PTH123, SIM115


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the text to print and the exit code."""
    # Imported here and below so that only failures pay for it.
    import click

    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "shinkei: interrupted", 130
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), 2
    if isinstance(error, click.UsageError):
        return f"shinkei: {_with_help(error)}", 2
    line, code = _explain_ours(error)
    return f"shinkei: {line}", code


def _with_help(error: "click.UsageError") -> str:
    message = " ".join(error.format_message().split())
    return f"{message} See {error.ctx.command_path} --help." if error.ctx else message


def _explain_ours(error: BaseException) -> tuple[str, int]:
    import asyncpg

    from service.exceptions import ArgumentError, DatabaseUnavailable, StartError
    from service.http.problems import Problem
    from service.settings import SettingsError

    match error:
        case SettingsError() | ArgumentError():
            return str(error), 2
        case Problem(status=400 | 422, errors=[wrong, *_]):
            return f"{wrong.pointer.lstrip('#?/')}: {wrong.detail}", 2
        case Problem(status=400 | 422):
            return error.detail, 2
        case StartError() | Problem():
            return str(error), 1
        case DatabaseUnavailable():
            return "the database is unavailable; try again later", 1
        case asyncpg.SyntaxOrAccessError():
            return f"PostgreSQL refused a statement: {error.message}", 1
        case OSError():
            return f"{error.filename or 'output'}: {error.strerror}", 1
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error: {type(error).__name__} at {where.filename}:{where.lineno}", 1


if __name__ == "__main__":
    main()
