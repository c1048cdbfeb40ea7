"""Jobs that delete expired rows, and accounts whose grace period is over.

An account may have any number of sessions and audit events, so these are handled in slices, each in
a short transaction of its own. A slice that is repeated changes nothing, so a job that was stopped
simply starts again. An account that fails is skipped, and does not hold up the others.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import get_args

import asyncpg
from aiohttp import web

from service.accounts import purge_queries as accounts
from service.audit import queries as audit_queries
from service.audit.events import record_unattended
from service.audit.queries import FIRST_PLACE, Column, Place
from service.auth import queries as auth_queries
from service.auth.signing_keys import verifies_s
from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import read, write
from service.exceptions import DatabaseUnavailable
from service.factors import challenge_queries
from service.factors import queries as factors
from service.http.idempotency import LIFETIME_H
from service.jobs.periodic import Job, SlicedJob
from service.sessions import queries as session_queries
from service.worlds import queries as worlds

log = logging.getLogger(__name__)

# How many accounts are looked up at once.
ACCOUNTS_AT_ONCE = 100
# The size of a slice, well below the deadline of a statement.
SESSIONS_AT_ONCE = 500
ROWS_AT_ONCE = 2_000
# Rows of a world have texts of some pages, and an index of their words.
WORLD_ROWS_AT_ONCE = 500
# How many deleted worlds one run of the job deletes.
WORLDS_AT_ONCE = 100
# How many expired rows one run of the other jobs deletes.
EXPIRED_AT_ONCE = 20_000


class _NotDueError(Exception):
    """The account is no longer due, or another replica is purging it."""


async def forget_sessions(app: web.Application) -> None:
    """Delete sessions that have expired or ended, with their refresh tokens."""
    while await write(app, session_queries.delete_ended_sessions, SESSIONS_AT_ONCE, ROWS_AT_ONCE):
        pass
    await _for_each_account(app, accounts.list_unswept, _sweep, "forget sessions")


async def _sweep(app: web.Application, user_id: uuid.UUID) -> None:
    """Delete the account's sessions of past epochs."""
    delete = session_queries.delete_sessions_of_past_epochs
    while await write(app, delete, user_id, SESSIONS_AT_ONCE, ROWS_AT_ONCE):
        pass
    await write(app, accounts.mark_swept, user_id)


async def _for_each_account(
    app: web.Application,
    find: Callable[[Connection, asyncpg.Record | None, int], Awaitable[list[asyncpg.Record]]],
    work: Callable[[web.Application, uuid.UUID], Awaitable[None]],
    job: str,
) -> int:
    """Do the work for each account that ``find`` lists, and return for how many it was done.

    An account that fails is skipped and logged; the next run tries it again.
    """
    done, after = 0, None
    while rows := await read(app, find, after, ACCOUNTS_AT_ONCE):
        for row in rows:
            try:
                await work(app, row["id"])
                done += 1
            except _NotDueError:
                pass
            except DatabaseUnavailable as error:
                cause = type(error.__cause__).__name__
                extra = {"job": job, "account_id": row["id"], "cause": cause}
                log.warning("account skipped", extra=extra)
            except Exception:
                log.exception("account skipped", extra={"job": job, "account_id": row["id"]})
        after = rows[-1]
    return done


async def forget_links(app: web.Application, conn: Connection) -> None:
    """Delete the tokens of expired links."""
    await conn.execute(
        """
        delete from action_tokens where token_hash in (
            select token_hash from action_tokens where expires_at < now() limit $1
        )
        """,
        EXPIRED_AT_ONCE,
    )


async def forget_challenges(app: web.Application, conn: Connection) -> None:
    """Delete expired challenges, and apps for one-time codes that were never confirmed."""
    await challenge_queries.delete_expired(conn, EXPIRED_AT_ONCE)
    await factors.delete_expired(conn, EXPIRED_AT_ONCE)


