"""Reads that share a query: what each of them sees, and what happens to one of many."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.db import coalescing
from service.db.coalescing import BATCH_MAX, BATCHES_MAX, Coalesced
from service.db.connection import POOL, Connection
from service.exceptions import DatabaseUnavailable
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register
from tests.support.waiting import DEADLINE_S

ME = "/api/v1/users/me"


class Gate:
    """A query that says which keys it was given, and waits to be let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()
        self.error: Exception | None = None

    async def find(self, conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        self.batches.append(list(keys))
        self.asked.set()
        await self.opened.wait()
        if self.error:
            raise self.error
        rows = await conn.fetch("select key from unnest($1::int[]) as key where key > 0", keys)
        return {row["key"]: f"row {row['key']}" for row in rows}

    async def until_asked(self, times: int) -> None:
        while len(self.batches) < times:
            self.asked.clear()
            await self.asked.wait()


async def let_others_go(client: Client) -> None:
    """Whatever may have a connection has asked by then: it was in the queue before this."""
    assert client.app is not None
    for _ in range(5):
        await client.app[POOL].fetchval("select 1")


async def test_a_read_never_begins_before_its_request(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while a query is under way is for the next one, even if they ask for its key."""
    assert client.app is not None
    monkeypatch.setattr(coalescing, "PATIENCE_S", DEADLINE_S)
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    first = asyncio.create_task(coalesced.find(1))
    await gate.until_asked(1)
    late = [asyncio.create_task(coalesced.find(key)) for key in (1, 2, 1, -1)]
    await let_others_go(client)
    assert gate.batches == [[1]]
    gate.opened.set()
    assert await first == "row 1"
    assert await asyncio.gather(*late) == ["row 1", "row 2", "row 1", None]
    assert [sorted(batch) for batch in gate.batches] == [[1], [-1, 1, 2]]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query takes too long as soon as it is under way."""
    monkeypatch.setattr(coalescing, "PATIENCE_S", 0)


@pytest.mark.usefixtures("impatient")
async def test_a_query_that_hangs_holds_nobody_up(client: Client) -> None:
    """Another goes beside it, and when that has ended the next, and no more than there may be."""
    assert client.app is not None
    hanging, well = Gate(), Gate()
    well.opened.set()

    async def find(conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        return await (hanging if 13 in keys else well).find(conn, keys)

    coalesced = Coalesced(client.app, find)
    stuck = [asyncio.create_task(coalesced.find(13))]
    await hanging.until_asked(1)
    for key in range(1, 6):
        assert await coalesced.find(key) == f"row {key}"
    assert [key for batch in well.batches for key in batch] == [1, 2, 3, 4, 5]
    stuck.append(asyncio.create_task(coalesced.find(13)))
    await hanging.until_asked(BATCHES_MAX)
    waiting = asyncio.create_task(coalesced.find(6))
    await let_others_go(client)
    assert not waiting.done()
    assert len(well.batches) == 5
    hanging.opened.set()
    assert await asyncio.gather(*stuck, waiting) == ["row 13", "row 13", "row 6"]


@pytest.mark.usefixtures("impatient")
async def test_what_a_full_batch_left_is_not_held_up_by_it(client: Client) -> None:
    """All asked while no query could go, so that nobody came after them and had them watched."""
    assert client.app is not None
    first, second, full, well = (Gate() for _ in range(4))
    well.opened.set()
    keys = range(1, BATCH_MAX + 2)

    async def find(conn: Connection, keys: Sequence[int]) -> Mapping[int, str]:
        gate = {1001: first, 1002: second, 1: full}.get(keys[0], well)
        return await gate.find(conn, keys)

    coalesced = Coalesced(client.app, find)
    stuck = []
    for key, gate in ((1001, first), (1002, second)):
        stuck.append(asyncio.create_task(coalesced.find(key)))
        await gate.until_asked(1)
    await let_others_go(client)
    *taken, left = [asyncio.create_task(coalesced.find(key)) for key in keys]
    await asyncio.sleep(0)
    first.opened.set()
    await full.until_asked(1)
    await let_others_go(client)
    second.opened.set()
    assert await left == f"row {keys[-1]}"
    assert not any(task.done() for task in taken)
    full.opened.set()
    assert await asyncio.gather(*taken, *stuck) == [
        *(f"row {key}" for key in keys[:-1]),
        "row 1001",
        "row 1002",
    ]


async def test_batches_are_bounded_and_the_oldest_go_first(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    wanted = list(range(1, 3 * BATCH_MAX + 2))
    tasks = [asyncio.create_task(coalesced.find(key)) for key in wanted]
    await gate.until_asked(1)
    gate.opened.set()
    assert await asyncio.gather(*tasks) == [f"row {key}" for key in wanted]
    assert [key for batch in gate.batches for key in batch] == wanted
    assert max(len(batch) for batch in gate.batches) == BATCH_MAX


async def test_cancelling_one_harms_no_other(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    tasks = [asyncio.create_task(coalesced.find(key)) for key in (1, 1, 2)]
    await gate.until_asked(1)
    tasks[0].cancel()
    gate.opened.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["row 1", "row 2"]


async def test_an_error_reaches_all_and_the_next_read_is_well(client: Client) -> None:
    assert client.app is not None
    gate = Gate()
    coalesced = Coalesced(client.app, gate.find)
    gate.error = OSError("gone")
    tasks = [asyncio.create_task(coalesced.find(key)) for key in (1, 2, 3)]
    await gate.until_asked(1)
    tasks[0].cancel()
    gate.opened.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers[1:]] == [DatabaseUnavailable] * 2
    gate.error = None
    assert await coalesced.find(1) == "row 1"


async def test_without_a_connection_all_who_wait_are_refused_at_once(start_app: StartApp) -> None:
    """Whoever came late has waited less; nobody waits for a second turn."""
    client = await start_app(db_acquire_timeout_s=0.5)
    assert client.app is not None
    pool = client.app[POOL]
    coalesced = Coalesced(client.app, Gate().find)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    tasks = [asyncio.create_task(coalesced.find(key)) for key in range(2 * BATCH_MAX)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(coalesced.find(key)) for key in range(2 * BATCH_MAX)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
    assert len({id(answer) for answer in answers}) == 1
    for conn in held:
        await pool.release(conn)


async def test_requests_together_each_read_their_own_account(client: Client, conn: Any) -> None:
    accounts = [await register(client) for _ in range(5)]
    ended = accounts.pop()
    await conn.execute("delete from sessions where user_id = $1", uuid.UUID(ended.profile["id"]))
    answers = await asyncio.gather(
        *(client.get(ME, headers=account.headers) for account in accounts * 8),
        client.get(ME, headers=ended.headers),
    )
    await assert_problem(answers.pop(), 401, "invalid_token")
    for answer, account in zip(answers, accounts * 8, strict=True):
        assert await answer.json() == account.profile


@pytest.mark.parametrize("end", ["logout", "suspension"])
async def test_a_session_that_has_ended_is_seen_by_the_very_next_request(
    client: Client, conn: Any, end: str
) -> None:
    """Under reads of the same session that never pause."""
    account = await register(client)
    stopped = asyncio.Event()

    async def read_on() -> None:
        while not stopped.is_set():
            await (await client.get(ME, headers=account.headers)).read()

    readers = [asyncio.create_task(read_on()) for _ in range(4)]
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
