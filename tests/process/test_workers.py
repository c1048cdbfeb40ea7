"""Worker processes as an operator sees them: start, reload under load, kill and stop."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.settings import Database
from tests.support.clients import ROOT, SECRET_KEY
from tests.support.factories import PASSWORD
from tests.support.processes import (
    SHINKEI,
    announced,
    call,
    connect,
    environment,
    event_beginning,
    postmaster_of,
    processes,
    reserved_port,
    run,
    serving,
    started,
    until_healthy,
    url_of,
    wait_for_end_of,
    workers_of,
)
from tests.support.scrape import Samples, metrics_at, total
from tests.support.shell import run_all
from tests.support.waiting import DEADLINE_S, eventually, eventually_blocking

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Of each client before a request, and before it connects again.
PAUSE_S = 0.001


def are_gone(pids: set[int]) -> bool:
    return not pids & set(processes())


class Load:
    """Clients that keep connections open until the server closes them, and never retry."""

    def __init__(self, url: str) -> None:
        self.host, self.port = "127.0.0.1", int(url.rpartition(":")[2])
        self.outcomes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.told_to_close = 0
        self.latest: dict[int, str] = {}

    def has_reached(self, version: str) -> bool:
        """Return whether every client's last response came from this version."""
        return set(self.latest.values()) == {version}

    async def client(self, number: int, stop: asyncio.Event) -> None:
        self.latest[number] = ""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
                with contextlib.closing(writer):
                    while not stop.is_set() and await self.ask(number, reader, writer):
                        pass
            except (OSError, EOFError) as error:
                self.outcomes[type(error).__name__] += 1
            await asyncio.sleep(PAUSE_S)

    async def ask(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send a request after a pause. Return whether the connection stays open."""
        await asyncio.sleep(PAUSE_S)
        writer.write(LIVE)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", head)
        assert length
        body = json.loads(await reader.readexactly(int(length[1])))
        self.outcomes[head.split()[1]] += 1
        self.versions[body["version"]] += 1
        self.latest[number] = body["version"]
        told_to_close = "connection: close" in head
        self.told_to_close += told_to_close
        return not told_to_close


def copy_of_the_code(tmp_path: Path) -> Path:
    for name in ("service", "migrations"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name)
    return tmp_path / "code"


@pytest.mark.slow
async def test_reload_runs_new_code_and_drops_no_request(
    database: Database, tmp_path: Path
) -> None:
    code = copy_of_the_code(tmp_path)
    variables = {
        "WORKERS": "2",
        # Long enough for every client to get one more response, which closes its connection.
        "SHUTDOWN_DELAY_S": "300",
        "PYTHONPATH": str(code),
        # Bytecode of one version would pass for the next if both were written in one second.
        "PYTHONDONTWRITEBYTECODE": "1",
        # Nothing reads stderr, so its pipe must not fill up. The URL is on stdout.
        "LOG_LEVEL": "warning",
        "LOG_FORMAT": "console",
    }
    stop = asyncio.Event()
    with serving(tmp_path, **variables, **url_of(database)) as served:
        load = Load(served.url)
        async with asyncio.TaskGroup() as clients:
            for number in range(8):
                clients.create_task(load.client(number, stop))
            await eventually(partial(load.has_reached, "0.1.0"))
            for version in ("0.1.1", "0.1.2"):
                first = workers_of(served.process.pid)
                assert len(first) == 2
                (code / "service/__init__.py").write_text(f'__version__ = "{version}"\n')
                served.process.send_signal(signal.SIGHUP)
                await eventually(partial(load.has_reached, version))
                # All clients have left the old workers, which need not wait any longer.
                for worker in first:
                    os.kill(worker, signal.SIGINT)
                await eventually(partial(are_gone, first))
            stop.set()
        until_healthy(served.url)
        assert served.ends_with(signal.SIGINT) == 0
    assert set(load.outcomes) == {"200"}, load.outcomes
    assert set(load.versions) == {"0.1.0", "0.1.1", "0.1.2"}
    assert load.told_to_close >= 2


@pytest.mark.slow
def test_killed_worker_is_replaced_and_its_metrics_are_kept(
    database: Database, tmp_path: Path
) -> None:
    """Counters add up to the requests sent, including the killed worker's share."""
    sent = 0
    with (
        reserved_port() as port,
        serving(tmp_path, WORKERS="2", METRICS_PORT=str(port), **url_of(database)) as served,
    ):
        process, url, _ = served
        assert call(f"{url}/metrics")[0] == 404, "not on the public port"
        first = workers_of(process.pid)
        for worker in first:
            os.kill(worker, signal.SIGSTOP)
            for _ in range(5):
                assert call(f"{url}/health/live")[0] == 200
                sent += 1
            os.kill(worker, signal.SIGCONT)
        killed = first.pop()
        os.kill(killed, signal.SIGKILL)
        eventually_blocking(lambda: len(workers_of(process.pid) - {killed}) == 2)
        (replacement,) = workers_of(process.pid) - {killed, *first}
        connections = "shinkei_db_pool_connections_max"
        eventually_blocking(lambda: total(metrics_at(port), connections) == 20)
        # The replacement takes over the killed worker's slot and keeps counting.
        for worker in first:
            os.kill(worker, signal.SIGSTOP)
            assert call(f"{url}/health/live")[0] == 200
            sent += 1
            os.kill(worker, signal.SIGCONT)
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{url}/api/v1/auth/register", account)[0] == 201
        assert call(f"{url}/api/v1/auth/login", account)[0] == 200
        # Gauges cover live workers only, and may lag.
        samples: Samples = {}

        def all_is_counted() -> bool:
            samples.clear()
            samples.update(metrics_at(port))
            connections = total(samples, "shinkei_db_pool_connections_max")
            requests = total(samples, "shinkei_http_request_duration_seconds_count")
            return (connections, requests) == (20, sent + 3)

        eventually_blocking(all_is_counted)
        stderr = served.stderr_after()
    live = frozenset({("method", "GET"), ("route", "/health/live"), ("status", "200")})
    assert samples["shinkei_http_requests_total", live] == sent
    assert total(samples, "shinkei_registrations_total") == 1
    assert samples["shinkei_sign_ins_total", frozenset({("outcome", "success")})] == 1
    assert samples["shinkei_sign_ins_total", frozenset({("outcome", "wrong")})] == 0
    assert {
        dict(labels)["worker"]
        for name, labels in samples
        if name == "shinkei_process_resident_memory_bytes"
    } == {"parent", "0", "1"}
    events = [line for line in map(json.loads, stderr.splitlines()) if "pid" in line]
    assert [(event["event"], event["pid"], event.get("how")) for event in events[:2]] == [
        ("worker ended", killed, "signal 9"),
        ("worker started", replacement, None),
    ]
    assert events[0]["level"] == "error"


@contextlib.contextmanager
def limited(database: Database) -> Iterator[tuple[Any, dict[str, str]]]:
    """Create a role; yields a function that limits its connections, and variables that use it."""
    role = f"limited_{database.name[-12:]}"
    host, port = database.hosts[0]
    with connect(database) as conn:
        conn.execute(f"create role {role} login password 'hush'")
        conn.execute(f"grant all on all tables in schema public to {role}")
        try:
            url = f"postgresql://{role}:hush@{host}:{port}/{database.name}"
            variables = {"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY, "DB_POOL_SIZE": "2"}
            yield (
                lambda limit: conn.execute(f"alter role {role} connection limit {limit}"),
                {**variables, "WORKERS": "2", "DB_CONNECT_TIMEOUT_S": "0.2"},
            )
        finally:
            conn.execute(f"drop owned by {role}")
            conn.execute(f"drop role {role}")


def test_workers_that_fail_to_start_print_one_line(database: Database, tmp_path: Path) -> None:
    with limited(database) as (limit, variables):
        limit(1)
        result = run("serve", cwd=tmp_path, **variables)
    assert result.returncode == 1
    assert result.stderr.startswith("shinkei: cannot connect to PostgreSQL at ")
    assert "the server has no connections left" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.slow
def test_failed_reload_keeps_the_old_workers(database: Database, tmp_path: Path) -> None:
    with limited(database) as (limit, variables), serving(tmp_path, **variables) as served:
        process, url, _ = served
        first = workers_of(process.pid)
        limit(1)
        process.send_signal(signal.SIGHUP)
        event = event_beginning("reload given up", process)
        assert "the server has no connections left" in event["reason"]
        eventually_blocking(lambda: workers_of(process.pid) == first)
        assert call(f"{url}/health/live")[0] == 200
        limit(-1)
        process.send_signal(signal.SIGHUP)
        assert event_beginning("reload", process)["event"] == "reloading"
        reloaded = event_beginning("reload", process)
        assert (reloaded["event"], reloaded["workers"]) == ("reloaded", 2)
        assert not first & workers_of(process.pid)
        until_healthy(url)
        assert served.ends_with(signal.SIGTERM) == 0


@pytest.mark.slow
def test_reload_of_broken_code_keeps_the_old_workers(database: Database, tmp_path: Path) -> None:
    code = copy_of_the_code(tmp_path)
    variables = {"WORKERS": "2", "PYTHONPATH": str(code), **url_of(database)}
    with serving(tmp_path, **variables) as served:
        first = workers_of(served.process.pid)
        (code / "service/app.py").write_text("import nothing_of_this_name\n")
        served.process.send_signal(signal.SIGHUP)
        event = event_beginning("reload given up", served.process)
        assert event["reason"] == "a worker did not start: exit code 1"
        eventually_blocking(lambda: workers_of(served.process.pid) == first)
        assert call(f"{served.url}/health/live")[0] == 200


@pytest.mark.slow
def test_hung_worker_is_replaced(database: Database, tmp_path: Path) -> None:
    with serving(tmp_path, WORKERS="2", **url_of(database)) as (process, _, _):
        stopped = workers_of(process.pid).pop()
        os.kill(stopped, signal.SIGSTOP)
        ended = event_beginning("worker ended", process)
        assert (ended["pid"], ended["how"]) == (stopped, "signal 9")
        eventually_blocking(lambda: len(workers_of(process.pid) - {stopped}) == 2)


def test_operators_start_script_runs_in_every_worker(database: Database, tmp_path: Path) -> None:
    """docs/logs.md has such a script that attaches a log handler."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import os, pathlib\n"
        "from service.__main__ import main\n"
        "if __name__ == '__main__':\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.attached').touch()\n"
        "    main()\n"
    )
    command = (sys.executable, str(script), "serve", "--workers", "2")
    with started(*command, cwd=tmp_path, env=environment(**url_of(database))) as process:
        announced(process)
        attached = {int(path.stem) for path in tmp_path.glob("*.attached")}
        assert attached == {process.pid, *workers_of(process.pid)}


def test_sigterm_drains_all_workers(database: Database, tmp_path: Path) -> None:
    variables = {"WORKERS": "2", "SHUTDOWN_DELAY_S": "60", **url_of(database)}
    with serving(tmp_path, **variables) as served:
        served.process.terminate()
        eventually_blocking(lambda: call(f"{served.url}/health")[0] == 503)
        assert call(f"{served.url}/health/live")[0] == 200
        # Ctrl-C in addition ends the wait at once.
        events = list(map(json.loads, served.stderr_after(signal.SIGINT).splitlines()))
        assert served.process.returncode == 0
    assert [event["signal"] for event in events if event["event"] == "stopping"] == ["SIGTERM"]
    assert not [event for event in events if "exception" in event]


@pytest.mark.slow
def test_workers_exit_if_their_parent_is_killed(database: Database, tmp_path: Path) -> None:
    with serving(tmp_path, WORKERS="2", **url_of(database)) as (process, _, _):
        workers = workers_of(process.pid)
        process.kill()
        for worker in workers:
            wait_for_end_of(worker)


@pytest.mark.slow
def test_embedded_postgresql_outlives_workers_but_not_the_parent(tmp_path: Path) -> None:
    with serving(tmp_path, WORKERS="2", SHUTDOWN_DELAY_S="60") as served:
        account = {"email": "ada@example.com", "password": PASSWORD}
        _, registered = call(f"{served.url}/api/v1/auth/register", account)
        bearer = {"Authorization": f"Bearer {registered['access_token']}"}
        postmaster = postmaster_of(tmp_path / ".data")
        parent = served.process.pid
        first = workers_of(parent)
        for worker in first:
            os.kill(worker, signal.SIGKILL)
        eventually_blocking(lambda: len(workers_of(parent) - first) == 2)
        assert call(f"{served.url}/api/v1/users/me", **bearer) == (200, registered["user"])
        assert postmaster_of(tmp_path / ".data") == postmaster
        assert served.ends_with(signal.SIGINT) == 0
        wait_for_end_of(postmaster)


def test_metrics_port_in_use_fails_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = f"METRICS_PORT={port} serve --workers"
        alone, together = run_all(tmp_path, {}, f"{serve} 1", f"{serve} 2")
    line = (
        f"shinkei: cannot listen on METRICS_HOST 127.0.0.1, METRICS_PORT {port}:"
        " Address already in use\n"
    )
    assert alone == together == (1, "", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "connected", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["started", "connected"]
)
def test_service_can_be_stopped_while_workers_start(
    connected: bool, database: Database, tmp_path: Path
) -> None:
    """A signal sent before a worker installs its handlers is not lost."""
    command = (*SHINKEI, "serve", "--workers", "2")
    # Each worker first waits for the database with one connection; any more are of its pool.
    connections = (
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = 'shinkei'"
    )
    with (
        connect(database) as conn,
        started(*command, cwd=tmp_path, env=environment(**url_of(database))) as process,
    ):
        eventually_blocking(partial(workers_of, process.pid))
        if connected:
            eventually_blocking(lambda: conn.execute(connections).fetchone() > (2,))
        process.terminate()
        assert process.communicate(timeout=DEADLINE_S)[1] == ""
        assert process.returncode == 0
