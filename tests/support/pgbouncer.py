"""PgBouncer in transaction mode, in front of a test's database."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from service.settings import Database
from tests.support.processes import connect, reserved_port, started
from tests.support.programs import require
from tests.support.waiting import eventually_blocking


@contextlib.contextmanager
def behind_pgbouncer(
    database: Database, *, default_pool_size: int = 20, server_lifetime: int = 3600
) -> Iterator[Database]:
    """Yield the database through PgBouncer, which has this many connections to it for all clients.

    With one, what a client leaves behind in its session is there for the next. If they live for 0
    seconds, each transaction has a new one.
    """
    program = require("pgbouncer", "/usr/sbin/pgbouncer")
    host, port = database.hosts[0]
    # PgBouncer refuses to run as root, and the user nobody must be able to read its file.
    with reserved_port() as listen_port, tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        file = Path(directory, "pgbouncer.ini")
        file.write_text(
            f"""
            [databases]
            * = host={host} port={port} user={database.user} password={database.password}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {listen_port}
            unix_socket_dir =
            auth_type = any
            admin_users = {database.user}
            pool_mode = transaction
            default_pool_size = {default_pool_size}
            server_lifetime = {server_lifetime}
            """.replace("            ", "")
        )
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with started(program, *user, str(file)):
            through = dataclasses.replace(
                database, hosts=(("127.0.0.1", listen_port),), pgbouncer=True
            )
            eventually_blocking(lambda: _answers(through))
            yield through


def waiting_clients(through: Database) -> int:
    """Return how many clients PgBouncer keeps waiting for a connection to the database."""
    with connect(dataclasses.replace(through, name="pgbouncer")) as console:
        cursor = console.execute("show pools")
        columns = [column.name for column in cursor.description]
        pools = [dict(zip(columns, row, strict=True)) for row in cursor]
    return sum(int(pool["cl_waiting"]) for pool in pools if pool["database"] == through.name)


def _answers(database: Database) -> bool:
    with contextlib.suppress(psycopg.OperationalError), connect(database):
        return True
    return False
