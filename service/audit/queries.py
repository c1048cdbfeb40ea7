"""SQL for the audit log."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import asyncpg

from service.db.connection import Connection
from service.db.listing import Keyset, Statement, all_of, page_conditions
from service.db.transactions import own_plans
from service.http.client_ip import IpAddress

NEWEST_FIRST = Keyset({"occurred_at": datetime.fromisoformat, "id": uuid.UUID}, descending=True)
OLDEST_FIRST = NEWEST_FIRST._replace(descending=False)

Column: TypeAlias = Literal["subject_id", "actor_id"]


class Place(NamedTuple):
    """The place of an event in the order of time."""

    occurred_at: datetime
    event_id: uuid.UUID


FIRST_PLACE = Place(datetime.min.replace(tzinfo=UTC), uuid.UUID(int=0))
LAST_PLACE = Place(datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1))

_CONDITIONS = {
    "actor_id": "actor_id = {}",
    "subject_id": "subject_id = {}",
    "action": "action = {}",
    "occurred_after": "occurred_at >= {}",
    "occurred_before": "occurred_at < {}",
}


async def insert_event(
    conn: Connection,
    *,
    event_id: uuid.UUID,
    action: str,
    actor_id: uuid.UUID | None,
    actor_role: str | None,
    operator: str | None,
    subject_id: uuid.UUID | None,
    ip: IpAddress | None,
    user_agent: str | None,
    request_id: str | None,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    await conn.execute(
        """
        insert into audit_events (
            id, action, actor_id, actor_role, operator, subject_id, ip, user_agent, request_id,
            before, after
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        """,
        event_id,
        action,
        actor_id,
        actor_role,
        operator,
        subject_id,
        ip,
        user_agent,
        request_id,
        before,
        after,
    )


async def pseudonymise(
    conn: Connection, user_id: uuid.UUID, column: Column, after: Place, limit: int
) -> Place | None:
    """Erase the user's personal data from audit events. Only the id remains.

    Handles the next ``limit`` events after a place whose ``column`` is the user. Returns the place
    of the last one, or None if there were fewer and all are done.
    """
    until = await conn.fetchrow(
        f"""
        select occurred_at, id from audit_events
        where {column} = $1 and (occurred_at, id) > ($2, $3)
        order by occurred_at, id offset $4 limit 1
        """,  # noqa: S608
        user_id,
        *after,
        limit - 1,
    )
    await conn.execute(
        f"""
        update audit_events
        set before = case when subject_id = $1 then null else before end,
            after = case when subject_id = $1 then null else after end,
            ip = case when coalesce(actor_id, $1) = $1 then null else ip end,
            user_agent = case when coalesce(actor_id, $1) = $1 then null else user_agent end
        where {column} = $1 and (occurred_at, id) > ($2, $3) and (occurred_at, id) <= ($4, $5)
          and num_nonnulls(before, after, ip, user_agent) > 0
        """,  # noqa: S608
        user_id,
        *after,
        *(until or LAST_PLACE),
    )
    return Place(*until) if until else None


async def list_events(
    conn: Connection, filters: Mapping[str, Any], after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return a page of events after a place in NEWEST_FIRST."""
    statement = select_events(filters, after, limit)
    if len({"actor_id", "subject_id", "action"} & filters.keys()) > 1:
        # Plan for the actual values: they decide which index is the most selective.
        async with own_plans(conn):
            return await conn.fetch(*statement)
    return await conn.fetch(*statement)


def select_events(filters: Mapping[str, Any], after: list[object] | None, limit: int) -> Statement:
    conditions, arguments = page_conditions(_CONDITIONS, filters, NEWEST_FIRST, after)
    arguments.append(limit)
    statement = f"""
        select id, occurred_at, action, actor_id, actor_role, operator, subject_id,
               host(ip) as ip, user_agent, request_id, before, after
        from audit_events
        where {all_of(conditions)}
        order by {NEWEST_FIRST.order_by()}
        limit ${len(arguments)}
    """  # noqa: S608
    return statement, *arguments


async def list_partitions(conn: Connection) -> list[str]:
    """Return the names of the monthly partitions."""
    rows = await conn.fetch(
        """
        select relname from pg_inherits
        join pg_class on pg_class.oid = inhrelid
        where inhparent = 'audit_events'::regclass and relname <> 'audit_events_default'
        """
    )
    return [row["relname"] for row in rows]


async def is_there_default_event_before(conn: Connection, time: datetime) -> bool:
    found: bool = await conn.fetchval(
        "select exists(select 1 from audit_events_default where occurred_at < $1)", time
    )
    return found


async def detach_default(conn: Connection) -> None:
    """Make the default partition a table of its own, without the append-only trigger."""
    await conn.execute(
        """
        lock table audit_events in access exclusive mode;
        alter table audit_events detach partition audit_events_default;
        """
    )


async def attach_default(conn: Connection) -> None:
    await conn.execute("alter table audit_events attach partition audit_events_default default")


async def create_partition(conn: Connection, name: str, start: datetime, end: datetime) -> None:
    """Create a month's partition with the events that the detached default holds for it."""
    await conn.execute(f"create table {name} (like audit_events including defaults)")
    await conn.execute(
        f"""
        with moved as (
            delete from audit_events_default where occurred_at >= $1 and occurred_at < $2
            returning id, occurred_at, action, actor_id, actor_role, operator, subject_id, ip,
                      user_agent, request_id, before, after
        )
        insert into {name} (
            id, occurred_at, action, actor_id, actor_role, operator, subject_id, ip, user_agent,
            request_id, before, after
        )
        select id, occurred_at, action, actor_id, actor_role, operator, subject_id, ip, user_agent,
               request_id, before, after
        from moved
        """,  # noqa: S608
        start,
        end,
    )
    await conn.execute(
        f"""
        alter table audit_events attach partition {name}
            for values from ('{start.isoformat()}') to ('{end.isoformat()}');
        create trigger audit_events_no_truncate before truncate on {name}
            for each statement execute function refuse_audit_change();
        """
    )


async def drop_partition(conn: Connection, name: str) -> None:
    await conn.execute(f"drop table {name}")


async def delete_default_events_before(conn: Connection, time: datetime) -> None:
    """Delete events from the default partition, which must be detached."""
    await conn.execute("delete from audit_events_default where occurred_at < $1", time)


async def export_events(
    conn: Connection, user_id: uuid.UUID, after: list[object] | None, limit: int
) -> list[asyncpg.Record]:
    """Return a page of the account's events after a place in OLDEST_FIRST.

    Events by others hide the IP and user agent.
    """
    beyond = OLDEST_FIRST.beyond(3) if after else "true"
    return await conn.fetch(
        f"""
        select id, occurred_at, action, actor_id is not distinct from $1 as by_yourself,
               case when actor_id = $1 then host(ip) end as ip,
               case when actor_id = $1 then user_agent end as user_agent, before, after
        from audit_events
        where subject_id = $1 and {beyond}
        order by {OLDEST_FIRST.order_by()} limit $2
        """,  # noqa: S608
        user_id,
        limit,
        *(after or ()),
    )
