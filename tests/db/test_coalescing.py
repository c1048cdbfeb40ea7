"""Reads that share a query: what each of them sees, and what happens if one fails."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.db import coalescing
from service.db.coalescing import BATCH_MAX, BATCHES_MAX, Coalesced
from service.db.connection import Connection
from service.exceptions import DatabaseUnavailable
from tests.support.clients import Client, StartApp, pool_of
from tests.support.factories import assert_problem, register
from tests.support.waiting import DEADLINE_S, eventually

ME = "/api/v1/users/me"


class Gate:
    """A query that records its keys and waits until the test opens it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.opened = asyncio.Event()
        self.error: Exception | None = None

    async def find(self, conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        self.batches.append(list(keys))
        await self.opened.wait()
        if self.error:
            raise self.error
        rows = await conn.fetch("select key from unnest($1::int[]) as key where key > 0", keys)
        return {row["key"]: f"row {row['key']}" for row in rows}

    async def until_called(self, times: int) -> None:
        await eventually(lambda: len(self.batches) >= times)


async def let_queued_queries_run(client: Client) -> None:
    """Let queries queued earlier have a connection first; the pool serves them in order."""
    for _ in range(5):
        await pool_of(client).fetchval("select 1")


async def test_read_never_starts_before_its_request(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads requested during a query wait for the next one, even for the same key."""
    assert client.app is not None
    monkeypatch.setattr(coalescing, "NEXT_BATCH_AFTER_S", DEADLINE_S)
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    first = asyncio.create_task(coalesced.find(1))
    await gate.until_called(1)
    late = [asyncio.create_task(coalesced.find(key)) for key in (1, 2, 1, -1)]
    await let_queued_queries_run(client)
    assert gate.batches == [[1]]
    gate.opened.set()
    assert await first == "row 1"
    assert await asyncio.gather(*late) == ["row 1", "row 2", "row 1", None]
    assert [sorted(batch) for batch in gate.batches] == [[1], [-1, 1, 2]]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every query count as hanging as soon as it runs."""
    monkeypatch.setattr(coalescing, "NEXT_BATCH_AFTER_S", 0)


@pytest.mark.usefixtures("impatient")
async def test_hanging_query_does_not_delay_other_reads(client: Client) -> None:
    """Other batches run concurrently, one after another, and never more than the limit."""
    assert client.app is not None
    hanging, healthy = Gate(), Gate()
    healthy.opened.set()

    async def find(conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        return await (hanging if 13 in keys else healthy).find(conn, keys)

    coalesced = Coalesced(client.app, find)
    stuck = [asyncio.create_task(coalesced.find(13))]
    await hanging.until_called(1)
    for key in range(1, 6):
        assert await coalesced.find(key) == f"row {key}"
    assert [key for batch in healthy.batches for key in batch] == [1, 2, 3, 4, 5]
    stuck.append(asyncio.create_task(coalesced.find(13)))
    await hanging.until_called(BATCHES_MAX)
    waiting = asyncio.create_task(coalesced.find(6))
    await let_queued_queries_run(client)
    assert not waiting.done()
    assert len(healthy.batches) == 5
    hanging.opened.set()
    assert await asyncio.gather(*stuck, waiting) == ["row 13", "row 13", "row 6"]


@pytest.mark.usefixtures("impatient")
async def test_keys_beyond_a_full_hanging_batch_are_not_delayed(client: Client) -> None:
    """No later read arrives to notice the hang: all keys are requested while no batch can start."""
    assert client.app is not None
    first, second, full, healthy = (Gate() for _ in range(4))
    healthy.opened.set()
    keys = range(1, BATCH_MAX + 2)

    async def find(conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        gate = {1001: first, 1002: second, 1: full}.get(keys[0], healthy)
        return await gate.find(conn, keys)

    coalesced = Coalesced(client.app, find)
    stuck = []
    for key, gate in ((1001, first), (1002, second)):
        stuck.append(asyncio.create_task(coalesced.find(key)))
        await gate.until_called(1)
    await let_queued_queries_run(client)
    *taken, left = [asyncio.create_task(coalesced.find(key)) for key in keys]
    await asyncio.sleep(0)
    first.opened.set()
    await full.until_called(1)
    await let_queued_queries_run(client)
    second.opened.set()
    assert await left == f"row {keys[-1]}"
    assert not any(task.done() for task in taken)
    full.opened.set()
    assert await asyncio.gather(*taken, *stuck) == [
        *(f"row {key}" for key in keys[:-1]),
        "row 1001",
        "row 1002",
    ]


async def test_batches_are_bounded_and_serve_the_oldest_reads_first(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    wanted = list(range(1, 3 * BATCH_MAX + 2))
    tasks = [asyncio.create_task(coalesced.find(key)) for key in wanted]
    await gate.until_called(1)
    gate.opened.set()
    assert await asyncio.gather(*tasks) == [f"row {key}" for key in wanted]
    assert [key for batch in gate.batches for key in batch] == wanted
    assert max(len(batch) for batch in gate.batches) == BATCH_MAX


async def test_cancelling_one_read_does_not_affect_the_others(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    tasks = [asyncio.create_task(coalesced.find(key)) for key in (1, 1, 2)]
    await gate.until_called(1)
    tasks[0].cancel()
    gate.opened.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["row 1", "row 2"]


async def test_error_reaches_every_caller_and_the_next_read_succeeds(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    gate.error = OSError("gone")
    tasks = [asyncio.create_task(coalesced.find(key)) for key in (1, 2, 3)]
    await gate.until_called(1)
    tasks[0].cancel()
    gate.opened.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[1:]] == [DatabaseUnavailable] * 2
    gate.error = None
    assert await coalesced.find(1) == "row 1"


async def test_pool_timeout_refuses_all_waiting_reads_together(start_app: StartApp) -> None:
    """Reads that arrived later are refused too, instead of waiting for another turn."""
    client = await start_app(db_acquire_timeout_s=0.5)
    assert client.app is not None
    pool = pool_of(client)
    coalesced = Coalesced(client.app, Gate().find)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    tasks = [asyncio.create_task(coalesced.find(key)) for key in range(2 * BATCH_MAX)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(coalesced.find(key)) for key in range(2 * BATCH_MAX)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, DatabaseUnavailable) for result in results)
    assert len({id(result) for result in results}) == 1
    for conn in held:
        await pool.release(conn)


async def test_concurrent_requests_each_read_their_own_account(client: Client, conn: Any) -> None:
    accounts = [await register(client) for _ in range(5)]
    ended = accounts.pop()
    await conn.execute("delete from sessions where user_id = $1", uuid.UUID(ended.profile["id"]))
    responses = await asyncio.gather(
        *(client.get(ME, headers=account.headers) for account in accounts * 8),
        client.get(ME, headers=ended.headers),
    )
    await assert_problem(responses.pop(), 401, "invalid_token")
    for response, account in zip(responses, accounts * 8, strict=True):
        assert await response.json() == account.profile


@pytest.mark.parametrize("end", ["logout", "suspension"])
async def test_ended_session_is_refused_on_the_very_next_request(
    client: Client, conn: Any, end: str
) -> None:
    """Other readers use the same session without pause."""
    account = await register(client)
    stopped = asyncio.Event()

    async def keep_reading() -> None:
        while not stopped.is_set():
            await (await client.get(ME, headers=account.headers)).read()

    readers = [asyncio.create_task(keep_reading()) for _ in range(4)]
    if end == "logout":
        response = await client.post("/api/v1/auth/logout", headers=account.headers)
        assert response.status == 204
    else:
        await conn.execute(
            "delete from sessions where user_id = $1", uuid.UUID(account.profile["id"])
        )
    response = await client.get(ME, headers=account.headers)
    await assert_problem(response, 401, "invalid_token")
    stopped.set()
    await asyncio.gather(*readers)
