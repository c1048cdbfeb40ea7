"""PostgreSQL: what it is, and what is in it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import asyncpg

from service.auth import queries
from service.auth.signing_keys import LEEWAY_S, check_secret_key, verifies_s
from service.db import migrations
from service.db.connection import LOST, explain
from service.doctor.connecting import (
    Connection,
    Variables,
    check_tls,
    name_variables,
    unreachable,
)
from service.doctor.findings import Finding, fail, ok, warn, within
from service.settings import Settings, SettingsError

Check: TypeAlias = Callable[[Connection, Settings, Variables], Awaitable[list[Finding]]]

CONNECT_S = 5
CHECK_S = 5
CLOSE_S = 1
OLDEST_VERSION = 15
SKEW_WARN_S = 2
# Beside the pool, each process has one connection for its probes.
ASIDE = 1


async def check_database(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Connect, and where that works look at the rest, each under a deadline of its own."""
    database = settings.database
    assert database is not None  # noqa: S101
    variables = name_variables(environ, database)
    try:
        for host, port in database.hosts:
            if not host.startswith("/"):
                within(CONNECT_S, socket.getaddrinfo, host, port)
        conn = await asyncpg.connect(
            **database.asyncpg_arguments(),
            timeout=CONNECT_S,
            command_timeout=CHECK_S,
            statement_cache_size=0,
        )
    except (*LOST, asyncpg.PostgresError) as error:
        return [unreachable(error, database, variables)]
    findings = []
    try:
        for check in _CHECKS:
            findings += await _check(check, conn, settings, variables)
    finally:
        with contextlib.suppress(*LOST):
            await conn.close(timeout=CLOSE_S)
    return findings


