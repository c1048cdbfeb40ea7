"""When the periodic jobs run."""

from itertools import pairwise

from service.jobs.periodic import start_offsets_s
from tests.support.clients import StartApp
from tests.support.factories import register
from tests.support.logbook import logged


async def test_jobs_do_not_all_start_with_the_application(start_app: StartApp) -> None:
    with logged() as events:
        # Every statement is slow enough to be logged.
        client = await start_app(slow_query_ms=0.0001, jobs_start_within_s=1e4)
        await register(client)
    started = [event for event in events if event.get("query") == "jobs.run_alone"]
    assert [event["statement"] for event in started].count("BEGIN;") <= 1


def test_jobs_start_apart() -> None:
    offsets = start_offsets_s(9, 10)
    assert offsets[0] >= 0
    assert offsets[-1] < 10
    assert all(later - earlier > 0.5 for earlier, later in pairwise(offsets))


def test_jobs_of_processes_that_start_together_start_apart() -> None:
    assert start_offsets_s(1, 10) != start_offsets_s(1, 10)
