"""Control over the threads that hash passwords."""

import contextlib
import threading
from collections.abc import Iterator

from service.auth.passwords import Hasher


@contextlib.contextmanager
def busy(hasher: Hasher) -> Iterator[None]:
    """Occupy every hashing thread for the duration of the block."""
    go_on = threading.Event()
    for _ in range(hasher.workers):
        hasher.executor.submit(go_on.wait)
    try:
        yield
    finally:
        go_on.set()
