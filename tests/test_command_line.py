"""The command as an operator runs it: processes, signals, exit codes, and what they print."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from service.settings import Database, load_settings
from tests.support.clients import ROOT, SECRET_KEY
from tests.support.factories import PASSWORD
from tests.support.processes import (
    call,
    connect,
    environment,
    postmaster_of,
    processes,
    run,
    serving,
    url_of,
    wait_for_end_of,
)
from tests.support.waiting import DEADLINE_S, eventually_blocking


def test_serve_from_nothing_and_again(tmp_path: Path) -> None:
    """No database, no settings: it starts, keeps what it was given, and starts again with it."""
    account = {"email": "ada@example.com", "password": PASSWORD}
    data_dir = tmp_path / ".data"
    with serving(tmp_path) as (process, url, line):
        assert f"data in {data_dir}" in line
        assert f"docs at {url}/docs" in line
        assert call(f"{url}/health")[0] == 200
        status, registered = call(f"{url}/api/v1/auth/register", account)
        assert status == 201
        postmaster = postmaster_of(data_dir)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        wait_for_end_of(postmaster)
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "postgres",
        "postgres.lock",
        "postgres.log",
        "postgres_password",
        "postgres_port",
        "secret_key",
    ]
    for name in ("postgres_password", "secret_key"):
        assert (data_dir / name).stat().st_mode & 0o777 == 0o600

    with serving(tmp_path) as (process, url, _):
        bearer = {"Authorization": f"Bearer {registered['access_token']}"}
        assert call(f"{url}/api/v1/users/me", **bearer) == (200, registered["user"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_a_killed_service_leaves_no_postgresql_behind(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, url, _):
        assert call(f"{url}/health")[0] == 200
        postmaster = postmaster_of(tmp_path / ".data")
        process.kill()
        wait_for_end_of(postmaster)
    with serving(tmp_path) as (_, url, _):
        assert call(f"{url}/health")[0] == 200, "and what it leaves behind starts again"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("after_s", [0, 0.05, 0.1, 0.2])
def test_a_kill_during_the_first_start_harms_nothing(tmp_path: Path, after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve"], cwd=tmp_path, env=environment(PORT="0")
    )

    def initdb() -> list[int]:
        running = processes().items()
        return [pid for pid, (name, up, _) in running if (name, up) == ("initdb", process.pid)]

    (session,) = eventually_blocking(initdb)
    time.sleep(after_s)
    process.kill()
    process.wait()
    eventually_blocking(lambda: session not in processes())
    eventually_blocking(lambda: session not in {of for _, _, of in processes().values()})
    assert not (tmp_path / ".data" / "postgres").exists(), "killed too late to test anything"
    with serving(tmp_path) as (_, url, _):
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{url}/api/v1/auth/register", account)[0] == 201
        assert call(f"{url}/health")[0] == 200
    assert not list((tmp_path / ".data").glob("postgres.new.*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("begun", ["postgres.new.*/cluster", "postgres/postmaster.pid"])
def test_sigterm_during_the_first_start_stops_what_there_is_of_it(
    tmp_path: Path, begun: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve"],
        cwd=tmp_path,
        env=environment(PORT="0"),
        stderr=subprocess.PIPE,
    ) as process:
        eventually_blocking(lambda: list((tmp_path / ".data").glob(begun)))
        process.terminate()
        sessions = set()
        while process.poll() is None:
            children = processes().values()
            sessions |= {session for _, parent, session in children if parent == process.pid}
        assert (process.communicate()[1], process.returncode) == (b"", 0)
    # A child is of our session until it has begun one of its own.
    sessions.discard(os.getsid(0))
    eventually_blocking(
        lambda: sessions.isdisjoint(session for _, _, session in processes().values())
    )


def test_a_postgresql_that_is_killed_is_started_again(tmp_path: Path) -> None:
    data_dir = tmp_path / ".data"
    account = {"email": "ada@example.com", "password": PASSWORD}
    with serving(tmp_path) as (process, url, _):
        _, registered = call(f"{url}/api/v1/auth/register", account)
        killed = postmaster_of(data_dir)
        os.kill(killed, signal.SIGKILL)
        eventually_blocking(lambda: postmaster_of(data_dir) not in (killed, 0))
        # Health may answer for another second what it found before.
        bearer = {"Authorization": f"Bearer {registered['access_token']}"}
        me = (200, registered["user"])
        eventually_blocking(lambda: call(f"{url}/api/v1/users/me", **bearer) == me)
        eventually_blocking(lambda: call(f"{url}/health")[0] == 200)
        again = postmaster_of(data_dir)
        process.kill()
        wait_for_end_of(again)
        stderr = process.communicate()[1]
    events = [json.loads(line) for line in stderr.splitlines()]
    (event,) = [event for event in events if "PostgreSQL" in event["event"]]
    assert event["event"] == "embedded PostgreSQL ended and was started again"


def test_a_second_process_finds_the_server_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (first, _, _), serving(tmp_path) as (_, url, _):
        assert call(f"{url}/health")[0] == 200
        first.terminate()
        assert first.wait(DEADLINE_S) == 0
        eventually_blocking(lambda: call(f"{url}/health")[0] == 503)
        with serving(tmp_path):
            eventually_blocking(lambda: call(f"{url}/health")[0] == 200)


def test_the_embedded_default_whatever_the_shell_says(tmp_path: Path) -> None:
    """libpq's variables are of another server; and the pool may be larger than PostgreSQL's own."""
    variables = {
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
        "PGSERVICE": "nowhere",
        "PGHOSTADDR": "203.0.113.1",
        "DB_POOL_SIZE": "120",
    }
    with serving(tmp_path, **variables) as (_, url, _):
        assert call(f"{url}/health")[0] == 200


def test_a_second_process_uses_the_first_ones_server(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        result = run("migrate", "--status", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert {line.split()[0] for line in result.stdout.splitlines()} == {"applied"}
        result = run("doctor", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert any("which runs on port" in line for line in lines)
        assert any(line.startswith("ok    keys: SECRET_KEY opens") for line in lines)
        assert call(f"{url}/health")[0] == 200, "the first one's server still runs"


def test_migrate_up_status_and_down(empty_database: Database, tmp_path: Path) -> None:
    def output(*arguments: str) -> list[str]:
        result = run("migrate", *arguments, cwd=tmp_path, **url_of(empty_database))
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()

    ids = sorted(
        path.stem for path in ROOT.glob("migrations/*.sql") if ".rollback" not in path.name
    )
    assert output("--status") == [f"pending\t{id_}" for id_ in ids]
    assert output() == [f"applied  {id_}" for id_ in ids]
    assert output() == ["applied  nothing: at head"]
    assert output("--status") == [f"applied\t{id_}" for id_ in ids]
    assert output("--rollback", "1") == [f"rolled back  {ids[-1]}"]
    assert output("--status")[-2:] == [f"applied\t{ids[-2]}", f"pending\t{ids[-1]}"]
    assert output("--rollback", "99") == [f"rolled back  {id_}" for id_ in reversed(ids[:-1])]
    assert output("--status") == [f"pending\t{id_}" for id_ in ids]


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "line"),
    [
        (["serve"], {"PORT": "x"}, 2, "shinkei: PORT: expected a whole number from 0 to 65535"),
        (["migrate"], {"DATABASE_URL": "x"}, 2, "shinkei: DATABASE_URL: expected postgresql://"),
        (["serve"], {"DATABASE_URL": "postgresql://u:p@h/n"}, 2, "shinkei: SECRET_KEY: expected"),
        (["serve"], {"PG_BINDIR": "/nonexistent"}, 1, "shinkei: PG_BINDIR: expected a directory"),
        (["serve"], {"DATA_DIR": "/proc/no"}, 1, "shinkei: DATA_DIR /proc/no: cannot be written"),
        (["serve"], {"HOST": "203.0.113.1"}, 1, "shinkei: cannot listen on HOST 203.0.113.1"),
        (
            ["serve"],
            {
                "DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/n",
                "SECRET_KEY": SECRET_KEY,
                "DB_CONNECT_TIMEOUT_S": "0.2",
            },
            1,
            "shinkei: cannot connect to PostgreSQL at 127.0.0.1:1, database n, as user u: "
            "connection refused (tried for 0.2 s",
        ),
        (
            ["migrate"],
            {
                "DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/n",
                "SECRET_KEY": SECRET_KEY,
                "DB_CONNECT_TIMEOUT_S": "0.2",
            },
            1,
            "shinkei: cannot connect to PostgreSQL at 127.0.0.1:1, database n, as user u: no conn",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    arguments: list[str], variables: dict[str, str], code: int, line: str, tmp_path: Path
) -> None:
    result = run(*arguments, cwd=tmp_path, **variables)
    assert result.stdout == ""
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.stderr
    assert result.returncode == code


def test_wrong_words_on_the_command_line(tmp_path: Path) -> None:
    result = run("migrate", "--status", "--rollback", "1", cwd=tmp_path)
    assert result.returncode == 2
    assert "exclude each other" in result.stderr
    assert run("--version", cwd=tmp_path).stdout == "shinkei, version 0.1.0\n"


def test_a_port_in_use_is_told_before_anything_is_started(
    database: Database, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", cwd=tmp_path, PORT=port, **url_of(database))
    assert result.returncode == 1
    assert result.stderr == (
        f"shinkei: cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use\n"
    )


def test_an_external_database_is_migrated_on_start_where_that_is_asked(
    empty_database: Database, tmp_path: Path
) -> None:
    external = url_of(empty_database)
    with serving(tmp_path, **external) as (process, url, line):
        assert f"data in PostgreSQL at {empty_database.address} " in line
        status, health = call(f"{url}/health")
        assert (status, health["status"]) == (503, "fail")
        process.terminate()
        assert "migrations pending: run shinkei migrate" in process.communicate()[1]
    with serving(tmp_path, MIGRATE_ON_START="true", **external) as (_, url, _):
        assert call(f"{url}/health")[0] == 200
    assert list(tmp_path.iterdir()) == [], "nothing is written beside an external database"


def test_a_port_in_use_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", cwd=tmp_path, PORT=str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_stopped_while_it_waits_for_the_database(
    tmp_path: Path, wanted: signal.Signals
) -> None:
    variables = {
        "DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/n",
        "SECRET_KEY": SECRET_KEY,
        "DB_CONNECT_TIMEOUT_S": "600",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve"],
        cwd=tmp_path,
        env=environment(PORT="0", **variables),
        stderr=subprocess.PIPE,
    ) as process:
        # Once it listens, it has its signal handlers or is about to; until then it would just die.
        while b"0100007F" not in listening_sockets_of(process.pid):
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(wanted)
        assert process.wait(DEADLINE_S) == 0


def listening_sockets_of(pid: int) -> bytes:
    """What /proc says of the process's listening TCP sockets."""
    links = []
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            links.append(str(fd.readlink()))
    table = Path(f"/proc/{pid}/net/tcp").read_bytes().splitlines()[1:]
    ours = [row for row in table if f"socket:[{row.split()[9].decode()}]" in links]
    return b"\n".join(row.split()[1] for row in ours if row.split()[3] == b"0A")


