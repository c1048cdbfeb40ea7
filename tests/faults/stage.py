"""The parts of a run: PostgreSQL, what lies between it and the service, and the service."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar
from urllib.parse import quote
from urllib.request import urlopen

import asyncpg

from service.db import migrations
from service.embedded import server as embedded
from service.settings import Database
from tests.support.authenticator import ORIGIN, RP_ID
from tests.support.clients import SECRET_KEY
from tests.support.pgbouncer import answers, prepare, through_port
from tests.support.processes import (
    SHINKEI,
    connect,
    dies_with_parent,
    environment,
    processes,
    reserved_port,
    workers_of,
)
from tests.support.proxy import Proxy, proxying
from tests.support.scrape import Samples, metrics_at
from tests.support.scratch import find_memory, make_directory
from tests.support.standby import start_standby
from tests.support.waiting import DEADLINE_S, eventually

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SERVE = (*SHINKEI, "serve")
READS = "shinkei_db_replica_reads_total"
LIMITS = (
    "statement_timeout = '3s'",
    "lock_timeout = '2s'",
    "idle_in_transaction_session_timeout = '5s'",
)
# What the tests' own sessions are called.
NAME = "faults"

# Processes are killed here, but never the machine: the operating system keeps what was written.
CONNECTIONS = 100
OPTIONS = {"fsync": "off", "autovacuum": "off", "max_connections": str(CONNECTIONS)}
# Deadlines as in production, unlike in other tests; limits that the load stays below.
VARIABLES = {
    "DB_CONNECT_TIMEOUT_S": "",
    "DB_ACQUIRE_TIMEOUT_S": "",
    "DB_COMMAND_TIMEOUT_S": "",
    "DB_LOCK_TIMEOUT_S": "",
    "REQUEST_TIMEOUT_S": "",
    "BODY_TIMEOUT_S": "",
    "SHUTDOWN_DELAY_S": "",
    "SLOW_QUERY_MS": "",
    "SECRET_KEY": SECRET_KEY,
    "RP_ID": RP_ID,
    "RP_ORIGINS": ORIGIN,
    "ACCESS_TOKEN_TTL_S": "86400",
    "SESSIONS_PER_ACCOUNT": "10000",
    "THROTTLE_SIGN_IN_PER_IP": "9999/m",
    "THROTTLE_ALL_SIGN_INS_PER_IP": "9999/m",
    "THROTTLE_REGISTRATION_PER_IP": "9999/m",
}


@dataclasses.dataclass
class Postgres:
    """A PostgreSQL that a fault may stop, kill and start again on its port."""

    data_dir: Path
    port: int
    do: Callable[..., Any]
    server: embedded.Server | None = None

    @property
    def database(self) -> Database:
        assert self.server is not None
        return self.server.database

    async def start(self) -> None:
        self.server = await self.do(embedded.start, self.data_dir, port=self.port, options=OPTIONS)

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL no shutdown."""
        assert self.server is not None
        await self.do(self.server.stop, how)

    def send(self, wanted: signal.Signals) -> None:
        """Send a signal to all of its processes, such as SIGSTOP."""
        assert self.server is not None
        family = {self.server.process.pid}
        while more := {pid for pid, one in processes().items() if one.parent in family} - family:
            family |= more
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, wanted)

    async def connect(self, name: str | None = None) -> Connection:
        """Connect as the superuser, past the proxy and PgBouncer, to this database or another."""
        database = dataclasses.replace(self.database, name=name or self.database.name)
        own = {each.partition(" ")[0]: "0" for each in LIMITS} | {"application_name": NAME}
        return await asyncpg.connect(**database.asyncpg_arguments(), server_settings=own)

    @contextlib.asynccontextmanager
    async def administrator(self, name: str | None = None) -> AsyncIterator[Connection]:
        """Connect for the duration of the block, as ``connect`` does."""
        connection = await self.connect(name)
        try:
            yield connection
        finally:
            connection.terminate()

    async def execute(self, *statements: str) -> None:
        async with self.administrator() as connection:
            for statement in statements:
                await connection.execute(statement)

    async def value(self, query: str) -> Any:
        async with self.administrator() as connection:
            return await connection.fetchval(query)


