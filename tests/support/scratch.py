"""Directories of a run, which the next run removes if it was killed."""

import os
import shutil
import tempfile
from pathlib import Path

# Several times what a run needs for its databases and the WAL.
MEMORY_ENOUGH_BYTES = 2 * 2**30
# Prefix of the directories; the id of their process follows.
PREFIX = "shinkei-tests-"


def make_directory(parent: Path | None = None) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))


def find_memory() -> Path | None:
    """Return an in-memory directory if it has room: databases are created faster there."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_ENOUGH_BYTES
    return memory if enough and os.access(memory, os.W_OK) else None


def remove_leftovers() -> None:
    """Remove the directories of runs that were killed."""
    for parent in filter(None, (find_memory(), Path(tempfile.gettempdir()))):
        for path in parent.glob(f"{PREFIX}*"):
            pid = path.name.removeprefix(PREFIX).partition("-")[0]
            if not pid.isdecimal() or not Path("/proc", pid).exists():
                shutil.rmtree(path, ignore_errors=True)