def test_a_full_log_disk_fails_no_request(database: Database, tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=tmp_path,
            env=environment(PORT="0", **url_of(database)),
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().split("listens on ")[1].split(" ")[0]
        assert call(f"{url}/health/live")[0] == 200
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert call(f"{url}/api/v1/auth/register", account)[0] == 201
        process.terminate()
        process.wait(DEADLINE_S)


def test_what_the_server_refuses_at_start_is_one_line(database: Database, tmp_path: Path) -> None:
    """The first connections are had, and then no more."""
    role = f"limited_{database.name[-12:]}"
    with connect(database) as conn:
        conn.execute(f"create role {role} login password 'hush' connection limit 3")
        conn.execute(f"grant select on _yoyo_migration to {role}")
        host, port = database.hosts[0]
        url = f"postgresql://{role}:hush@{host}:{port}/{database.name}"
        variables = {"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY, "DB_POOL_SIZE": "10"}
        result = run("serve", cwd=tmp_path, PORT="0", **variables)
        conn.execute(f"drop owned by {role}")
        conn.execute(f"drop role {role}")
    assert result.returncode == 1
    assert result.stderr.startswith("shinkei: cannot connect to PostgreSQL at ")
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.stderr


def test_logs_are_json_lines_with_request_ids_and_no_secrets(
    database: Database, tmp_path: Path
) -> None:
    with serving(tmp_path, **url_of(database)) as (process, url, _):
        account = {"email": "ada@example.com", "password": PASSWORD}
        _, tokens = call(f"{url}/api/v1/auth/register", account)
        bearer = {"Authorization": f"Bearer {tokens['access_token']}", "X-Request-ID": "mine"}
        call(f"{url}/api/v1/users/me", **bearer)
        call(f"{url}/nothing%0d%0aInjected:%20yes")
        process.terminate()
        _, stderr = process.communicate()
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


def test_readable_logs(database: Database, tmp_path: Path) -> None:
    with serving(tmp_path, LOG_FORMAT="console", **url_of(database)) as (process, url, _):
        call(f"{url}/nothing")
        process.terminate()
        _, stderr = process.communicate()
    assert "request" in stderr
    assert "status=404" in stderr


def test_sigterm_answers_what_is_under_way_and_is_not_ready_first(
    database: Database, tmp_path: Path
) -> None:
    variables = {"SHUTDOWN_DELAY_S": "1", **url_of(database)}
    with serving(tmp_path, **variables) as (process, url, _):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        body = json.dumps({"email": "ada@example.com", "password": PASSWORD}).encode()
        head = (
            "POST /api/v1/auth/register HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(address) as under_way:
            under_way.sendall(head.encode() + body[:10])
            process.terminate()
            deadline = time.monotonic() + 1
            while call(f"{url}/health")[0] != 503:
                assert time.monotonic() < deadline
            assert call(f"{url}/health/live")[0] == 200
            under_way.sendall(body[10:])
            assert under_way.recv(65536).startswith(b"HTTP/1.1 201 ")
        assert process.wait(DEADLINE_S) == 0


def test_password_hashes_are_calibrated_and_never_below_the_minimum(tmp_path: Path) -> None:
    for target, memory_most in [("1", 19 * 1024), ("60", 64 * 1024)]:
        result = run("calibrate-passwords", "--target-ms", target, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        measured, *printed = result.stdout.splitlines()
        assert measured.startswith("# ")
        assert float(measured.split()[1]) > 0
        variables = dict(line.split("=") for line in printed)
        assert list(variables) == ["PASSWORD_HASH_MEMORY_KIB", "PASSWORD_HASH_ITERATIONS"]
        settings = load_settings(variables)
        assert 19 * 1024 <= settings.password_hash_memory_kib <= memory_most
        assert settings.password_hash_iterations >= 2
    assert run("calibrate-passwords", "--target-ms", "0", cwd=tmp_path).returncode == 2


def test_an_installed_wheel_migrates_from_an_empty_directory(
    empty_database: Database, tmp_path: Path
) -> None:
    """Built and unpacked as pip would; its own files alone, none of the checkout's."""
    source = tmp_path / "source"
    source.mkdir()
    tracked = ("service", "migrations", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    for name in tracked:
        copy = ["cp", "-r", str(ROOT / name), str(source)]
        subprocess.run(copy, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, timeout=50)
    (wheel,) = tmp_path.glob("shinkei-*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    variables = {**url_of(empty_database), "PYTHONPATH": str(installed)}
    result = run("migrate", cwd=empty, **variables)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "applied  0001.create-users"
    where = subprocess.run(
        [sys.executable, "-c", "from service.migrate import migrations_dir as d; print(d())"],
        cwd=empty,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    assert (installed / "service/mail/templates/fr/verify_email.html").is_file()