async def forget_stored_responses(app: web.Application, conn: Connection) -> None:
    """Delete stored idempotent responses that are older than ``LIFETIME_H``."""
    await conn.execute(
        """
        delete from idempotency_keys where (caller, key) in (
            select caller, key from idempotency_keys
            where created_at < now() - make_interval(hours => $1) limit $2
        )
        """,
        LIFETIME_H,
        EXPIRED_AT_ONCE,
    )


async def forget_keys(app: web.Application, conn: Connection) -> None:
    """Delete signing keys that no longer verify."""
    await auth_queries.delete_retired_keys(conn, verifies_s(app[SETTINGS]))


async def purge_accounts(app: web.Application) -> None:
    """Delete accounts whose grace period is over, and pseudonymise their audit events."""
    count = await _for_each_account(app, accounts.list_due_purges, _purge, "purge accounts")
    if count:
        log.info("accounts purged", extra={"count": count})


async def _purge(app: web.Application, user_id: uuid.UUID) -> None:
    while await write(app, _delete_sessions, user_id):
        pass
    for world_id in await write(app, _delete_worlds, user_id):
        await _delete_world(app, world_id)
    places = {column: await _pseudonymise(app, user_id, column) for column in get_args(Column)}
    await write(app, _delete_account, user_id, places)


async def _delete_sessions(conn: Connection, user_id: uuid.UUID) -> bool:
    await _lock(conn, user_id)
    return await session_queries.delete_sessions_of_user(
        conn, user_id, SESSIONS_AT_ONCE, ROWS_AT_ONCE
    )


async def _delete_worlds(conn: Connection, user_id: uuid.UUID) -> list[uuid.UUID]:
    """Mark the account's worlds as deleted, and return the ids of those that are still there."""
    await _lock(conn, user_id)
    return await worlds.mark_all_deleted(conn, user_id)


async def delete_worlds(app: web.Application) -> None:
    """Delete worlds that their owners have deleted, in slices."""
    for world_id in await read(app, worlds.list_deleted, WORLDS_AT_ONCE):
        try:
            await _delete_world(app, world_id)
        except DatabaseUnavailable as error:
            cause = type(error.__cause__).__name__
            extra = {"job": "delete worlds", "world_id": world_id, "cause": cause}
            log.warning("world skipped", extra=extra)


async def _delete_world(app: web.Application, world_id: uuid.UUID) -> None:
    while await write(app, worlds.delete_slice, world_id, WORLD_ROWS_AT_ONCE):
        pass


async def _pseudonymise(app: web.Application, user_id: uuid.UUID, column: Column) -> Place:
    """Pseudonymise all but the last slice, and return the place where that begins."""
    place = FIRST_PLACE
    while until := await write(app, _pseudonymise_slice, user_id, column, place):
        place = until
    return place


async def _pseudonymise_slice(
    conn: Connection, user_id: uuid.UUID, column: Column, after: Place
) -> Place | None:
    await _lock(conn, user_id)
    return await audit_queries.pseudonymise(conn, user_id, column, after, ROWS_AT_ONCE)


async def _delete_account(
    conn: Connection, user_id: uuid.UUID, places: dict[Column, Place]
) -> None:
    """Delete the account, after the events that were recorded since their slice was done."""
    await _lock(conn, user_id)
    for column, after in places.items():
        await audit_queries.pseudonymise(conn, user_id, column, after, ROWS_AT_ONCE)
    await accounts.delete_account(conn, user_id)
    await record_unattended(conn, "user.purge", user_id)


async def _lock(conn: Connection, user_id: uuid.UUID) -> None:
    """Lock the account for a slice. Raises _NotDueError."""
    if not await accounts.lock_due_purge(conn, user_id):
        raise _NotDueError


JOBS = (
    SlicedJob("forget sessions", 30, forget_sessions),
    Job("forget links", 300, forget_links),
    Job("forget challenges", 300, forget_challenges),
    Job("forget stored responses", 300, forget_stored_responses),
    Job("forget keys", 300, forget_keys),
    SlicedJob("delete worlds", 30, delete_worlds),
    SlicedJob("purge accounts", 60, purge_accounts),
)
