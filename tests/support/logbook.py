"""The log of the whole run, and what a test wants to see of it."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.logs import write_events

_files: list[Callable[[bytes], object]] = []


def log_into(path: Path) -> None:
    """Append all that the service logs, in any test of any worker, to one file, as JSON."""
    _files.append(path.open("ab", buffering=0).write)
    write_events(_files[0], as_json=True, level=logging.DEBUG)


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """The events that are logged meanwhile, as a reader of the JSON lines finds them."""
    events: list[dict[str, Any]] = []

    def write(line: bytes) -> None:
        _files[0](line)
        events.append(json.loads(line))

    write_events(write, as_json=True, level=logging.DEBUG)
    try:
        yield events
    finally:
        write_events(_files[0], as_json=True, level=logging.DEBUG)
