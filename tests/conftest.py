"""One PostgreSQL per run, one database per test, and the application on top.

Tests run in parallel, with real concurrency: see ``tests/support/databases.py`` and ``lending.py``.
"""

import contextlib
import dataclasses
import gc
import os
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import hypothesis
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import BaseTestServer
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.db import pool
from service.http.connections import CONNECTIONS
from service.mail import sender
from service.settings import Database, Settings
from tests.support import databases, described, forks
from tests.support.authenticator import ORIGIN, RP_ID
from tests.support.clients import PLENTY, SECRET_KEY, Client, StartApp
from tests.support.lending import Lender, WatchedClient
from tests.support.logbook import log_into
from tests.support.passkey_faults import OTHER_ORIGIN
from tests.support.processes import adopt_orphans, end_with_parent, lasting_orphans
from tests.support.scratch import make_directory, remove_leftovers
from tests.support.served import Server
from tests.support.waiting import DEADLINE_S

LOG_VARIABLE = "SHINKEI_TEST_LOG"
# Test passwords, hashes, links, JWTs, emails, and anything shaped like 256 random bits, the secret
# of an app or a recovery code.
CANARY = re.compile(
    r"a passphrase nobody|quite another phrase|a secret key of the tests|\$argon2"
    r"|#token=|eyJ[\w-]{10,}\.|[\w.+-]@[\w-]+\.\w|(?<![\w-])[\w-]{43}(?![\w-])"
    r"|otpauth:|(?<![\w-])[A-Z2-7]{32}(?![\w-])|(?<![\w-])[0-9a-z]{4}(-[0-9a-z]{4}){2}(?![\w-])"
)

# ``make test`` tries few examples of each property, ``make test-slow`` more. Ask for ``exhaustive``
# by name, for single properties.
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
hypothesis.settings.register_profile(
    "exhaustive", parent=hypothesis.settings.get_profile("quick"), max_examples=10_000
)
hypothesis.settings.load_profile("quick")

# Many tests wait for a mail.
sender.POLL_S = 0.1
# A busy machine may keep a test from its next statement for longer than in production.
pool.IDLE_IN_TRANSACTION_S = 60

_log_dir: list[Path] = []


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    """Run tests on the event loop used in production."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and create the template database, in the process that starts the workers."""
    if config.option.collectonly:
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A background shell job ignores SIGINT, and the processes under test would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        end_with_parent()
    else:
        adopt_orphans()
        remove_leftovers()
        _log_dir.append(make_directory())
        os.environ[LOG_VARIABLE] = str(_log_dir[0] / "log")
    log_into(Path(os.environ[LOG_VARIABLE]))
    if hasattr(config, "workerinput"):
        return
    databases.start()


