"""What commands print: tables for people, JSON and tabs for programs, and what is waited for."""

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

PATIENCE_S = 1
FOLDED_MIN_WIDTH = 12
# They belong to Persian, Indic scripts and emoji, and move nothing on a terminal.
_JOINERS = "\u200c\u200d"


def visible(value: object) -> str:
    """The value as text in which everything can be seen, and nothing commands a terminal.

    What users wrote may hold escape sequences, line ends, or controls that turn the reading
    direction: each such character is shown as its escape, such as ``\\x1b``.
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
    """A timestamp of the API without its microseconds."""
    return "" if timestamp is None else f"{timestamp[:19]}Z"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, folded: Sequence[str] = ()
) -> None:
    """A table at a terminal; in a pipe a line for each row, tabs between whole values, no header.

    Where the terminal is too narrow, the columns in ``folded`` go over several lines. Where that is
    not enough, it is the terminal that breaks the lines: an id stays whole for those who copy it.
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
        # As Text, in which [red] is no markup.
        table.add_row(*map(Text, row))
    console = Console()
    unbounded = console.options.update(width=10_000)
    console.width = max(console.width, console.measure(table, options=unbounded).minimum)
    console.print(table)


def to_json(document: object, indent: int | None = None) -> str:
    """JSON in ASCII: any encoding takes it, and no terminal is commanded by what users wrote."""
    return json.dumps(document, indent=indent)


def print_json(document: object) -> None:
    click.echo(to_json(document, indent=2))


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is waited for, at a terminal, once that takes longer than a second.

    Yields a function that says it anew, when it has become something else.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    said, showing = [what], list["Live"]()

    def show() -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("dots")

        def look() -> Spinner:
            spinner.text = Text(said[0])
            return spinner

        live = Live(
            get_renderable=look,
            console=Console(stderr=True),
            transient=True,
            # stdout may be a file: what is printed there is none of the terminal's business.
            redirect_stdout=False,
        )
        live.start()
        showing.append(live)

    def say(text: str) -> None:
        said[0] = text

    timer = threading.Timer(PATIENCE_S, show)
    timer.daemon = True
    timer.start()
    try:
        yield say
    finally:
        timer.cancel()
        timer.join()
        for live in showing:
            live.stop()
