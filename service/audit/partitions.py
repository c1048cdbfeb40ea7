"""Monthly partitions of the audit log: created ahead of time, dropped after retention."""

import re
from datetime import UTC, datetime, timedelta

from aiohttp import web

from service.audit import queries
from service.context import SETTINGS
from service.db.connection import Connection

MONTHS_AHEAD = 2
_NAME = re.compile(r"audit_events_([0-9]{4})([0-9]{2})")


async def maintain_partitions(app: web.Application, conn: Connection) -> None:
    """Create partitions for this month and the next two; drop those past AUDIT_RETENTION_DAYS.

    Most runs find nothing to do and take no lock. Otherwise the whole audit log is briefly locked,
    because events of a new month move there from the default partition.
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
    """Return the end of the month that the partition is named after."""
    match = _NAME.fullmatch(name)
    assert match is not None, name  # noqa: S101
    return _add_months(datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC), 1)


def _add_months(time: datetime, count: int) -> datetime:
    """Return the start of the month ``count`` months after ``time``."""
    years, month = divmod(time.month - 1 + count, 12)
    return datetime(time.year + years, month + 1, 1, tzinfo=UTC)
