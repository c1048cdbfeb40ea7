"""Faults of PgBouncer in transaction mode."""

import asyncio
import signal

import asyncpg

from tests.faults.load import Load
from tests.faults.of_postgres import SESSIONS
from tests.faults.run import Fault
from tests.faults.stage import Stage

HELD_S = 3
MODES = ("pgbouncer",)


async def pgbouncer_is_restarted(stage: Stage, load: Load) -> None:
    assert stage.pooler is not None
    # At once. Newer releases wait for their clients after SIGTERM.
    await stage.pooler.end(signal.SIGQUIT)
    await stage.pooler.start()


async def pgbouncer_is_killed(stage: Stage, load: Load) -> None:
    assert stage.pooler is not None
    await stage.pooler.end(signal.SIGKILL)
    await asyncio.sleep(HELD_S)
    await stage.pooler.start()


async def pgbouncer_hangs(stage: Stage, load: Load) -> None:
    assert stage.pooler is not None
    stage.pooler.send(signal.SIGSTOP)
    await asyncio.sleep(HELD_S + 1)
    stage.pooler.send(signal.SIGCONT)


async def pgbouncer_is_paused(stage: Stage, load: Load) -> None:
    """Clients wait, as an operator has them do while PostgreSQL is restarted."""
    assert stage.pooler is not None
    await stage.pooler.execute("pause")
    await asyncio.sleep(1)
    await stage.postgres.stop()
    await stage.postgres.start()
    await stage.pooler.execute("resume")


async def pgbouncer_drops_its_connections(stage: Stage, load: Load) -> None:
    assert stage.pooler is not None
    await stage.pooler.execute("kill postgres")
    await asyncio.sleep(1)
    await stage.pooler.execute("resume postgres")


async def pgbouncer_connects_again(stage: Stage, load: Load) -> int:
    """By RECONNECT, which nobody notices."""
    assert stage.pooler is not None
    pids = f"select array_agg(pid) {SESSIONS}"
    before = await stage.postgres.value(pids)
    for _ in range(5):
        await stage.pooler.execute("reload")
        await stage.pooler.execute("reconnect")
        await asyncio.sleep(0.4)
    return len(set(await stage.postgres.value(pids)) - set(before))


async def others_take_all_of_pgbouncers_connections(stage: Stage, load: Load) -> None:
    """In transactions that stay open."""
    assert stage.pooler is not None
    arguments = stage.pooler.database.asyncpg_arguments()
    taken = [await asyncpg.connect(**arguments) for _ in range(20)]
    try:
        for connection in taken:
            await connection.execute("begin")
        await asyncio.sleep(HELD_S)
    finally:
        for connection in taken:
            connection.terminate()


FAULTS = [
    Fault(pgbouncer_is_restarted, modes=MODES, quick="pgbouncer"),
    Fault(pgbouncer_is_killed, modes=MODES, unready=True),
    Fault(pgbouncer_hangs, modes=MODES, unready=True),
    Fault(pgbouncer_is_paused, modes=MODES),
    Fault(pgbouncer_drops_its_connections, modes=MODES),
    Fault(pgbouncer_connects_again, modes=MODES, refusals=False),
    Fault(others_take_all_of_pgbouncers_connections, modes=MODES, unready=True),
]
