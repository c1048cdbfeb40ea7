"""The audit's monthly partitions: made ahead of time, dropped when they are too old."""

import re
from datetime import UTC, datetime, timedelta

from aiohttp import web

from service.audit import queries
from service.context import SETTINGS
from service.db.connection import Connection

MONTHS_AHEAD = 2
_NAME = re.compile(r"audit_events_([0-9]{4})([0-9]{2})")


async def maintain_partitions(app: web.Application, conn: Connection) -> None:
    """Have a partition for this month and the next two, and none past AUDIT_RETENTION_DAYS.

    Nothing is locked where nothing is to be done, which is so but for once a month. Otherwise the
    audit is locked as a whole for a moment, because events that came while there was no partition
    move out of the default one.
    """
    now = datetime.now(UTC)
    names = await queries.list_partitions(conn)
    wanted = [_add_months(now, n) for n in range(MONTHS_AHEAD + 1)]
    missing = [month for month in wanted if _partition_name(month) not in names]
    retention_days = app[SETTINGS].audit_retention_days
    oldest = now - timedelta(days=retention_days) if retention_days else None
    expired = [name for name in names if oldest and _end_of(name) <= oldest]
    trim = oldest is not None and await queries.is_there_default_event_before(conn, oldest)
    if not (missing or expired or trim):
        return
    await queries.detach_default(conn)
    for month in missing:
        await queries.create_partition(conn, _partition_name(month), month, _add_months(month, 1))
    for name in expired:
        await queries.drop_partition(conn, name)
    if oldest is not None:
        await queries.delete_default_events_before(conn, oldest)
    await queries.attach_default(conn)


def _partition_name(month: datetime) -> str:
    return f"audit_events_{month:%Y%m}"


def _end_of(name: str) -> datetime:
    """When the month that a partition is named for is over."""
    match = _NAME.fullmatch(name)
    assert match is not None, name  # noqa: S101
    return _add_months(datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC), 1)


def _add_months(time: datetime, count: int) -> datetime:
    """The beginning of the month ``count`` months after that of ``time``."""
    years, month = divmod(time.month - 1 + count, 12)
    return datetime(time.year + years, month + 1, 1, tzinfo=UTC)
