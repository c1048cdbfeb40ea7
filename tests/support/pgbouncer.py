"""PgBouncer in transaction mode, in front of a test's database."""

import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from service.embedded.launcher import find_account, launcher
from service.settings import Database
from tests.support.processes import connect, reserved_port, started
from tests.support.programs import require
from tests.support.waiting import eventually_blocking


def prepare(
    database: Database,
    directory: Path,
    port: int,
    pool_size: int = 20,
    server_lifetime: int = 3600,
) -> list[str]:
    """Write PgBouncer's configuration, and return the command that runs it.

    It has ``pool_size`` connections to the database for all clients, each for ``server_lifetime``
    seconds, and connects again as docs/deployment.md says.
    """
    program = require("pgbouncer", "/usr/sbin/pgbouncer")
    host, server_port = database.hosts[0]
    # PgBouncer refuses to run as root, and the other user must be able to read its file.
    directory.chmod(0o755)
    file = directory / "pgbouncer.ini"
    file.write_text(
        f"""
        [databases]
        * = host={host} port={server_port} user={database.user} password={database.password}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        admin_users = {database.user}
        pool_mode = transaction
        default_pool_size = {pool_size}
        server_login_retry = 1
        server_lifetime = {server_lifetime}
        """.replace("        ", "")
    )
    # Not by its option -u: the kernel forgets whom a process dies with when it changes its user.
    as_another = launcher(signal.SIGKILL, find_account()) if os.geteuid() == 0 else []
    return [*as_another, program, str(file)]


def through_port(database: Database, port: int) -> Database:
    """Return the database by way of a PgBouncer."""
    return dataclasses.replace(database, hosts=(("127.0.0.1", port),), pgbouncer=True)


@contextlib.contextmanager
def behind_pgbouncer(
    database: Database, *, default_pool_size: int = 20, server_lifetime: int = 3600
) -> Iterator[Database]:
    """Yield the database through PgBouncer, which has this many connections to it for all clients.

    With one, what a client leaves behind in its session is there for the next. If they live for 0
    seconds, each transaction has a new one.
    """
    with reserved_port() as port, tempfile.TemporaryDirectory() as directory:
        command = prepare(database, Path(directory), port, default_pool_size, server_lifetime)
        with started(*command):
            through = through_port(database, port)
            eventually_blocking(lambda: answers(through))
            yield through


def waiting_clients(through: Database) -> int:
    """Return how many clients PgBouncer keeps waiting for a connection to the database."""
    with connect(dataclasses.replace(through, name="pgbouncer")) as console:
        cursor = console.execute("show pools")
        columns = [column.name for column in cursor.description]
        pools = [dict(zip(columns, row, strict=True)) for row in cursor]
    return sum(int(pool["cl_waiting"]) for pool in pools if pool["database"] == through.name)


def answers(database: Database) -> bool:
    with contextlib.suppress(psycopg.OperationalError), connect(database):
        return True
    return False
