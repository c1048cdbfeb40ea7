"""Connecting to PostgreSQL: why it fails, and whether TLS protects it."""

import os
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import asyncpg

from service.db.connection import explain
from service.doctor.findings import Finding, fail, ok, warn
from service.settings import Database, Settings, is_local

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Variables(NamedTuple):
    """Names for where the operator has set each part of the database, for use in advice."""

    host: str
    name: str
    password: str
    sslmode: str
    sslrootcert: str
    target: str


def name_variables(environ: Mapping[str, str], database: Database) -> Variables:
    url = "DATABASE_URL" if environ.get("DATABASE_URL", "").strip() else ""

    def option(variable: str, name: str) -> str:
        return f"{name} in {url}" if url and not environ.get(variable, "").strip() else variable

    return Variables(
        host=url or "DB_HOST and DB_PORT",
        name=url or "DB_NAME",
        password=f"the password in {database.password_file or url or 'DB_PASS'}",
        sslmode=option("DB_SSLMODE", "sslmode"),
        sslrootcert=option("DB_SSLROOTCERT", "sslrootcert"),
        target=option("DB_TARGET_SESSION_ATTRS", "target_session_attrs"),
    )


# Advice by the cause that ``explain`` returns, formatted with a Database and its Variables.
_FIXES = {
    "password": "Correct {variables.password}, or set a new one in psql with"
    " \\password {database.user}.",
    "unauthorized": "Allow the connection in pg_hba.conf, and check that the role may log in.",
    "no database": "Create it: createdb --owner {database.user} {database.name}; or correct the"
    " name in {variables.name}.",
    "too many connections": "Raise max_connections, or reduce the connection pools of its clients.",
    "closed": "Check PostgreSQL's log, and that of a proxy in between.",
    "read-only": "List the primary's host too, or correct {variables.target}.",
    "starting": "Wait, or check PostgreSQL's log.",
    "target": "List the primary's host too, or correct {variables.target}.",
    "options": "Correct {variables.sslmode}, {variables.sslrootcert} and the other options.",
    "file": "Correct {variables.sslrootcert}, the other options, or {variables.host}.",
    "certificate": "Set {variables.sslrootcert} to the file with the authority's certificate, and"
    " use the host name that the server's certificate contains.",
    "handshake": "Check the server's TLS versions and certificate.",
    "host name": "Correct the host in {variables.host}.",
    "refused": "Start PostgreSQL there, check its listen_addresses, or correct {variables.host}.",
    "timeout": "Allow the connection in the firewall, or correct {variables.host}.",
    "no TLS": "Turn TLS on there (ssl = on, and a certificate). On a trusted network, set"
    " {variables.sslmode} to disable instead.",
    "other": "Check PostgreSQL's log.",
}


def unreachable(error: Exception, database: Database, variables: Variables) -> Finding:
    cause, reason, _ = explain(error)
    if cause == "unauthorized" and isinstance(error, asyncpg.PostgresError):
        reason = error.message or reason
    where = f"{database.address}, database {database.name}, user {database.user}"
    fix = _FIXES[cause].format(variables=variables, database=database)
    return fail("database", f"{where}: {reason}", fix)


async def check_tls(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Check that the connection is encrypted and the server's identity is verified."""
    database = settings.database
    assert database is not None  # noqa: S101
    mode = dict(database.options).get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    if database.pgbouncer:
        # pg_stat_ssl would describe PgBouncer's connection, not ours.
        return [ok("tls", f"sslmode={mode} to PgBouncer, which does not report more")]
    row = await conn.fetchrow(
        "select version, cipher from pg_stat_ssl where pid = pg_backend_pid() and ssl"
    )
    how = f"{row['version']}, {row['cipher']}" if row else ""
    if all(is_local(host) for host, _ in database.hosts):
        return [ok("tls", f"{how or 'not used'}; the server is on this machine")]
    return [judge_tls(how, mode, variables)]


def judge_tls(how: str, mode: str, variables: Variables) -> Finding:
    """Judge a connection to another machine; ``how`` is empty if it does not use TLS."""
    fix = f"Set {variables.sslmode} to verify-full, and {variables.sslrootcert} to its authority."
    if not how:
        return warn("tls", "not used: account data crosses the network in the clear", fix)
    if mode == "verify-full":
        return ok("tls", f"{how}; the server's certificate and name are checked (verify-full)")
    if mode == "verify-ca":
        detail = f"{how}; sslmode=verify-ca accepts any server with a certificate of this authority"
        return warn("tls", detail, fix)
    detail = f"{how}; with sslmode={mode}, an attacker in between can impersonate the server"
    return warn("tls", detail, fix)
