"""Faults of the standby that serves lists and exports. Nobody notices: the primary does instead."""

import asyncio
import signal

from tests.faults import of_postgres
from tests.faults.load import Load
from tests.faults.run import Fault
from tests.faults.stage import Stage

HELD_S = 3
MODES = ("replica",)


async def the_replica_is_stopped_and_started(stage: Stage, load: Load) -> None:
    assert stage.standby is not None
    await stage.standby.stop()
    await asyncio.sleep(HELD_S)
    await stage.standby.start()


async def the_replica_hangs(stage: Stage, load: Load) -> None:
    assert stage.standby is not None
    stage.standby.send(signal.SIGSTOP)
    await asyncio.sleep(HELD_S)
    stage.standby.send(signal.SIGCONT)


async def the_network_to_the_replica_falls_silent(stage: Stage, load: Load) -> None:
    assert stage.second is not None
    stage.second.flowing.clear()
    await asyncio.sleep(HELD_S)
    stage.second.flowing.set()


async def connections_to_the_replica_are_reset_10_times_a_second(stage: Stage, load: Load) -> None:
    assert stage.second is not None
    for _ in range(10 * HELD_S):
        stage.second.reset_all()
        await asyncio.sleep(0.1)


async def the_replica_stops_replaying(stage: Stage, load: Load) -> int:
    """It has less and less of what was written."""
    assert stage.standby is not None
    await stage.standby.execute("select pg_wal_replay_pause()")
    await asyncio.sleep(HELD_S)
    written = await stage.postgres.value("select pg_current_wal_flush_lsn()::text")
    lags = f"select (pg_last_wal_replay_lsn() < '{written}'::pg_lsn)::int"
    behind: int = await stage.standby.value(lags)
    await stage.standby.execute("select pg_wal_replay_resume()")
    return behind


async def the_replica_is_promoted_by_mistake(stage: Stage, load: Load) -> int:
    """It has a history of its own from then on."""
    assert stage.standby is not None
    await stage.standby.execute("select pg_promote(true, 60)")
    await asyncio.sleep(HELD_S)
    alone: int = await stage.standby.value("select (not pg_is_in_recovery())::int")
    return alone


FAULTS = [
    Fault(
        the_replica_is_stopped_and_started,
        modes=MODES,
        refusals=False,
        unready=False,
        of_replica=True,
    ),
    Fault(
        the_replica_hangs,
        modes=MODES,
        refusals=False,
        unready=False,
        of_replica=True,
        quick="replica",
    ),
    Fault(
        the_network_to_the_replica_falls_silent,
        modes=MODES,
        refusals=False,
        unready=False,
        of_replica=True,
    ),
    Fault(
        connections_to_the_replica_are_reset_10_times_a_second,
        modes=MODES,
        refusals=False,
        unready=False,
        of_replica=True,
    ),
    Fault(the_replica_stops_replaying, modes=MODES, refusals=False, unready=False),
    Fault(
        the_replica_is_promoted_by_mistake,
        modes=MODES,
        refusals=False,
        unready=False,
        replica_returns=False,
    ),
    Fault(of_postgres.the_server_is_stopped_and_started, modes=MODES, unready=True),
    Fault(of_postgres.the_server_hangs, modes=MODES, unready=True),
    Fault(of_postgres.tables_are_rewritten, modes=MODES),
]
