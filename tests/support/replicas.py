"""A primary with a standby, and an application that uses both."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from service.db.replica import REPLICA, Replica
from service.embedded import server as embedded
from service.settings import Database
from tests.support.clients import FAST, Client, StartApp
from tests.support.processes import connect
from tests.support.servers import running_server
from tests.support.standby import start_standby
from tests.support.waiting import eventually, eventually_blocking

# As by default, a commit is flushed before it is acknowledged, and so sent at once.
DURABLE = {**FAST, "synchronous_commit": "on"}


class Pair(NamedTuple):
    """A primary and its standby, with the directories of both."""

    primary: embedded.Server
    standby: embedded.Server
    directory: Path


@contextlib.contextmanager
def running_pair(directory: Path) -> Iterator[Pair]:
    """Run a migrated primary and its standby for the duration of the block."""
    (directory / "primary").mkdir(parents=True)
    with running_server(directory / "primary", options=DURABLE) as primary:
        standby = start_standby(primary, directory / "primary", directory / "standby")
        try:
            yield Pair(primary, standby, directory)
        finally:
            standby.stop()


async def start_with_replica(start_app: StartApp, pair: Pair, **changes: Any) -> Client:
    """Start an application on both servers, and wait until it uses the standby."""
    both = {"database": pair.primary.database, "replica_database": pair.standby.database}
    client = await start_app(**{**both, **changes})
    await eventually(lambda: replica_of(client).in_use)
    return client


def replica_of(client: Client) -> Replica:
    assert client.app is not None
    replica = client.app[REPLICA]
    assert replica is not None
    return replica


@contextlib.contextmanager
def replay_paused(standby: Database) -> Iterator[None]:
    """Have the standby replay nothing during the block."""
    with connect(standby) as conn:
        conn.execute("select pg_wal_replay_pause()")
        state = "select pg_get_wal_replay_pause_state()"
        eventually_blocking(lambda: conn.execute(state).fetchone()[0] == "paused")
        try:
            yield
        finally:
            conn.execute("select pg_wal_replay_resume()")
