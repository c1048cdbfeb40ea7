"""A PostgreSQL for the whole run, a database of its own for each test, and the application on it.

The server is ``DATABASE_URL``'s where that is set, and an embedded one otherwise. Migrations run
once, into a template database that each test clones, so that tests run in parallel and their
concurrency is real.
"""

import dataclasses
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from service import embedded, migrate
from service.app import create_app
from service.settings import Database, Settings, load_settings

Client = TestClient[web.Request, web.Application]

SERVER_VARIABLE = "SHINKEI_TEST_SERVER"
SECRET_KEY = "a secret key of the tests, long enough to be taken"
# Nothing here has to survive a crash.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "300",
}

_owned: list[Any] = []


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    """The loop that serves in production."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """In the process that starts the workers: start the server and make the template database."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    settings = load_settings({"SECRET_KEY": SECRET_KEY, **_given_database()})
    database = settings.database
    if database is None:
        data_dir = Path(tempfile.mkdtemp(prefix="shinkei-tests-"))
        server = embedded.start(data_dir, options=FAST)
        _owned.append((server, data_dir))
        database = server.database
    template = dataclasses.replace(database, name=f"shinkei_template_{secrets.token_hex(4)}")
    _execute(database, f'create database "{template.name}"')
    migrate.apply_pending(template)
    _owned.append((database, template.name))
    os.environ[SERVER_VARIABLE] = json.dumps(
        {
            "hosts": database.hosts,
            "name": database.name,
            "user": database.user,
            "password": database.password,
            "options": database.options,
            "template": template.name,
        }
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    while _owned:
        owned, rest = _owned.pop()
        if isinstance(owned, embedded.Server):
            owned.stop()
            shutil.rmtree(rest, ignore_errors=True)
        else:
            _execute(owned, f'drop database "{rest}"')


def _given_database() -> dict[str, str]:
    # The test server is no place for what a developer's shell says of another one.
    return {"DATABASE_URL": os.environ["DATABASE_URL"]} if os.environ.get("DATABASE_URL") else {}


def _execute(database: Database, *statements: str) -> None:
    import psycopg

    arguments: dict[str, Any] = {**database.libpq_arguments()}
    with psycopg.connect(**arguments, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


@pytest.fixture(scope="session")
def server() -> dict[str, Any]:
    """Where the run's PostgreSQL is; ``template`` names the migrated database."""
    loaded: dict[str, Any] = json.loads(os.environ[SERVER_VARIABLE])
    return loaded


@pytest.fixture(scope="session")
def maintenance(server: dict[str, Any]) -> Database:
    """The server's own database, from which others are made and dropped."""
    return Database(
        hosts=tuple((host, port) for host, port in server["hosts"]),
        name=server["name"],
        user=server["user"],
        password=server["password"],
        options=tuple((key, value) for key, value in server["options"]),
    )


@pytest.fixture
def database(server: dict[str, Any], maintenance: Database) -> Iterator[Database]:
    """A migrated, empty database."""
    name = f"shinkei_test_{secrets.token_hex(6)}"
    template = server["template"]
    _execute(maintenance, f'create database "{name}" template "{template}" strategy = file_copy')
    yield dataclasses.replace(maintenance, name=name)
    _execute(maintenance, f'drop database "{name}" with (force)')


@pytest.fixture
def empty_database(maintenance: Database) -> Iterator[Database]:
    """A database without even a migration."""
    name = f"shinkei_test_{secrets.token_hex(6)}"
    _execute(maintenance, f'create database "{name}"')
    yield dataclasses.replace(maintenance, name=name)
    _execute(maintenance, f'drop database "{name}" with (force)')


@pytest.fixture
def settings(database: Database, tmp_path: Path) -> Settings:
    """The defaults, but for a small pool and the cheapest hash that argon2 has."""
    return Settings(
        data_dir=tmp_path / "data",
        database=database,
        secret_key=SECRET_KEY,
        db_pool_size=4,
        password_hash_memory_kib=8,
        password_hash_iterations=1,
    )


@pytest.fixture
async def conn(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the test's own, to arrange and to look."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    yield connection
    await connection.close()


StartApp = Callable[..., Awaitable[Client]]


@pytest.fixture
def start_app(settings: Settings, aiohttp_client: AiohttpClient) -> StartApp:
    """Start the application, with settings changed as given, and return its client."""

    async def start(**changes: Any) -> Client:
        app = create_app(dataclasses.replace(settings, **changes))
        return await aiohttp_client(app)

    return start


@pytest.fixture
async def client(start_app: StartApp) -> Client:
    return await start_app()
