"""Output of commands: tables for people, JSON and tabs for programs, and progress."""

import contextlib
import json
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.live import Live

SHOW_AFTER_S = 1
FOLDED_MIN_WIDTH = 12
# Persian, Indic scripts and emoji need them, and they are harmless on a terminal.
_JOINERS = "\u200c\u200d"


def visible(value: object) -> str:
    """Return the value as text that is safe to print on a terminal.

    Users' text may contain escape sequences, line breaks or controls that change the reading
    direction. Each such character becomes an escape, such as ``\\x1b``.
    """
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def to_seconds(timestamp: str | None) -> str:
    """Cut an API timestamp to whole seconds; empty for None."""
    return "" if timestamp is None else f"{timestamp[:19]}Z"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, folded: Sequence[str] = ()
) -> None:
    """Print a table on a terminal, or tab-separated rows without a header in a pipe.

    On a narrow terminal, the columns in ``folded`` wrap. If that is not enough, the terminal breaks
    the lines, so that an id can still be copied whole.
    """
    texts = [[visible(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in texts:
            click.echo("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        if name in folded:
            longest = max((cell_len(row[number]) for row in texts), default=0)
            table.add_column(name, overflow="fold", min_width=min(FOLDED_MIN_WIDTH, longest))
        else:
            table.add_column(name, no_wrap=True)
    for row in texts:
        # Text takes [red] literally; a str would be markup.
        table.add_row(*map(Text, row))
    console = Console()
    unbounded = console.options.update(width=10_000)
    console.width = max(console.width, console.measure(table, options=unbounded).minimum)
    console.print(table)


def to_json(document: object, indent: int | None = None) -> str:
    """Return ASCII JSON: it fits every encoding, and users' text cannot control a terminal."""
    return json.dumps(document, indent=indent)


def print_json(document: object) -> None:
    click.echo(to_json(document, indent=2))


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, passed as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show ``what`` on stderr once the block takes longer than ``SHOW_AFTER_S``.

    Yields a function that changes the text. Shows nothing if stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    current, showing = [what], list["Live"]()

    def show() -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("dots")

        def render() -> Spinner:
            spinner.text = Text(current[0])
            return spinner

        live = Live(
            get_renderable=render,
            console=Console(stderr=True),
            transient=True,
            # stdout may be a file.
            redirect_stdout=False,
        )
        live.start()
        showing.append(live)

    def say(text: str) -> None:
        current[0] = text

    timer = threading.Timer(SHOW_AFTER_S, show)
    timer.daemon = True
    timer.start()
    try:
        yield say
    finally:
        timer.cancel()
        timer.join()
        for live in showing:
            live.stop()
