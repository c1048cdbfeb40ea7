"""The log of the whole run, and the part that a test inspects."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.telemetry.logs import JsonFormatter, record_in_context

OURS = logging.getLogger("service")


class _Lines(logging.Handler):
    """Passes each formatted line, newline included, to ``write`` in one piece."""

    def __init__(self, write: Callable[[bytes], object], formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(f"{self.format(record)}\n".encode())


def log_into(path: Path) -> None:
    """Append everything logged in any test of any worker to one file, as JSON."""
    logging.setLogRecordFactory(record_in_context)
    OURS.setLevel(logging.DEBUG)
    file = path.open("ab", buffering=0)
    logging.getLogger().addHandler(_Lines(file.write, JsonFormatter()))


@contextlib.contextmanager
def attached(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def written(formatter: logging.Formatter) -> Iterator[list[bytes]]:
    """Collect the service's formatted log lines during the block, and write them nowhere else.

    Pytest's report cannot hold everything that a test logs, such as lone surrogates.
    """
    pieces: list[bytes] = []
    OURS.propagate = False
    with attached(OURS, _Lines(pieces.append, formatter)):
        yield pieces
    OURS.propagate = True


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collect the service's events during the block, parsed from their JSON lines."""
    events: list[dict[str, Any]] = []
    lines = _Lines(lambda line: events.append(json.loads(line)), JsonFormatter())
    with attached(OURS, lines):
        yield events


def refusals_in(events: list[dict[str, Any]]) -> list[str | None]:
    """Return the account of each refused proof, or None for one of nobody's."""
    return [event["account_id"] for event in events if event["event"] == "sign-in refused"]
