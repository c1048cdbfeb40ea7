"""Faults of the network between the service and PostgreSQL."""

import asyncio
import random

from tests.faults.load import Load
from tests.faults.run import Fault
from tests.faults.stage import Stage

HELD_S = 3
# A transaction of the control client takes three round trips, and the client waits for half a
# second.
SLOW_S = 0.1


async def the_network_falls_silent(stage: Stage, load: Load) -> None:
    """Nothing is closed, and what was sent arrives in the end."""
    stage.proxy.flowing.clear()
    await asyncio.sleep(HELD_S + 1)
    stage.proxy.flowing.set()


async def the_network_falls_silent_for_10_s(stage: Stage, load: Load) -> None:
    stage.proxy.flowing.clear()
    await asyncio.sleep(10)
    stage.proxy.flowing.set()


async def the_network_falls_silent_and_resets(stage: Stage, load: Load) -> None:
    """What was sent is lost."""
    stage.proxy.flowing.clear()
    await asyncio.sleep(HELD_S)
    stage.proxy.reset_all()
    stage.proxy.flowing.set()


async def a_round_trip_takes_200_ms_more_or_less(stage: Stage, load: Load) -> None:
    stage.proxy.delay_s = stage.proxy.jitter_s = SLOW_S
    await asyncio.sleep(HELD_S + 3)
    stage.proxy.delay_s = stage.proxy.jitter_s = 0


async def connections_are_reset(stage: Stage, load: Load) -> None:
    stage.proxy.reset_all()
    await asyncio.sleep(1)


async def connections_are_reset_10_times_a_second(stage: Stage, load: Load) -> None:
    for _ in range(10 * HELD_S):
        stage.proxy.reset_all()
        await asyncio.sleep(0.1)


async def connections_are_reset_while_round_trips_take_100_ms(stage: Stage, load: Load) -> None:
    stage.proxy.delay_s = 0.05
    stage.proxy.reset_all()
    await asyncio.sleep(HELD_S)
    stage.proxy.delay_s = 0


async def connections_are_refused(stage: Stage, load: Load) -> None:
    stage.proxy.refuses = True
    stage.proxy.reset_all()
    await asyncio.sleep(HELD_S)
    stage.proxy.refuses = False


async def connections_are_cut_in_the_middle_of_a_response(stage: Stage, load: Load) -> None:
    for _ in range(10 * HELD_S):
        stage.proxy.resets_after_bytes = random.uniform(1_000, 4_000)
        await asyncio.sleep(0.1)
    stage.proxy.resets_after_bytes = float("inf")


async def responses_to_commits_are_lost(stage: Stage, load: Load) -> int:
    """PostgreSQL has done what it was asked for, and nobody learns of it."""
    before = stage.proxy.lost_commits
    stage.proxy.loses_commits = 0.3
    await asyncio.sleep(HELD_S)
    stage.proxy.loses_commits = 0
    return stage.proxy.lost_commits - before


FAULTS = [
    Fault(the_network_falls_silent, unready=True, quick="pgbouncer"),
    Fault(the_network_falls_silent_for_10_s, unready=True),
    Fault(the_network_falls_silent_and_resets, unready=True),
    Fault(a_round_trip_takes_200_ms_more_or_less),
    Fault(connections_are_reset),
    Fault(connections_are_reset_10_times_a_second),
    Fault(connections_are_reset_while_round_trips_take_100_ms),
    Fault(connections_are_refused, unready=True),
    Fault(connections_are_cut_in_the_middle_of_a_response),
    Fault(responses_to_commits_are_lost, quick="direct"),
]
