"""Monthly partitions: created ahead of time, dropped once past the retention."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from service.audit.partitions import maintain_partitions
from service.db.transactions import write
from tests.support.clients import WITH_JOBS, Client, StartApp
from tests.support.waiting import eventually

INSERT = "insert into audit_events (id, occurred_at, action) values (gen_random_uuid(), $1, 'test')"


def months_from_now(count: int) -> datetime:
    now = datetime.now(UTC)
    years, month = divmod(now.month - 1 + count, 12)
    return datetime(now.year + years, month + 1, 1, tzinfo=UTC)


def name_of(month: datetime) -> str:
    return f"audit_events_{month:%Y%m}"


async def maintain(client: Client) -> None:
    """Run the job now."""
    assert client.app is not None
    await write(client.app, _maintain, client.app)


async def _maintain(conn: Any, app: web.Application) -> None:
    await maintain_partitions(app, conn)


async def partitions(conn: Any) -> set[str]:
    rows = await conn.fetch(
        "select inhrelid::regclass::text as name from pg_inherits"
        " where inhparent = 'audit_events'::regclass"
    )
    return {row["name"] for row in rows}


async def count_events_by_partition(conn: Any) -> dict[str, int]:
    rows = await conn.fetch(
        "select tableoid::regclass::text as name, count(*) from audit_events group by 1"
    )
    return dict(rows)


def expected() -> set[str]:
    return {"audit_events_default", *(name_of(months_from_now(n)) for n in range(3))}


@pytest.fixture(autouse=True)
async def first_start(conn: Any) -> None:
    """Drop the partitions of the tests' template."""
    for name in await partitions(conn) - {"audit_events_default"}:
        await conn.execute(f"drop table {name}")


async def test_partitions_are_created_ahead_of_time(start_app: StartApp, conn: Any) -> None:
    assert await partitions(conn) == {"audit_events_default"}
    client = await start_app(**WITH_JOBS)

    async def has_run() -> bool:
        return await partitions(conn) == expected()

    await eventually(has_run)
    before = await conn.fetch("select oid from pg_class where relname ~ 'audit_events' order by 1")
    await maintain(client)
    after = await conn.fetch("select oid from pg_class where relname ~ 'audit_events' order by 1")
    assert before == after, "the second run changes nothing"
    await conn.execute(INSERT, months_from_now(1))
    await conn.execute(INSERT, months_from_now(2) - timedelta(microseconds=1))
    await conn.execute(INSERT, months_from_now(3))
    assert await count_events_by_partition(conn) == {
        name_of(months_from_now(1)): 2,
        "audit_events_default": 1,
    }


async def test_events_stored_before_their_partition_exists_move_into_it(
    start_app: StartApp, conn: Any
) -> None:
    times = [months_from_now(n) for n in (-1, 0, 0, 1, 2, 3)]
    for time in times:
        await conn.execute(INSERT, time)
    client = await start_app()
    await maintain(client)
    assert await count_events_by_partition(conn) == {
        "audit_events_default": 2,
        name_of(months_from_now(0)): 2,
        name_of(months_from_now(1)): 1,
        name_of(months_from_now(2)): 1,
    }
    rows = await conn.fetch("select occurred_at from audit_events order by 1")
    assert [row["occurred_at"] for row in rows] == times


async def test_event_keeps_every_column_when_it_moves(start_app: StartApp, conn: Any) -> None:
    await conn.execute(
        """
        insert into audit_events
        values (gen_random_uuid(), $1, 'test', gen_random_uuid(), 'admin', gen_random_uuid(),
                '192.0.2.1', 'tester/1', 'mine', '{"a": 1}', '{"a": 2}', 'grace')
        """,
        months_from_now(1),
    )
    stored = await conn.fetchrow("select * from audit_events_default")
    await maintain(await start_app())
    assert await conn.fetchrow(f"select * from {name_of(months_from_now(1))}") == stored
    assert None not in stored.values()


@pytest.mark.parametrize("retention_days", [0, 60])
async def test_retention_removes_expired_partitions_and_events(
    start_app: StartApp, conn: Any, retention_days: int
) -> None:
    """Expired months are dropped whole; expired events without a partition are deleted."""
    old, kept = months_from_now(-8), months_from_now(-1)
    for month, end in ((old, months_from_now(-7)), (kept, months_from_now(0))):
        await conn.execute(
            f"create table {name_of(month)} partition of audit_events"
            f" for values from ('{month.isoformat()}') to ('{end.isoformat()}')"
        )
        await conn.execute(INSERT, month)
    await conn.execute(INSERT, months_from_now(-20))
    client = await start_app(audit_retention_days=retention_days)
    await maintain(client)
    everything = {name_of(old): 1, name_of(kept): 1, "audit_events_default": 1}
    if retention_days:
        assert await partitions(conn) == expected() | {name_of(kept)}
        assert await count_events_by_partition(conn) == {name_of(kept): 1}
    else:
        assert await partitions(conn) == expected() | {name_of(old), name_of(kept)}
        assert await count_events_by_partition(conn) == everything


async def test_events_written_during_maintenance_are_all_kept(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app()
    assert client.app is not None

    async def insert(writer: Any, time: datetime) -> None:
        await writer.execute(INSERT, time)

    await asyncio.gather(
        *(write(client.app, insert, months_from_now(n % 3)) for n in range(50)),
        maintain(client),
        *(write(client.app, insert, months_from_now(n % 3)) for n in range(50)),
    )
    assert sum((await count_events_by_partition(conn)).values()) == 100
    assert await partitions(conn) == expected()
