"""Reaching PostgreSQL: why a connection fails, and what protects it."""

import os
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import asyncpg

from service.db.connection import explain
from service.doctor.findings import Finding, fail, ok, warn
from service.doctor.machine import is_local
from service.settings import Database, Settings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Variables(NamedTuple):
    """Where the operator has set each part of the database, for a mend to name it."""

    host: str
    name: str
    password: str
    sslmode: str
    sslrootcert: str
    target: str


def name_variables(environ: Mapping[str, str], database: Database) -> Variables:
    url = "DATABASE_URL" if environ.get("DATABASE_URL") else ""

    def option(variable: str, name: str) -> str:
        return f"{name} in {url}" if url and not environ.get(variable) else variable

    return Variables(
        host=url or "DB_HOST and DB_PORT",
        name=url or "DB_NAME",
        password=f"the password in {database.password_file or url or 'DB_PASS'}",
        sslmode=option("DB_SSLMODE", "sslmode"),
        sslrootcert=option("DB_SSLROOTCERT", "sslrootcert"),
        target=option("DB_TARGET_SESSION_ATTRS", "target_session_attrs"),
    )


# What to do, by the cause that ``explain`` gives; with fields of Database and of Variables.
_MENDS = {
    "password": "Set {variables.password} to this user's; in psql, \\password {database.user}"
    " gives it a new one.",
    "not let in": "Let it in: a line in pg_hba.conf, and a role that may log in.",
    "no database": "Create it: createdb --owner {database.user} {database.name}; or mend the name"
    " in {variables.name}.",
    "full": "Raise max_connections, or lower the pools of those who hold them.",
    "starting": "Wait, or look into PostgreSQL's log.",
    "target": "Name the primary's host too, or mend {variables.target}.",
    "options": "Mend {variables.sslmode}, {variables.sslrootcert} and the other options.",
    "file": "Mend {variables.sslrootcert}, the other options, or {variables.host}.",
    "certificate": "Name the file with its authority's certificate in {variables.sslrootcert}, and"
    " the host as the certificate does.",
    "handshake": "Look at the TLS versions and the certificate of the server.",
    "host name": "Mend the host in {variables.host}.",
    "refused": "Start PostgreSQL there, have it listen on that address (listen_addresses), or mend"
    " {variables.host}.",
    "silence": "Let the firewall pass it, or mend {variables.host}.",
    "no TLS": "Turn TLS on there (ssl = on, and a certificate); or, on a network that you trust,"
    " set {variables.sslmode} to disable.",
    "other": "Look into PostgreSQL's log.",
}


def unreachable(error: Exception, database: Database, variables: Variables) -> Finding:
    cause, reason, _ = explain(error)
    if cause == "not let in" and isinstance(error, asyncpg.PostgresError):
        reason = error.message or reason
    where = f"{database.address}, database {database.name}, user {database.user}"
    mend = _MENDS[cause].format(variables=variables, database=database)
    return fail("database", f"{where}: {reason}", mend)


async def check_tls(conn: Connection, settings: Settings, variables: Variables) -> list[Finding]:
    """Whether the connection is encrypted, and the server known to be the one that is meant."""
    database = settings.database
    assert database is not None  # noqa: S101
    mode = dict(database.options).get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    if settings.db_pgbouncer:
        # PostgreSQL knows of PgBouncer's connection to it alone.
        return [ok("tls", f"sslmode={mode} to PgBouncer, which cannot be asked for more")]
    row = await conn.fetchrow(
        "select version, cipher from pg_stat_ssl where pid = pg_backend_pid() and ssl"
    )
    how = f"{row['version']}, {row['cipher']}" if row else ""
    if all(is_local(host) for host, _ in database.hosts):
        return [ok("tls", f"{how or 'not used'}; the server is on this machine")]
    return [judge_tls(how, mode, variables)]


def judge_tls(how: str, mode: str, variables: Variables) -> Finding:
    """What the connection to another machine is worth; ``how`` is empty where TLS is not used."""
    mend = f"Set {variables.sslmode} to verify-full, {variables.sslrootcert} to its authority's."
    if not how:
        return warn("tls", "not used: accounts go over the network in the clear", mend)
    if mode == "verify-full":
        return ok("tls", f"{how}; the server's certificate and name are checked (verify-full)")
    if mode == "verify-ca":
        detail = f"{how}; with sslmode=verify-ca any server of this authority's is taken for it"
        return warn("tls", detail, mend)
    detail = f"{how}; with sslmode={mode} whoever stands between can pose as the server"
    return warn("tls", detail, mend)
