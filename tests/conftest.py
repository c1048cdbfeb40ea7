"""A PostgreSQL for the whole run, a database of its own for each test, and the application on it.

The server is ``DATABASE_URL``'s where that is set, and an embedded one otherwise. Migrations run
once, into a template database that each test clones, so that tests run in parallel and their
concurrency is real.
"""

import dataclasses
import functools
import gc
import json
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import uvloop
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.db import migrations
from service.embedded import server as embedded
from service.mail import sender
from service.settings import Database, Settings, load_settings
from tests.support import described
from tests.support.clients import FAST, PLENTY, SECRET_KEY, Client, StartApp
from tests.support.logbook import log_into
from tests.support.processes import adopt_orphans, end_with_parent, orphans

SERVER_VARIABLE = "SHINKEI_TEST_SERVER"
# Several times what a run needs: a database has 8 MB, the largest 100, and the WAL at most 256.
MEMORY_ENOUGH_BYTES = 2 * 2**30
# Of the run's directories; the id of its process follows.
PREFIX = "shinkei-tests-"

LOG_VARIABLE = "SHINKEI_TEST_LOG"
# Passwords of the tests, hashes, links, JWTs, addresses of mails, and what has the form of 256 random
# bits.
CANARY = re.compile(
    r"a passphrase nobody|quite another phrase|a secret key of the tests|\$argon2"
    r"|#token=|eyJ[\w-]{10,}\.|[\w.+-]@[\w-]+\.\w|(?<![\w-])[\w-]{43}(?![\w-])"
)

# Examples of a property: some in ``make test``, more in ``make test-slow``.
hypothesis.settings.register_profile(
    "quick",
    max_examples=15,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.register_profile(
    "thorough", parent=hypothesis.settings.get_profile("quick"), max_examples=100
)
hypothesis.settings.load_profile("quick")

_owned: list[Any] = []
_owned_connections: list[Any] = []
_log_dir: list[Path] = []


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    """The loop that serves in production."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """In the process that starts the workers: start the server and make the template database."""
    if config.option.collectonly:
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell; the processes that tests send Ctrl-C would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        end_with_parent()
    else:
        adopt_orphans()
        _remove_leftovers()
        _log_dir.append(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")))
        os.environ[LOG_VARIABLE] = str(_log_dir[0] / "log")
    log_into(Path(os.environ[LOG_VARIABLE]))
    if hasattr(config, "workerinput"):
        return
    settings = load_settings({"SECRET_KEY": SECRET_KEY, **_given_database()})
    database = settings.database
    if database is None:
        data_dir = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_find_memory()))
        server = embedded.start(data_dir, options=FAST)
        _owned.append((server, data_dir))
        database = server.database
        # A tenth of a test's time would go into the key derivation of its connections, as it does
        # before PostgreSQL 16, which has no such setting.
        cheaper = (
            "select set_config(name, '1', false) from pg_settings where name = 'scram_iterations'"
        )
        _execute(database, cheaper, f"alter role {database.user} password '{database.password}'")
    template = dataclasses.replace(database, name=f"shinkei_template_{secrets.token_hex(4)}")
    _execute(database, f'create database "{template.name}"')
    migrations.apply_pending(template)
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


def pytest_collection_finish() -> None:
    """Spare what was imported and collected from every search for garbage: 5 % of a run."""
    gc.collect()
    gc.freeze()


def _find_memory() -> Path | None:
    """A directory in memory, if there is room: on a disk, making databases takes 7 % of a run."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_ENOUGH_BYTES
    return memory if enough and os.access(memory, os.W_OK) else None


def _remove_leftovers() -> None:
    """Remove the directories of runs that were killed."""
    for parent in filter(None, (_find_memory(), Path(tempfile.gettempdir()))):
        for path in parent.glob(f"{PREFIX}*"):
            pid = path.name.removeprefix(PREFIX).partition("-")[0]
            if not pid.isdecimal() or not Path("/proc", pid).exists():
                shutil.rmtree(path, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if it leaves a process behind, or a secret in its log."""
    if not _log_dir:
        return
    kept = {owned.process.pid for owned, _ in _owned if isinstance(owned, embedded.Server)}
    for pid, line in orphans(kept).items():
        print(f"\na process that was left behind: {pid} {line[:300]}")
        os.kill(pid, signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _look_for_secrets(session)


def _look_for_secrets(session: pytest.Session) -> None:
    """Links are allowed where the development mailer says which it has written."""
    lines = (_log_dir[0] / "log").read_text().splitlines()
    shutil.rmtree(_log_dir.pop())
    found = [line for line in lines if "mail written" not in line and CANARY.search(line)]
    for line in found[:5]:
        print(f"\na secret in the log: {line[:500]}")
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    while _owned:
        owned, rest = _owned.pop()
        if isinstance(owned, embedded.Server):
            _close_connections()
            owned.stop()
            shutil.rmtree(rest, ignore_errors=True)
        else:
            _execute(owned, f'drop database "{rest}"')
    _close_connections()


def _close_connections() -> None:
    while _owned_connections:
        _owned_connections.pop().close()


def _given_database() -> dict[str, str]:
    # The test server is no place for what a developer's shell says of another one.
    return {"DATABASE_URL": os.environ["DATABASE_URL"]} if os.environ.get("DATABASE_URL") else {}


@functools.cache
def _connect(database: Database) -> Any:
    """A connection that the process keeps: each costs a fork and a SCRAM exchange, twice a test."""
    import psycopg

    arguments: dict[str, Any] = {**database.libpq_arguments()}
    connection = psycopg.connect(**arguments, autocommit=True)
    _owned_connections.append(connection)
    return connection


def _execute(database: Database, *statements: str) -> None:
    for statement in statements:
        _connect(database).execute(statement)


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
    """The defaults, but for a small pool, the cheapest hash that argon2 has, and generous limits."""
    return Settings(
        data_dir=tmp_path / "data",
        database=database,
        secret_key=SECRET_KEY,
        db_pool_size=4,
        # A busy machine is no fault: what is about deadlines sets its own.
        db_acquire_timeout_s=60,
        db_command_timeout_s=60,
        db_lock_timeout_s=60,
        request_timeout_s=120,
        slow_query_ms=60_000,
        password_hash_memory_kib=8,
        password_hash_iterations=1,
        throttle_sign_in_per_account=PLENTY,
        throttle_sign_in_per_ip=PLENTY,
        throttle_registration_per_ip=PLENTY,
        throttle_mail_per_account=PLENTY,
        throttle_mail_per_ip=PLENTY,
    )


@pytest.fixture
async def conn(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the test's own, to arrange and to look."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    yield connection
    await connection.close()


@pytest.fixture
def start_app(settings: Settings, aiohttp_client: AiohttpClient) -> StartApp:
    """Start the application, with settings changed as given, and return its client.

    What the client sends and gets is checked against the description of the API.
    """

    async def start(**changes: Any) -> Client:
        app = create_app(dataclasses.replace(settings, **changes))
        checks = [described.check_answers]
        if "password_min_length" not in changes:  # which is in the description
            checks.append(described.check_requests)
        return await aiohttp_client(app, middlewares=checks)

    return start


@pytest.fixture
def mail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the sender look for mail many times a second."""
    monkeypatch.setattr(sender, "POLL_S", 0.02)


@pytest.fixture
async def client(start_app: StartApp) -> Client:
    return await start_app()