@dataclasses.dataclass
class Pooler:
    """A PgBouncer in transaction mode, which a fault may stop, kill and start again."""

    directory: Path
    port: int
    target: Database
    do: Callable[..., Any]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def database(self) -> Database:
        return through_port(self.target, self.port)

    async def start(self) -> None:
        command = prepare(self.target, self.directory, self.port)
        self.process = await self.do(_spawn, dies_with_parent(*command))
        await eventually(lambda: self.do(answers, self.database))

    def send(self, wanted: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(wanted)

    async def end(self, wanted: signal.Signals) -> None:
        """Send the signal, and return once it has ended."""
        self.send(wanted)
        assert self.process is not None
        await self.do(self.process.wait, DEADLINE_S)

    async def execute(self, command: str) -> None:
        """Send a command to its console, such as PAUSE."""
        await self.do(_ask_console, self.database, command)


def _ask_console(database: Database, command: str) -> None:
    with connect(dataclasses.replace(database, name="pgbouncer")) as console:
        console.execute(command)


def _spawn(
    command: list[str],
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Run a command in a session of its own."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


@dataclasses.dataclass
class Service:
    """``shinkei serve``, which a fault may signal, kill and start again on its port."""

    directory: Path
    port: int
    variables: dict[str, str]
    do: Callable[..., Any]
    command: tuple[str, ...] = SERVE
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which it and its commands run. A peer needs some of its own."""
        own = {"PORT": str(self.port), "JWT_SECRET": SECRET_KEY}
        return environment(**{**VARIABLES, **self.variables, **own})

    @property
    def log(self) -> list[dict[str, Any]]:
        """The events that all its processes have logged. Raises if a line is not JSON."""
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    @property
    def _log_path(self) -> Path:
        return self.directory / "log"

    async def start(self) -> None:
        """Start it, and return once it serves."""
        await self.do(self._run)

        def serves() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(self._log_path.read_text())
            with contextlib.suppress(OSError), urlopen(f"{self.url}/health/live", timeout=1):
                return True
            return False

        await eventually(lambda: self.do(serves))

    def _run(self) -> None:
        with self._log_path.open("ab") as log:
            self.process = _spawn(
                dies_with_parent(*self.command),
                cwd=self.directory,
                env=self.environment,
                stderr=log,
            )

    def send(self, wanted: signal.Signals, *pids: int) -> None:
        """Send a signal to the processes, or to the first one."""
        assert self.process is not None
        for pid in pids or (self.process.pid,):
            os.kill(pid, wanted)

    async def end(self) -> int:
        """Return its exit code, once it has ended."""
        assert self.process is not None
        code: int = await self.do(self.process.wait, DEADLINE_S)
        return code

    async def kill(self) -> None:
        """Kill all of its processes."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.end()

    @property
    def pids(self) -> list[int]:
        """Its process and its workers."""
        assert self.process is not None
        first = self.process.pid
        return [first, *sorted(workers_of(first))]

    def resources(self) -> tuple[int, int]:
        """Return the resident memory in bytes and the open descriptors of all processes."""
        memory = descriptors = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                memory += pages * os.sysconf("SC_PAGE_SIZE")
                descriptors += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return memory, descriptors


@dataclasses.dataclass
class Stage:
    """The parts of a run, as its mode connects them."""

    mode: str
    directory: Path
    do: Callable[..., Any]
    postgres: Postgres
    proxy: Proxy
    service: Service
    mail_port: int
    standby: Postgres | None = None
    pooler: Pooler | None = None
    # The way to the standby.
    second: Proxy | None = None
    promoted: bool = False

    @property
    def database(self) -> Database:
        """The database, by the way that the service takes."""
        return self.proxy.database

    @property
    def primary(self) -> Postgres:
        """The server that accepts writes."""
        return self.standby if self.promoted and self.standby else self.postgres

    async def until_replica_serves(self) -> None:
        """Return once the replica has served more lists than now."""
        before = await self._replica_reads()

        async def serves() -> bool:
            return await self._replica_reads() > before

        await eventually(serves)

    async def _replica_reads(self) -> float:
        port = int(self.service.variables["METRICS_PORT"])
        samples: Samples = await self.do(metrics_at, port)
        return samples[READS, frozenset({("server", "replica")})]

    async def promote(self) -> None:
        """Make the standby the primary."""
        assert self.standby is not None
        await self.standby.execute("select pg_promote(true, 60)")
        self.promoted = True


def url_of(*databases: Database) -> str:
    """Return the URL of a database, or of the primary of several."""
    first = databases[0]
    hosts = ",".join(f"{host}:{port}" for each in databases for host, port in each.hosts)
    url = f"postgresql://{first.user}:{quote(first.password)}@{hosts}/{first.name}"
    return f"{url}?target_session_attrs=read-write" if len(databases) > 1 else url


@contextlib.contextmanager
def hands() -> Iterator[Callable[..., Any]]:
    """Yield a function that calls another in one thread, apart from the event loop.

    The kernel kills what a thread has started when that thread ends, so it lives as long as the
    block.
    """
    with ThreadPoolExecutor(1, "hands") as executor:

        def do(function: Callable[..., T], *arguments: Any, **named: Any) -> "asyncio.Future[T]":
            return asyncio.get_running_loop().run_in_executor(
                executor, lambda: function(*arguments, **named)
            )

        yield do


def make_template(directory: Path) -> Path:
    """Make a migrated cluster to copy, which is not running, and return its directory."""
    server = embedded.start(directory, options=OPTIONS)
    try:
        migrations.apply_pending(server.database, DEADLINE_S)
        with connect(server.database) as conn:
            # The client without defences writes to it.
            conn.execute("create table control (number int)")
    finally:
        server.stop()
    return directory


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Yield a directory, in memory if there is room, where clusters are copied faster."""
    directory = make_directory(find_memory())
    # PgBouncer reads its file as another user.
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def staged(
    mode: str,
    template: Path,
    *,
    mails: bool = False,
    command: tuple[str, ...] = SERVE,
    **variables: str,
) -> AsyncIterator[Stage]:
    """Start the parts of a mode on a copy of the template's cluster, for the block's duration."""
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(_directory())
        do = stack.enter_context(hands())
        port, standby_port, pooler_port, service_port, mail_port, metrics_port = (
            stack.enter_context(reserved_port()) for _ in range(6)
        )
        await do(shutil.copytree, template, directory / "primary")
        postgres = Postgres(directory / "primary", port, do)
        await postgres.start()
        stack.push_async_callback(_stop, postgres)
        behind = postgres.database
        others: tuple[Database, ...] = ()
        pooler: Pooler | None = None
        standby: Postgres | None = None
        if mode == "pgbouncer":
            # As docs/deployment.md says, because the service cannot set them.
            await postgres.execute(
                *(f"alter role {postgres.database.user} set {each}" for each in LIMITS)
            )
            (directory / "pgbouncer").mkdir()
            pooler = Pooler(directory / "pgbouncer", pooler_port, postgres.database, do)
            stack.push_async_callback(pooler.end, signal.SIGKILL)
            await pooler.start()
            behind = pooler.database
        variables = {**variables, "WORKERS": "2" if mode == "two workers" else "1"}
        second: Proxy | None = None
        if mode in ("two hosts", "replica"):
            standby = Postgres(directory / "standby", standby_port, do)
            standby.server = await do(
                start_standby,
                postgres.server,
                postgres.data_dir,
                standby.data_dir,
                port=standby_port,
            )
            stack.push_async_callback(_stop, standby)
            second = await stack.enter_async_context(proxying(standby.database))
        if second is not None and mode == "two hosts":
            others = (second.database,)
        if second is not None and mode == "replica":
            variables["DATABASE_REPLICA_URL"] = url_of(second.database)
            variables["METRICS_PORT"] = str(metrics_port)
        proxy = await stack.enter_async_context(proxying(behind))
        (directory / "service").mkdir()
        service = Service(
            directory / "service",
            service_port,
            {
                "DATABASE_URL": url_of(proxy.database, *others),
                "DB_PGBOUNCER": "true" if behind.pgbouncer else "",
                "MAIL_URL": f"smtp://127.0.0.1:{mail_port}" if mails else "",
                **variables,
            },
            do,
            command,
        )
        stack.push_async_callback(_kill, service)
        await service.start()
        yield Stage(
            mode, directory, do, postgres, proxy, service, mail_port, standby, pooler, second
        )


async def _stop(postgres: Postgres) -> None:
    postgres.send(signal.SIGCONT)
    await postgres.stop(signal.SIGQUIT)


async def _kill(service: Service) -> None:
    if service.process is not None:
        await service.kill()
