"""The run's PostgreSQL: the server in ``DATABASE_URL`` if set, otherwise an embedded one.

Migrations run once, into a template that each test's database is cloned from. The process that
starts the workers owns both, and passes their details on in an environment variable.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from service.audit.partitions import maintain_partitions
from service.context import SETTINGS
from service.db import migrations
from service.embedded import server as embedded
from service.settings import Database, Settings, load_settings
from tests.support.clients import FAST, SECRET_KEY
from tests.support.scratch import find_memory, make_directory
from tests.support.waiting import DEADLINE_S

_VARIABLE = "SHINKEI_TEST_SERVER"

_owned = contextlib.ExitStack()
_servers: list[embedded.Server] = []


def start() -> None:
    """Start the server, unless one is given, and create the template."""
    # Ignore other database variables in a developer's shell.
    url = os.environ.get("DATABASE_URL")
    given = {"DATABASE_URL": url} if url else {}
    database = load_settings({"SECRET_KEY": SECRET_KEY, **given}).database or _start_embedded()
    template = dataclasses.replace(database, name=f"shinkei_template_{secrets.token_hex(4)}")
    _execute(database, f'create database "{template.name}"')
    _owned.callback(_execute, database, f'drop database "{template.name}" with (force)')
    migrations.apply_pending(template, DEADLINE_S)
    asyncio.run(_create_partitions(template))
    os.environ[_VARIABLE] = json.dumps(
        {
            "hosts": database.hosts,
            "name": database.name,
            "user": database.user,
            "password": database.password,
            "options": database.options,
            "template": template.name,
        }
    )


def _start_embedded() -> Database:
    data_dir = make_directory(find_memory())
    _owned.callback(shutil.rmtree, data_dir, ignore_errors=True)
    server = embedded.start(data_dir, options=FAST)
    _owned.callback(server.stop)
    _servers.append(server)
    database = server.database
    # Key derivation slows down every connection. PostgreSQL before 16 has no such setting.
    cheaper = "select set_config(name, '1', false) from pg_settings where name = 'scram_iterations'"
    _execute(database, cheaper, f"alter role {database.user} password '{database.password}'")
    return database


async def _create_partitions(database: Database) -> None:
    """Create the audit log's partitions, so that no application needs to when it starts."""
    app = web.Application()
    app[SETTINGS] = Settings()
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        async with connection.transaction():
            await maintain_partitions(app, connection)
    finally:
        await connection.close()


def stop() -> None:
    """Close this process's connections, and delete what ``start`` created, if it ran here."""
    _owned.close()


def server_pids() -> set[int]:
    """Return the process id of the embedded server, if there is one."""
    return {server.process.pid for server in _servers}


def maintenance_database() -> Database:
    """Return the server's own database, from which others are created and dropped."""
    found = _details()
    return Database(
        hosts=tuple((host, port) for host, port in found["hosts"]),
        name=found["name"],
        user=found["user"],
        password=found["password"],
        options=tuple((key, value) for key, value in found["options"]),
    )


@contextlib.contextmanager
def new_database(*, migrated: bool = True) -> Iterator[Database]:
    """Create an empty database. A migrated one also has the audit log's partitions."""
    maintenance = maintenance_database()
    name = f"shinkei_test_{secrets.token_hex(6)}"
    clone = f' template "{_details()["template"]}" strategy = file_copy' if migrated else ""
    _execute(maintenance, f'create database "{name}"{clone}')
    try:
        yield dataclasses.replace(maintenance, name=name)
    finally:
        _execute(maintenance, f'drop database "{name}" with (force)')


@functools.cache
def _details() -> dict[str, Any]:
    details: dict[str, Any] = json.loads(os.environ[_VARIABLE])
    return details


@functools.cache
def _connect(database: Database) -> Any:
    """Keep one connection per process: each new one costs a fork and a SCRAM exchange."""
    import psycopg

    arguments: dict[str, Any] = {**database.libpq_arguments()}
    try:
        connection = psycopg.connect(**arguments, autocommit=True)
    except psycopg.OperationalError as error:
        raise pytest.UsageError(str(error).splitlines()[0]) from None
    _owned.callback(connection.close)
    return connection


def _execute(database: Database, *statements: str) -> None:
    for statement in statements:
        _connect(database).execute(statement)
