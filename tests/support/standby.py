"""A standby of an embedded server."""

import shutil
import subprocess
from pathlib import Path

from service.embedded import server as embedded
from service.embedded.binaries import find_bindir
from tests.support.clients import FAST
from tests.support.processes import connect
from tests.support.waiting import DEADLINE_S, eventually_blocking


def start_standby(
    primary: embedded.Server, primary_dir: Path, data_dir: Path, *, port: int = 0
) -> embedded.Server:
    """Copy the primary with pg_basebackup, and start the copy as its standby."""
    database = primary.database
    data_dir.mkdir()
    shutil.copy(primary_dir / "postgres_password", data_dir)
    host, source_port = database.hosts[0]
    source = f"host={host} port={source_port} user={database.user} password={database.password}"
    command = [str(find_bindir(None) / "pg_basebackup"), "--pgdata", str(data_dir / "postgres")]
    subprocess.run(
        [*command, "--dbname", source, "--write-recovery-conf", "--checkpoint", "fast"],
        check=True,
        timeout=DEADLINE_S,
    )
    return embedded.start(data_dir, port=port, options=FAST)


def promote(standby: embedded.Server, primary: embedded.Server) -> None:
    """Make the primary read-only without closing its connections, then promote the standby."""
    with connect(primary.database) as old, connect(standby.database) as new:
        old.execute("alter system set default_transaction_read_only = on")
        old.execute("select pg_reload_conf()")
        (written,) = old.execute("select pg_current_wal_lsn()").fetchone()
        replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        eventually_blocking(lambda: new.execute(replayed, (written,)).fetchone()[0])
        new.execute("select pg_promote()")