async def _check(
    check: Check, conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check(conn, settings, variables)
    except (*LOST, asyncpg.PostgresError) as error:
        name = check.__name__.removeprefix("_").removeprefix("check_")
        detail = f"could not be looked at: {explain(error).reason}"
        return [fail(name, detail, "Look into PostgreSQL's log.")]


async def _check_database(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """What was reached: version, encoding, whether it takes writes."""
    database = settings.database
    assert database is not None  # noqa: S101
    began_at = time.perf_counter()
    row = await conn.fetchrow(
        """
        select current_setting('server_version_num')::int / 10000 as version,
               current_setting('server_version') as shown,
               current_setting('server_encoding') as encoding,
               pg_is_in_recovery() as standby
        """
    )
    took_ms = (time.perf_counter() - began_at) * 1000
    assert row is not None  # noqa: S101
    shown = row["shown"].partition(" ")[0]
    findings = [
        ok(
            "database",
            f"PostgreSQL {shown} at {database.address}, database {database.name}, user"
            f" {database.user}: answers in {took_ms:.1f} ms",
        )
    ]
    if row["version"] < OLDEST_VERSION:
        detail = f"PostgreSQL {shown} is older than {OLDEST_VERSION}"
        findings.append(fail("database", detail, "Upgrade it (pg_upgrade)."))
    if row["encoding"] != "UTF8":
        detail = f"its encoding is {row['encoding']}, which cannot hold all names"
        mend = f"Create it anew: createdb --encoding UTF8 --template template0 {database.name}"
        findings.append(fail("database", detail, mend))
    if row["standby"]:
        mend = f"Name all hosts in {variables.host}, and set {variables.target} to read-write."
        findings.append(fail("database", "it is a standby, which takes no writes", mend))
    return findings


async def _check_collation(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Whether the rules that text is ordered by are those that its indexes were made by."""
    if conn.get_server_version().major < OLDEST_VERSION:
        return []
    row = await conn.fetchrow(
        """
        select datname as name, datcollversion as made_by,
               pg_database_collation_actual_version(oid) as now,
               coalesce(
                   to_jsonb(pg_database) ->> 'datlocale',
                   to_jsonb(pg_database) ->> 'daticulocale',
                   datcollate
               ) as locale
        from pg_database where datname = current_database()
        """
    )
    assert row is not None  # noqa: S101
    return [judge_collation(**row)]


def judge_collation(name: str, locale: str, made_by: str | None, now: str | None) -> Finding:
    """See the PostgreSQL manual, ALTER DATABASE, REFRESH COLLATION VERSION."""
    if made_by is None:
        return ok("collation", f"{locale}, which has no version")
    if made_by == now:
        return ok("collation", f"{locale} of version {now}, as when the database was made")
    detail = (
        f"{locale} of version {made_by} when the database was made, {now} now: indexes of text may"
        " be out of order, so that an address is not found, or had twice"
    )
    quoted = _quote(name)
    mend = (
        f"In psql, as its owner: reindex database {quoted}; alter database {quoted} refresh"
        " collation version"
    )
    return warn("collation", detail, mend)


async def _check_migrations(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Those of this release that the database has not, and those of a newer one that it has."""
    known, applied = migrations.known_migrations(), await migrations.find_applied(conn)
    pending = [id_ for id_ in known if id_ not in applied]
    unknown = sorted(applied - set(known))
    findings = []
    if unknown:
        detail = f"the database has {len(unknown)} that this release has not: {_some(unknown)}"
        mend = "Install the newer release; this one may not know what it finds."
        findings.append(warn("migrations", detail, mend))
    if pending:
        detail = f"{len(pending)} of {len(known)} pending: {_some(pending)}"
        if settings.migrate_on_start:
            findings.append(warn("migrations", detail, "serve applies them, by MIGRATE_ON_START."))
        else:
            findings.append(fail("migrations", detail, "Run shinkei migrate."))
        findings += await _check_right_to_migrate(conn)
    return findings or [ok("migrations", f"all {len(known)} applied")]


def _some(ids: list[str]) -> str:
    return f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else ids[0]


async def _check_right_to_migrate(conn: Connection) -> list[Finding]:
    row = await conn.fetchrow(
        """
        select current_user as role, coalesce(current_schema(), 'public') as schema,
               current_database() as database,
               coalesce(has_schema_privilege(current_schema(), 'create'), false) as tables,
               exists (select from pg_extension where extname = 'pg_trgm') as installed,
               exists (select from pg_available_extensions where name = 'pg_trgm') as available,
               has_database_privilege(current_database(), 'create') as extensions
        """
    )
    assert row is not None  # noqa: S101
    role, findings = _quote(row["role"]), []
    if not row["tables"]:
        detail = f"{row['role']} may create no tables in the schema {row['schema']}"
        mend = f"In psql: grant create on schema {_quote(row['schema'])} to {role}"
        findings.append(fail("migrations", detail, mend))
    if not row["installed"] and not row["available"]:
        detail = "the server has no pg_trgm, which the search for accounts needs"
        findings.append(fail("migrations", detail, "Install PostgreSQL's contrib package there."))
    elif not row["installed"] and not row["extensions"]:
        detail = f"{row['role']} may not create the extension pg_trgm"
        mend = f"In psql, as an administrator: grant create on database {_quote(row['database'])}"
        findings.append(fail("migrations", detail, f"{mend} to {role}"))
    return findings


def _quote(identifier: str) -> str:
    return identifier if identifier.isidentifier() else f'"{identifier}"'


async def _check_privileges(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Whether the user may read and write every table, and make the audit's partitions."""
    row = await conn.fetchrow(
        """
        select current_user as role,
               array_agg(relname::text order by relname) filter (
                   where not (
                       has_table_privilege(oid, 'select') and has_table_privilege(oid, 'insert')
                       and has_table_privilege(oid, 'update')
                       and has_table_privilege(oid, 'delete')
                   )
               ) as closed,
               bool_or(relname = 'audit_events' and not pg_has_role(relowner, 'usage'))
                   as not_owned,
               count(*) as tables
        from pg_class
        where relnamespace = to_regnamespace(current_schema()::text) and relkind in ('r', 'p')
            and relname !~ 'yoyo'
        """
    )
    assert row is not None  # noqa: S101
    role, findings = _quote(row["role"]), []
    if not row["tables"]:
        return []
    if row["closed"]:
        detail = f"{row['role']} may not read and write {', '.join(row['closed'][:3])}"
        mend = (
            "In psql, as their owner: grant select, insert, update, delete on all tables in schema"
            f" public to {role}"
        )
        findings.append(fail("privileges", detail, mend))
    if row["not_owned"]:
        detail = f"{row['role']} does not own audit_events, and cannot make its monthly partitions"
        mend = f"Run shinkei migrate as {role}, or grant it the owner's role."
        findings.append(warn("privileges", detail, mend))
    return findings or [ok("privileges", f"{row['role']} may do what the service does")]


async def _check_pool(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Whether the server has a connection for each that a process keeps."""
    needed = settings.db_connections
    if settings.db_pgbouncer:
        detail = f"{needed} connections for each process, to PgBouncer: its own limits hold"
        return [ok("pool", detail)]
    row = await conn.fetchrow(
        """
        select current_setting('max_connections')::int as max_connections,
               current_setting('superuser_reserved_connections')::int
                   + coalesce(current_setting('reserved_connections', true), '0')::int as reserved,
               (select rolconnlimit from pg_roles where rolname = current_user) as of_role,
               (select datconnlimit from pg_database where datname = current_database())
                   as of_database,
               (select count(*) from pg_stat_activity
                where datid is not null and application_name <> 'shinkei'
                    and pid <> pg_backend_pid()) as others
        """
    )
    assert row is not None  # noqa: S101
    limits = [
        (row["max_connections"] - row["reserved"], "max_connections"),
        (row["of_role"], "the role's CONNECTION LIMIT"),
        (row["of_database"], "the database's CONNECTION LIMIT"),
    ]
    # -1 is none.
    limit, what = min((limit, what) for limit, what in limits if limit >= 0)
    processes = needed // (settings.db_pool_size + ASIDE)
    each = f"a process keeps {needed} connections (DB_POOL_SIZE, and one for its probes)"
    if processes > 1:
        each = f"{settings.workers} workers, while replaced, have up to {needed} connections"
    mend = f"Set DB_POOL_SIZE to {max(1, limit // processes - ASIDE)} or less, or raise {what}."
    if needed > limit:
        return [fail("pool", f"{each}; {what} leaves {limit}", mend)]
    if needed > limit - row["others"]:
        detail = f"{each}; {what} leaves {limit}, of which others hold {row['others']}"
        return [warn("pool", detail, "Set DB_POOL_SIZE lower, or raise it.")]
    enough_for = f"{limit // needed} {'such services' if processes > 1 else 'processes'}"
    return [ok("pool", f"{each}; {what} leaves {limit}, enough for {enough_for}")]


async def _check_clock(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    before = time.time()
    theirs = (await conn.fetchval("select clock_timestamp()")).timestamp()
    return [judge_clock(before, theirs, time.time())]


def judge_clock(before: float, theirs: float, after: float) -> Finding:
    """How far the clocks are apart: tokens go by ours, sessions and suspensions by the database's.

    Seconds since 1970; the database's was read at some moment between our two.
    """
    skew_s = max(before - theirs, theirs - after, 0)
    detail = f"the database's clock and this machine's are {skew_s:.1f} s apart"
    mend = "Keep both right by NTP (chrony, systemd-timesyncd)."
    if skew_s > LEEWAY_S:
        return fail("clock", f"{detail}: replicas refuse each other's tokens", mend)
    if skew_s > SKEW_WARN_S:
        return warn("clock", detail, mend)
    return ok("clock", detail)


async def _check_keys(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Whether SECRET_KEY opens the keys that sign access tokens."""
    try:
        rows = await queries.list_signing_keys(conn, verifies_s(settings))
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        # Not migrated, which is told already.
        return []
    try:
        check_secret_key(rows, settings.secret_key)
    except SettingsError:
        return [
            fail(
                "keys",
                "SECRET_KEY is not the one that this database's signing keys were stored under",
                "Set the SECRET_KEY of the service that uses this database; where it is lost,"
                " shinkei keys rotate --revoke makes new keys under this one.",
            )
        ]
    if not rows:
        return [ok("keys", "none yet: the service makes the first when it starts")]
    return [ok("keys", f"SECRET_KEY opens the signing keys ({len(rows)})")]


_CHECKS: tuple[Check, ...] = (
    _check_database,
    _check_collation,
    check_tls,
    _check_migrations,
    _check_privileges,
    _check_pool,
    _check_clock,
    _check_keys,
)
