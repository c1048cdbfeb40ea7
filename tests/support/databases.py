"""The run's PostgreSQL: the server in ``DATABASE_URL`` if set, otherwise an embedded one.

Migrations run once, into a template that each test's database is cloned from. The process that
starts the workers owns both, and tells them by an environment variable.
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
from pathlib import Path
from typing import Any

import asyncpg
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

_servers: list[tuple[embedded.Server, Path]] = []
_templates: list[tuple[Database, str]] = []
_connections: list[Any] = []


def start() -> None:
    """Start the server, unless one is given, and create the template."""
    # Ignore other database variables in a developer's shell.
    url = os.environ.get("DATABASE_URL")
    given = {"DATABASE_URL": url} if url else {}
    database = load_settings({"SECRET_KEY": SECRET_KEY, **given}).database or _start_embedded()
    template = dataclasses.replace(database, name=f"shinkei_template_{secrets.token_hex(4)}")
    _execute(database, f'create database "{template.name}"')
    _templates.append((database, template.name))
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
    server = embedded.start(data_dir, options=FAST)
    _servers.append((server, data_dir))
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
    async with connection.transaction():
        await maintain_partitions(app, connection)
    await connection.close()


def stop() -> None:
    """Delete what this process created, if it is the one that called ``start``."""
    while _templates:
        database, name = _templates.pop()
        _execute(database, f'drop database "{name}"')
    while _connections:
        _connections.pop().close()
    while _servers:
        server, data_dir = _servers.pop()
        server.stop()
        shutil.rmtree(data_dir, ignore_errors=True)


def server_pids() -> set[int]:
    """Return the process id of the embedded server, if there is one."""
    return {server.process.pid for server, _ in _servers}


def maintenance_database() -> Database:
    """Return the server's own database, from which others are created and dropped."""
    told = _told()
    return Database(
        hosts=tuple((host, port) for host, port in told["hosts"]),
        name=told["name"],
        user=told["user"],
        password=told["password"],
        options=tuple((key, value) for key, value in told["options"]),
    )


@contextlib.contextmanager
def new_database(*, migrated: bool = True) -> Iterator[Database]:
    """Create an empty database. A migrated one also has the audit log's partitions."""
    maintenance = maintenance_database()
    name = f"shinkei_test_{secrets.token_hex(6)}"
    clone = f' template "{_told()["template"]}" strategy = file_copy' if migrated else ""
    _execute(maintenance, f'create database "{name}"{clone}')
    yield dataclasses.replace(maintenance, name=name)
    _execute(maintenance, f'drop database "{name}" with (force)')


@functools.cache
def _told() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.environ[_VARIABLE])
    return told


@functools.cache
def _connect(database: Database) -> Any:
    """Keep one connection per process: each new one costs a fork and a SCRAM exchange."""
    import psycopg

    arguments: dict[str, Any] = {**database.libpq_arguments()}
    connection = psycopg.connect(**arguments, autocommit=True)
    _connections.append(connection)
    return connection


def _execute(database: Database, *statements: str) -> None:
    for statement in statements:
        _connect(database).execute(statement)
