"""Checks of PostgreSQL: the server, the schema, the role's privileges, and the signing keys."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import asyncpg

from service.accounts import queries as accounts
from service.auth import queries
from service.auth.signing_keys import LEEWAY_S, check_secret_keys, verifies_s
from service.db import migrations
from service.db.connecting import connect
from service.db.connection import LOST, explain
from service.doctor.connecting import (
    Connection,
    Variables,
    check_tls,
    name_variables,
    unreachable,
)
from service.doctor.findings import Finding, fail, ok, warn, within
from service.doctor.other_urls import check_direct, check_replica
from service.resealing import SEALED, count_previous
from service.settings import Settings, SettingsError

Check: TypeAlias = Callable[[Connection, Settings, Variables], Awaitable[list[Finding]]]

CONNECT_S = 5
CHECK_S = 5
CLOSE_S = 1
OLDEST_VERSION = 15
SKEW_WARN_S = 2
# Migrations create these; they come with PostgreSQL, in its contrib package.
EXTENSIONS = ("pg_trgm", "btree_gin")
# How many rows of each kind are opened to see which key seals them.
SEALED_ROWS = 2000
# Each process keeps one connection for its probes, outside the pool.
ASIDE = 1
# How many administrators without a second factor are counted.
ADMINISTRATORS = 100


async def check_database(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Connect, then run each check of the database under its own deadline."""
    database = settings.database
    assert database is not None  # noqa: S101
    variables = name_variables(environ, database)
    try:
        for host, port in database.hosts:
            if not host.startswith("/"):
                within(CONNECT_S, socket.getaddrinfo, host, port)
        conn = await connect(database, timeout_s=CONNECT_S, command_timeout=CHECK_S)
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
        detail = f"could not be checked: {explain(error).reason}"
        return [fail(name, detail, "Check PostgreSQL's log.")]


