"""DATA_DIR itself: its permissions, its lock, and what its disk has to offer."""

import contextlib
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from service.exceptions import StartError

# What Shinkei keeps in DATA_DIR. A directory of this name may have been there before.
_FILES = ("secret_key", "postgres.lock", "postgres.log", "postgres_password", "postgres_port")
_DIRECTORIES = ("postgres", "mail")
# Kept in the lock file, because permissions do not tell who created a directory.
_CREATED = "Shinkei created this directory and keeps it private.\n"
# What errno and PostgreSQL call a full disk and an exhausted quota.
_FULL = ("No space left on device", "Disk quota exceeded")
# A new database and its first write-ahead log.
NEEDED_BYTES = 100 * 1024**2
# With less, PostgreSQL cannot even log why it does not start.
FULL_BYTES = 64 * 1024


def open_lock(data_dir: Path) -> IO[str]:
    """Create ``data_dir`` if it is missing, make it private again, and open its lock file.

    If Shinkei did not create the directory, which may be somebody's home, it only touches the files
    that are certainly its own. Raises StartError.
    """
    try:
        created = _create(data_dir)
        lock = (data_dir / "postgres.lock").open("a+")
        if created:
            lock.write(_CREATED)
            lock.flush()
        lock.seek(0)
        for name in _FILES:
            _make_private(data_dir / name)
        if _CREATED in lock.read():
            for name in _DIRECTORIES:
                _make_private(data_dir / name)
            data_dir.chmod(0o700)
    except OSError as error:
        reason = explain_space(data_dir, str(error.strerror))
        raise StartError(f"DATA_DIR {data_dir}: cannot be written ({reason})") from None
    return lock


def _create(data_dir: Path) -> bool:
    """Create the directory, and return whether it was missing."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        data_dir.mkdir()
    except FileExistsError:
        return False
    return True


def _make_private(path: Path) -> None:
    """Take away other users' permissions, and those below a directory that others could enter."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return
    path.chmod(mode & stat.S_IRWXU)
    if stat.S_ISDIR(mode):
        for child in path.iterdir():
            _make_private(child)


@contextlib.contextmanager
def disk_errors(data_dir: Path) -> Iterator[None]:
    """Turn an OSError of a file in ``data_dir`` into a StartError with the reason."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = explain_space(data_dir, f"{where}{error.strerror}")
        raise StartError(f"DATA_DIR {data_dir}: {reason}") from error


def explain_space(data_dir: Path, reason: str) -> str:
    """Add to ``reason`` how much space there is and how much is needed, if the disk is full.

    A program may have failed without a word, because its log is on the full disk too.
    """
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    named = any(full in reason for full in _FULL)
    if not named and free_bytes >= FULL_BYTES:
        return reason
    full = "" if named else f"{_FULL[0]}; "
    free, needed = (f"{size / 1024**2:.0f} MiB" for size in (free_bytes, NEEDED_BYTES))
    return f"{reason}; {full}{data_dir} has {free} free and needs about {needed}"