def pytest_collection_finish() -> None:
    """Exclude imported and collected objects from garbage collection, to save time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if it leaves a process behind, or a secret in its log."""
    forks.end()
    if not _log_dir:
        return
    for pid, line in lasting_orphans(databases.server_pids()).items():
        print(f"\na leftover process: {pid} {line[:300]}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _look_for_secrets(session)


def _look_for_secrets(session: pytest.Session) -> None:
    """Fail the run if its log has a secret other than a link of the development mailer."""
    lines = (_log_dir[0] / "log").read_text().splitlines()
    shutil.rmtree(_log_dir.pop())
    found = [line for line in lines if "mail written" not in line and CANARY.search(line)]
    for line in found[:5]:
        print(f"\na secret in the log: {line[:500]}")
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    databases.stop()


@pytest.fixture(scope="session")
def maintenance() -> Database:
    """The server's own database, used to create and drop others."""
    return databases.maintenance_database()


@pytest.fixture(scope="session")
async def lender() -> AsyncIterator[Lender]:
    @contextlib.contextmanager
    def new_settings() -> Iterator[Settings]:
        data_dir = make_directory()
        with databases.new_database() as database:
            yield _settings(database, data_dir)
        shutil.rmtree(data_dir)

    lender = Lender(new_settings)
    yield lender
    await lender.end()


@pytest.fixture
async def borrowed(lender: Lender) -> AsyncIterator[Settings]:
    """The settings of an application that the test borrows."""
    yield await lender.borrow()
    await lender.take_back()


@pytest.fixture
def may_borrow() -> None:
    """Requested by ``client`` alone, so that ``lent`` can tell."""


@pytest.fixture
def own_application() -> None:
    """For a test whose ``client`` must be new, such as one about query plans."""


@pytest.fixture
def lent(request: pytest.FixtureRequest) -> Settings | None:
    """What is ``borrowed``, or None if the test has its own applications.

    Those are tests without ``client``, tests that patch something, maybe in the application, and
    tests that ask for ``own_application``.
    """
    names = set(request.fixturenames)
    if "may_borrow" not in names or names & {"monkeypatch", "own_application"}:
        return None
    settings: Settings = request.getfixturevalue("borrowed")
    return settings


@pytest.fixture
def database(lent: Settings | None) -> Iterator[Database]:
    """A migrated, empty database, with the audit log's partitions."""
    if lent is not None:
        assert lent.database is not None
        yield lent.database
        return
    with databases.new_database() as database:
        yield database


@pytest.fixture
def empty_database() -> Iterator[Database]:
    """A database without migrations."""
    with databases.new_database(migrated=False) as database:
        yield database


@pytest.fixture
def settings(database: Database, lent: Settings | None, tmp_path: Path) -> Settings:
    """Default settings with a small pool, the cheapest argon2 hash and generous limits.

    Periodic jobs begin long after the test, unless it asks for ``**WITH_JOBS``.
    """
    return _settings(database, lent.data_dir if lent else tmp_path / "data")


def _settings(database: Database, data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir,
        database=database,
        secret_key=SECRET_KEY,
        db_pool_size=4,
        # A busy machine must not fail a test; tests about deadlines set their own.
        db_acquire_timeout_s=60,
        db_command_timeout_s=60,
        db_lock_timeout_s=60,
        request_timeout_s=120,
        keepalive_timeout_s=120,
        write_timeout_s=120,
        slow_query_ms=60_000,
        rp_id=RP_ID,
        rp_origins=frozenset({ORIGIN, OTHER_ORIGIN}),
        # Long after the test.
        jobs_start_within_s=1e6,
        password_hash_memory_kib=8,
        password_hash_iterations=1,
        throttle_sign_in_per_account=PLENTY,
        throttle_sign_in_per_ip=PLENTY,
        throttle_all_sign_ins_per_ip=PLENTY,
        throttle_registration_per_ip=PLENTY,
        throttle_factors_per_account=PLENTY,
        throttle_factors_per_ip=PLENTY,
        throttle_mail_per_account=PLENTY,
        throttle_mail_per_ip=PLENTY,
    )


@pytest.fixture
async def conn(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The test's own connection, to set up and inspect the database."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    yield connection
    await connection.close()


@pytest.fixture
def aiohttp_client(
    lent: Settings | None, aiohttp_client: AiohttpClient
) -> Callable[..., Awaitable[Client]]:
    """Serve the service's applications behind the same connections as in production.

    Requests ``lent``, so that all of the test's applications have ended when that is taken back.
    """

    async def serve(app: web.Application | BaseTestServer, **options: Any) -> Client:
        served: Any = app
        if isinstance(app, web.Application) and CONNECTIONS in app:
            served = Server(app)
        client: Any = await aiohttp_client(served, **options)
        return cast("Client", client)

    return serve


@pytest.fixture
def start_app(settings: Settings, aiohttp_client: AiohttpClient) -> StartApp:
    """Start the application with the given settings changed, and return its client.

    The client's requests and responses are checked against the API's description.
    """

    async def start(**changes: Any) -> Client:
        changed = dataclasses.replace(settings, **changes)
        checks = described.checks_of(changed)
        return await aiohttp_client(create_app(changed), middlewares=checks)

    return start


@pytest.fixture
def mail_at_once() -> Iterator[None]:
    """Make the sender poll for mail many times a second."""
    # Not ``monkeypatch``: a test that uses it does not borrow an application.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender, "POLL_S", 0.02)
        yield


@pytest.fixture
def postgresql_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for as long as PostgreSQL takes to cancel a statement."""
    monkeypatch.setattr(pool, "CANCEL_WITHIN_S", DEADLINE_S)


@pytest.fixture
def no_invalid_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse names in ``.invalid`` without asking the machine's resolver."""
    look_up = socket.getaddrinfo

    def look_up_others(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_others)


@pytest.fixture
def aiohttp_client_cls() -> type[Client]:
    """The class of the clients that ``aiohttp_client`` creates."""
    return WatchedClient


@pytest.fixture
async def client(
    may_borrow: None,
    lent: Settings | None,
    lender: Lender,
    settings: Settings,
    aiohttp_client: Callable[..., Awaitable[WatchedClient]],
    start_app: StartApp,
) -> AsyncIterator[Client]:
    """The application. Tests borrow it from each other: see ``tests/support/lending.py``."""
    if lent == settings:
        client = await aiohttp_client(lender.server, middlewares=described.checks_of(lent))
        yield client
        lender.changed |= client.looked_inside
        return
    if lent is not None:
        # The module of the test has settings of its own.
        await lender.stop()
    yield await start_app()