async def _check_database(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Check the version, the encoding, and whether the server accepts writes."""
    database = settings.database
    assert database is not None  # noqa: S101
    began_at = time.perf_counter()
    row = await conn.fetchrow(
        """
        select current_setting('server_version_num')::int / 10000 as version,
               current_setting('server_version') as shown,
               current_setting('server_encoding') as encoding,
               pg_is_in_recovery() as standby,
               current_setting('transaction_read_only')::bool as read_only
        """
    )
    took_ms = (time.perf_counter() - began_at) * 1000
    assert row is not None  # noqa: S101
    shown = row["shown"].partition(" ")[0]
    findings = [
        ok(
            "database",
            f"PostgreSQL {shown} at {database.address}, database {database.name}, user"
            f" {database.user}: responds in {took_ms:.1f} ms",
        )
    ]
    if row["version"] < OLDEST_VERSION:
        detail = f"PostgreSQL {shown} is older than {OLDEST_VERSION}"
        findings.append(fail("database", detail, "Upgrade it (pg_upgrade)."))
    if row["encoding"] != "UTF8":
        detail = f"its encoding is {row['encoding']}, which cannot store every name"
        fix = f"Recreate it: createdb --encoding UTF8 --template template0 {database.name}"
        findings.append(fail("database", detail, fix))
    if row["standby"]:
        fix = f"List all hosts in {variables.host}, and set {variables.target} to read-write."
        findings.append(fail("database", "it is a standby, which accepts no writes", fix))
    elif row["read_only"]:
        fix = "Turn default_transaction_read_only off, for the server, the database and the role."
        findings.append(fail("database", "it is read-only", fix))
    return findings


async def _check_collation(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Check whether the collation has changed since the text indexes were built."""
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
    """Compare collation versions; see ALTER DATABASE in the PostgreSQL manual."""
    if made_by is None:
        return ok("collation", f"{locale}, which has no version")
    if made_by == now:
        return ok("collation", f"{locale}, version {now}, unchanged since the database was created")
    detail = (
        f"{locale} was version {made_by} when the database was created and is {now} now: text"
        " indexes may be out of order, so that an email is not found or can be registered twice"
    )
    quoted = _quote(name)
    fix = (
        f"In psql, as its owner: reindex database {quoted}; alter database {quoted} refresh"
        " collation version"
    )
    return warn("collation", detail, fix)


async def _check_migrations(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Report pending migrations, and applied ones that only a newer release knows."""
    known, applied = migrations.known_migrations(), await migrations.find_applied(conn)
    pending = [id_ for id_ in known if id_ not in applied]
    unknown = sorted(applied - set(known))
    findings = []
    if unknown:
        detail = f"the database has {len(unknown)} that this release lacks: {_some(unknown)}"
        fix = "Install the newer release; this one may not work with the newer schema."
        findings.append(warn("migrations", detail, fix))
    if pending:
        detail = f"{len(pending)} of {len(known)} pending: {_some(pending)}"
        if settings.migrate_on_start:
            findings.append(
                warn("migrations", detail, "serve applies them, as MIGRATE_ON_START is set.")
            )
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
               array(select extname::text from pg_extension) as installed,
               array(select name::text from pg_available_extensions) as available,
               has_database_privilege(current_database(), 'create') as extensions
        """
    )
    assert row is not None  # noqa: S101
    role, findings = _quote(row["role"]), []
    if not row["tables"]:
        detail = f"{row['role']} may not create tables in the schema {row['schema']}"
        fix = f"In psql: grant create on schema {_quote(row['schema'])} to {role}"
        findings.append(fail("migrations", detail, fix))
    missing = [extension for extension in EXTENSIONS if extension not in row["installed"]]
    lacking = [extension for extension in missing if extension not in row["available"]]
    if lacking:
        detail = f"the server lacks the extensions {' and '.join(lacking)}, which searches need"
        findings.append(fail("migrations", detail, "Install PostgreSQL's contrib package there."))
    elif missing and not row["extensions"]:
        detail = f"{row['role']} may not create the extensions {' and '.join(missing)}"
        fix = f"In psql, as an administrator: grant create on database {_quote(row['database'])}"
        findings.append(fail("migrations", detail, f"{fix} to {role}"))
    return findings


def _quote(identifier: str) -> str:
    return identifier if identifier.isidentifier() else f'"{identifier}"'


async def _check_privileges(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Check that the role may read and write every table, and create audit partitions."""
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
        fix = (
            "In psql, as their owner: grant select, insert, update, delete on all tables in schema"
            f" public to {role}"
        )
        findings.append(fail("privileges", detail, fix))
    if row["not_owned"]:
        detail = f"{row['role']} does not own audit_events and cannot create its partitions"
        fix = f"Run shinkei migrate as {role}, or grant it the owner's role."
        findings.append(warn("privileges", detail, fix))
    return findings or [ok("privileges", f"{row['role']} has all that the service needs")]


async def _check_pool(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Check that the server allows as many connections as the service keeps."""
    needed = settings.db_connections
    assert settings.database is not None  # noqa: S101
    if settings.database.pgbouncer:
        detail = f"up to {needed} connections to PgBouncer, which has its own limits"
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
                where datid is not null and application_name <> current_setting('application_name')
                    and pid <> pg_backend_pid()) as others
        """
    )
    assert row is not None  # noqa: S101
    limits = [
        (row["max_connections"] - row["reserved"], "max_connections"),
        (row["of_role"], "the role's CONNECTION LIMIT"),
        (row["of_database"], "the database's CONNECTION LIMIT"),
    ]
    # -1 means no limit.
    limit, what = min((limit, what) for limit, what in limits if limit >= 0)
    processes = needed // (settings.db_pool_size + ASIDE)
    each = f"a process keeps {needed} connections (DB_POOL_SIZE, and one for probes)"
    if processes > 1:
        each = f"{settings.workers} workers have up to {needed} connections while being replaced"
    fix = f"Set DB_POOL_SIZE to {max(1, limit // processes - ASIDE)} or less, or raise {what}."
    if needed > limit:
        return [fail("pool", f"{each}; {what} leaves {limit}", fix)]
    if needed > limit - row["others"]:
        detail = f"{each}; {what} leaves {limit}, and other clients hold {row['others']}"
        return [warn("pool", detail, f"Lower DB_POOL_SIZE, or raise {what}.")]
    enough_for = f"{limit // needed} {'such services' if processes > 1 else 'processes'}"
    return [ok("pool", f"{each}; {what} leaves {limit}, enough for {enough_for}")]


async def _check_clock(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    before = time.time()
    theirs = (await conn.fetchval("select clock_timestamp()")).timestamp()
    return [judge_clock(before, theirs, time.time())]


def judge_clock(before: float, theirs: float, after: float) -> Finding:
    """Judge the skew: tokens use our clock, sessions and suspensions the database's.

    Arguments are seconds since 1970. The database's was read between our ``before`` and ``after``.
    """
    skew_s = max(before - theirs, theirs - after, 0)
    detail = f"the database's clock and this machine's are {skew_s:.1f} s apart"
    fix = "Synchronize both with NTP (chrony, systemd-timesyncd)."
    if skew_s > LEEWAY_S:
        return fail("clock", f"{detail}: replicas reject each other's tokens", fix)
    if skew_s > SKEW_WARN_S:
        return warn("clock", detail, fix)
    return ok("clock", detail)


async def _check_keys(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Check that SECRET_KEY decrypts the signing keys."""
    try:
        rows = await queries.list_signing_keys(conn, verifies_s(settings))
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        # Not migrated, which another finding reports.
        return []
    try:
        check_secret_keys(rows, settings.secret_keys)
    except SettingsError:
        return [
            fail(
                "keys",
                "SECRET_KEY is not the one that encrypted this database's signing keys",
                "Set the SECRET_KEY of the service that uses this database. If it is lost,"
                " shinkei keys rotate --revoke creates new keys under this one.",
            )
        ]
    if not rows:
        return [ok("keys", "none yet: the service creates the first when it starts")]
    which = "SECRET_KEY or SECRET_KEY_PREVIOUS" if settings.secret_key_previous else "SECRET_KEY"
    return [ok("keys", f"{which} decrypts the signing keys ({len(rows)})")]


async def _check_administrators(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Warn about administrators without a second factor, of whom it counts a bounded number."""
    try:
        count = await accounts.count_administrators_without_factor(conn, ADMINISTRATORS)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        # Not migrated, which another finding reports.
        return []
    if not count:
        return [ok("administrators", "no active one is without a second factor")]
    more = " or more" if count == ADMINISTRATORS else ""
    detail = f"{count}{more} active {'has' if count == 1 else 'have'} no second factor"
    if settings.require_second_factor == "none":
        fix = (
            "Set REQUIRE_SECOND_FACTOR to admins: until they have one, they can then only add one."
        )
    else:
        fix = "REQUIRE_SECOND_FACTOR already asks them for one. Remind them to add it."
    return [warn("administrators", detail, fix)]


async def _check_sealed(
    conn: Connection, settings: Settings, variables: Variables
) -> list[Finding]:
    """Check whether SECRET_KEY_PREVIOUS is still needed, in a part of each table if it is large."""
    if not settings.secret_key_previous:
        return []
    found, more = [], []
    for column in SEALED:
        try:
            count, unseen = await count_previous(conn, settings, column, SEALED_ROWS)
        except asyncpg.UndefinedTableError:
            # Not migrated, which another finding reports.
            return []
        if count:
            found.append(f"{column.purpose} ({count}{' or more' if unseen else ''})")
        if unseen:
            more.append(column.purpose)
    if found:
        detail = f"SECRET_KEY_PREVIOUS still seals {', '.join(found)}"
        fix = "Run shinkei keys reseal, once all replicas have this SECRET_KEY."
        return [warn("sealed", detail, fix)]
    if more:
        detail = f"SECRET_KEY_PREVIOUS seals none of the {SEALED_ROWS} last {' and '.join(more)}"
        fix = "Run shinkei keys reseal, which looks at all, before you remove SECRET_KEY_PREVIOUS."
        return [warn("sealed", detail, fix)]
    detail = "SECRET_KEY_PREVIOUS seals nothing: if SECRET_KEY has replaced it, it can be removed"
    return [ok("sealed", detail)]


_CHECKS: tuple[Check, ...] = (
    _check_database,
    _check_collation,
    check_tls,
    _check_migrations,
    _check_privileges,
    _check_pool,
    _check_clock,
    _check_keys,
    _check_sealed,
    _check_administrators,
    check_direct,
    check_replica,
)
