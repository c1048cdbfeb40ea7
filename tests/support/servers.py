"""A PostgreSQL of its own for a test that stops it, or needs another one."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.db import migrations
from service.embedded import server as embedded
from tests.support.clients import FAST
from tests.support.waiting import DEADLINE_S


@contextlib.contextmanager
def running_server(
    data_dir: Path, *, port: int = 0, options: Mapping[str, str] = FAST
) -> Iterator[embedded.Server]:
    """Run a migrated server for the duration of the block."""
    server = embedded.start(data_dir, port=port, options=options)
    try:
        migrations.apply_pending(server.database, DEADLINE_S)
        yield server
    finally:
        server.stop()
