"""The log: what it contains, what it never contains, and protection from injection."""

import ast
import asyncio
import functools
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Awaitable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.auth import signing_keys
from service.db import slow_queries
from service.db.coalescing import BATCHES_MAX
from service.db.connection import POOL_WAITING
from service.mail import sender
from service.settings import Database, Rate
from service.telemetry.logs import RESERVED, ConsoleFormatter, JsonFormatter
from tests.support.clients import ROOT, Client, StartApp, pool_of
from tests.support.factories import PASSWORD, bearer, register, register_as
from tests.support.logbook import attached, logged, written
from tests.support.probes import make_patient
from tests.support.processes import call, connect, run_python, serving, started, url_of
from tests.support.waiting import DEADLINE_S, eventually, eventually_blocking
from tests.support.wire import connected, patch_me

log = logging.getLogger("service.tests")

LEVELS = {"debug", "info", "warning", "error"}
FIELDS = {
    *("method", "route", "status", "duration_ms", "database_ms", "database_calls"),
    *("user_id", "client"),
}
# Names that no event field may use: attributes of records and keys of every line.
LINE = {"timestamp", "level", "event", "logger", "exception"}
TAKEN = LINE | {"request_id", "trace_id", "span_id"} | RESERVED
# Line endings, terminal escapes, text direction overrides and invisible characters.
NASTY = {
    "line feed": "a\n{}",
    "carriage return": "a\r\nb",
    "next line": "a\x85b",
    "line separator": "a\u2028b\u2029c",
    "separators": "a\x0b\x0c\x1c\x1d\x1eb",
    "terminal": "a\x1b[2J\x1b]0;title\x07b",
    "C1 terminal": "a\x9b2Jb",
    "direction": "a\u202eb\u2066c",
    "invisible": "a\u200bb\ufeffc",
    "nul": "a\x00b",
    "delete": "a\x7fb",
    "delete among letters": "a\x7fé",
    "quotes": "a\"b\\c'd=e f",
    "letters": "Zoë 🐘 مرحبا",
}
WAITING = (
    "select count(*) from pg_stat_activity"
    " where wait_event_type = 'Lock' and datname = current_database()"
)
VISIBLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*")


@pytest.mark.asvs("16.4.1")
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_every_json_event_is_one_line(text: str) -> None:
    error = ValueError(text)
    with written(JsonFormatter()) as pieces:
        log.info(text, extra={"value": text, "nested": [text]}, exc_info=error)
    (piece,) = pieces
    line = piece.decode()
    assert line.endswith("}\n")
    assert VISIBLE.fullmatch(line[:-1])
    event = json.loads(line)
    assert (event["event"], event["value"], event["nested"]) == (text, text, [text])
    assert event["exception"].endswith(text)


@pytest.mark.asvs("16.4.1")
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_console_events_escape_control_characters(text: str) -> None:
    with written(ConsoleFormatter()) as pieces:
        log.info(text, extra={"value": text, "nested": [text]}, exc_info=ValueError(text))
    (piece,) = pieces
    first, *trace = piece.decode()[:-1].split("\n")
    assert VISIBLE.fullmatch(first)
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} info    a|\d\d:\d\d:\d\d\.\d{3} info    Zoë", first)
    for line in trace:
        assert VISIBLE.fullmatch(line)
        assert line.startswith("    ")


def _pieces_written(script: str) -> list[list[dict[str, Any]]]:
    """Run a script and return the events of each of its writes to stderr."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    head = """
import asyncio, logging, os
from service.telemetry.logs import configure_logging
from service.settings import Settings
configure_logging(Settings(log_format="json", log_level="info"))
log = logging.getLogger("service.tests")
"""
    command = (sys.executable, "-c", head + script)
    with ours, started(*command, stderr=theirs.fileno()):
        theirs.close()
        pieces = iter(functools.partial(ours.recv, 65536), b"")
        return [[json.loads(line) for line in piece.splitlines()] for piece in pieces]


def test_lines_are_written_once_per_loop_turn_and_warnings_at_once() -> None:
    pieces = _pieces_written("""
async def main():
    log.info("one")
    log.info("two")
    log.warning("three")
    log.info("four")
    await asyncio.sleep(0)
    log.info("lost")
    os.kill(os.getpid(), 9)
asyncio.run(main())
""")
    assert [[event["event"] for event in piece] for piece in pieces] == [
        ["one", "two", "three"],
        ["four"],
    ]


def test_no_line_is_split_or_lost_at_exit() -> None:
    pieces = _pieces_written("""
log.info("before")
async def main():
    for number in range(100):
        log.info("line", extra={"number": number, "filling": "x" * 3 * number})
asyncio.run(main())
log.info("after")
""")
    events = [event for piece in pieces for event in piece]
    assert [event.get("number") for event in events] == [None, *range(100), None]
    assert len(pieces) < 20
    assert all(len(json.dumps(piece)) < 5000 for piece in pieces)


def test_values_that_json_cannot_represent_are_still_logged() -> None:
    with written(JsonFormatter()) as pieces:
        log.info("half", extra={"value": "\ud800", "path": Path("/x")})
        log.info("large", extra={"value": 2**80})
    half, large = (json.loads(piece) for piece in pieces)
    assert (half["value"], half["path"]) == ("\ud800", "/x")
    assert large["value"] == 2**80
    with written(ConsoleFormatter()) as pieces:
        log.info("half \ud800", extra={"value": "\ud800"})
    assert pieces[0].endswith(b"half \\ud800 value='\\ud800'\n")


@pytest.mark.asvs("16.2.5")
async def test_tracebacks_omit_row_values_from_postgresql_errors(client: Client, conn: Any) -> None:
    """Covers the error itself and an error that it caused."""
    await register(client, email="canary@example.com")
    with logged() as events:
        try:
            try:
                await conn.execute(
                    "insert into users (id, email, email_folded, name, password_hash)"
                    " select gen_random_uuid(), email, email_folded, name, password_hash from users"
                )
            except asyncpg.UniqueViolationError as error:
                words = str(error)
                raise RuntimeError("another") from error
        except RuntimeError:
            log.exception("unexpected error")
    assert "canary" in words
    event = events[-1]
    assert "UniqueViolationError: SQLSTATE 23505, constraint users_email" in event["exception"]
    assert event["exception"].endswith("RuntimeError: another")
    assert "canary" not in str(events)


def raw(url: str, sent: bytes) -> bytes:
    """Send these bytes and return everything received until the connection closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.asvs("16.2.5", "16.3.3", "16.4.1")
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_clients_cannot_inject_log_lines(
    database: Database, tmp_path: Path, log_format: str
) -> None:
    """Try paths, methods, headers, names and emails with characters that could end a line."""
    payloads = [text.encode("utf-8", "replace") for text in NASTY.values()]
    payloads += [b"x" * 6000, b"\xff\xfe"]
    variables = {"LOG_FORMAT": log_format, "LOG_LEVEL": "debug", **url_of(database)}
    with serving(tmp_path, **variables) as served:
        url = served.url
        for payload in payloads:
            escaped = "".join(f"%{byte:02x}" for byte in payload).encode()
            for head in (
                b"GET /canary" + payload + b" HTTP/1.1\r\n",
                b"GET /canary" + escaped + b"?canary=" + escaped + b" HTTP/1.1\r\n",
                b"CANARY" + payload + b" / HTTP/1.1\r\n",
                b"GET / HTTP/1.1\r\nX-Request-ID: canary" + payload + b"\r\n",
                b"GET / HTTP/1.1\r\nUser-Agent: canary" + payload + b"\r\n",
                b"GET / HTTP/1.1\r\nX-Forwarded-For: canary" + payload + b"\r\n",
                b"GET / HTTP/1.1\r\ntraceparent: canary" + payload + b"\r\n",
                b"GET / HTTP/1.1\r\nAuthorization: Bearer canary" + payload + b"\r\n",
                b"OPTIONS /docs HTTP/1.1\r\nAccess-Control-Request-Method: GET\r\nOrigin: x"
                + payload
                + b"\r\n",
            ):
                received = raw(url, head + b"Host: canary\r\nConnection: close\r\n\r\n")
                assert received.startswith(b"HTTP/1.") or not received
        for text in NASTY.values():
            for account in (
                {"email": f"canary{text}@example.com", "password": PASSWORD},
                {"email": "ada@example.com", "password": PASSWORD, "name": f"canary{text}"},
            ):
                assert call(f"{url}/api/v1/auth/register", account)[0] in (201, 409, 422)
        written = served.stderr_after()
    lines = [line for line in written.splitlines() if "mail written" not in line]
    assert lines == [line for line in written.split("\n")[:-1] if "mail written" not in line]
    assert all(VISIBLE.fullmatch(line) for line in lines)
    assert all(len(line) < 700 for line in lines)
    assert "canary" not in "".join(lines)
    if log_format == "json":
        assert {json.loads(line)["event"] for line in lines} == {
            *("request", "malformed request", "preflight refused", "stopping", "stopped")
        }
        methods = {json.loads(line).get("method") for line in lines}
        assert methods <= {None, "GET", "POST", "OPTIONS"}
    else:
        assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} (info|debug) ", line) for line in lines)


@pytest.mark.asvs("16.2.1", "16.2.2")
async def test_request_line_has_the_documented_fields(client: Client, conn: Any) -> None:
    account = await register(client)
    with logged() as events:
        await client.patch("/api/v1/users/me/", headers=account.headers, json={"name": "Ada"})
        stale = {**account.headers, "If-Match": '"1"', "X-Request-ID": "given"}
        await client.patch("/api/v1/users/me", headers=stale, json={"name": "Eve"})
        await client.get(f"/api/v1/users/{account.profile['id']}", headers=account.headers)
        await client.get("/api/v1/nothing")
    done, refused, other, missing = [e for e in events if e["event"] == "request"]
    assert list(done) == [
        *("timestamp", "level", "event", "request_id", "method", "route", "status"),
        *("duration_ms", "database_ms", "database_calls", "user_id", "client"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", done["timestamp"])
    assert (done["level"], done["event"]) == ("info", "request")
    assert (done["method"], done["route"], done["status"]) == ("PATCH", "/api/v1/users/me", 200)
    assert done["user_id"] == account.profile["id"]
    assert done["client"] == "127.0.0.1"
    assert done["database_calls"] == 2
    assert 0 < done["database_ms"] <= done["duration_ms"]
    assert (refused["status"], refused["code"]) == (412, "precondition_failed")
    assert refused["request_id"] == "given"
    assert other["route"] == "/api/v1/users/{user_id}"
    assert (missing["route"], missing["user_id"], missing["database_calls"]) == (None, None, 0)


@pytest.mark.asvs("16.3.1", "16.3.2", "16.3.3")
async def test_refused_requests_are_logged(start_app: StartApp) -> None:
    """Covers wrong passwords (with the account), tokens, roles and throttling."""
    client = await start_app(throttle_sign_in_per_account=Rate(2, 60))
    account = await register(client)
    body = {"email": account.profile["email"], "password": "not that passphrase"}
    with logged() as events:
        await client.post("/api/v1/auth/login", json=body)
        await client.post("/api/v1/auth/login", json={**body, "email": "nobody@example.com"})
        await client.post("/api/v1/auth/login", json=body)
        await client.post("/api/v1/auth/login", json=body)
        await client.get("/api/v1/users/me", headers=bearer("x.y.z"))
        await client.get("/api/v1/audit-events", headers=account.headers)
    refused = [event for event in events if event["event"] == "sign-in refused"]
    ids = [event["account_id"] for event in refused]
    assert ids == [account.profile["id"], None, account.profile["id"]]
    lines = [event for event in events if event["event"] == "request"]
    assert [(line["status"], line["code"], line["client"]) for line in lines] == [
        (401, "invalid_credentials", "127.0.0.1"),
        (401, "invalid_credentials", "127.0.0.1"),
        (401, "invalid_credentials", "127.0.0.1"),
        (429, "too_many_requests", "127.0.0.1"),
        (401, "invalid_token", "127.0.0.1"),
        (403, "forbidden", "127.0.0.1"),
    ]
    assert lines[-1]["user_id"] == account.profile["id"]
    assert lines[0]["request_id"] == refused[0]["request_id"]


async def test_waiting_for_a_connection_counts_as_database_time(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the waiting request is charged, not a concurrent one."""
    for task, setting in ((signing_keys, "RELOAD_EVERY_S"), (sender, "POLL_S")):
        monkeypatch.setattr(task, setting, DEADLINE_S)
    client = await start_app(db_pool_size=1)
    account = await register(client)
    assert client.app is not None
    pool, pool_waiting = pool_of(client), client.app[POOL_WAITING]
    with logged() as events:
        async with pool.acquire():
            waiting = asyncio.ensure_future(client.get("/api/v1/users/me", headers=account.headers))
            await eventually(lambda: pool_waiting.count == 1)
            held_since = time.monotonic()
            assert (await client.get("/health/live")).status == 200
            held_ms = (time.monotonic() - held_since) * 1000
        await waiting
    probe, request = (event for event in events if event["event"] == "request")
    assert (probe["route"], probe["database_calls"], probe["database_ms"]) == ("/health/live", 0, 0)
    assert request["database_calls"] == 1
    assert request["database_ms"] >= held_ms


@pytest.mark.asvs("16.2.1")
async def test_client_ip_is_resolved_behind_proxies(start_app: StartApp) -> None:
    client = await start_app(trusted_proxies=(ip_network("127.0.0.1"), ip_network("10.0.0.0/8")))
    with logged() as events:
        forwarded = {"X-Forwarded-For": "192.0.2.66, 203.0.113.9, 10.1.2.3"}
        await client.get("/docs", headers=forwarded)
    assert events[0]["client"] == "203.0.113.9"


async def test_probes_log_at_debug_unless_they_fail(
    client: Client,
    start_app: StartApp,
    empty_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_patient(monkeypatch)
    with logged() as events:
        for path in ("/health", "/health/live", "/health/ready/", "/health/startup"):
            assert (await client.get(path)).status == 200
    assert {(event["event"], event["level"]) for event in events} == {("request", "debug")}
    unmigrated = await start_app(database=empty_database)
    with logged() as events:
        assert (await unmigrated.get("/health/live")).status == 200
        assert (await unmigrated.get("/health/ready")).status == 503
    levels = [event["level"] for event in events if event["event"] == "request"]
    assert levels == ["debug", "warning"]


def test_client_disconnect_is_logged(database: Database, tmp_path: Path) -> None:
    """The request still completes, and its line shows the outcome."""
    with serving(tmp_path, **url_of(database)) as served, connect(database) as conn:
        url = served.url
        account = {"email": "ada@example.com", "password": PASSWORD}
        _, tokens = call(f"{url}/api/v1/auth/register", account)
        with conn.transaction():
            conn.execute("select 1 from users for update")
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as connection:
                token = tokens["access_token"].encode()
                connection.sendall(
                    b"PATCH /api/v1/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                    + token
                    + b"\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
                    b'{"name":"Eve"}'
                )
                eventually_blocking(lambda: conn.execute(WAITING).fetchone() > (0,))
            # By this response, the service has seen the other connection end.
            assert call(f"{url}/health/live")[0] == 200
        events = [json.loads(line) for line in served.stderr_after().splitlines()]
        assert conn.execute("select name from users").fetchone() == ("Eve",)
    (line,) = [event for event in events if event.get("method") == "PATCH"]
    assert (line["status"], line["client_gone"]) == (200, True)
    assert "client_gone" not in events[0]


async def test_cancelled_request_is_logged(client: Client, conn: Any) -> None:
    """The test server cancels handlers, as a shutdown past its deadline does."""
    account = await register(client)

    async def is_lock_awaited() -> bool:
        return bool(await conn.fetchval(WAITING))

    async with conn.transaction():
        await conn.execute("select 1 from users for update")
        with logged() as events:
            async with connected(client) as wire:
                wire.writer.write(patch_me(account, b'{"name": "Eve"}'))
                await eventually(is_lock_awaited)
                wire.reset()
                lines = await eventually(lambda: [event for event in events if "status" in event])
    (line,) = lines
    assert (line["event"], line["level"], line["status"]) == ("request", "warning", None)


@pytest.fixture
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log statements by their whole time, also while the machine is busy."""
    monkeypatch.setattr(slow_queries, "BEAT_S", DEADLINE_S)


@pytest.mark.asvs("16.2.5")
@pytest.mark.usefixtures("no_delays")
async def test_slow_queries_are_logged_without_parameters(start_app: StartApp) -> None:
    """Each one names its request, even on a reused connection."""
    client = await start_app(slow_query_ms=0.0001, db_pool_size=1)
    with logged() as events:
        account = await register_as(client, "admin", name="canary", email="canary@example.com")
        filters = {
            "email": "canary@example.com",
            "q": "canary",
            "settings": '{"canary": "canary"}',
            "count": "estimated",
        }
        listed = await client.get("/api/v1/users", headers=account.headers, params=filters)
        assert listed.status == 200
        changed = await client.patch(
            "/api/v1/users/me", headers=account.headers, json={"settings": {"canary": "canary"}}
        )
    slow = [event for event in events if event["event"] == "slow query"]
    ours = [one for one in slow if one.get("request_id") == changed.headers["X-Request-ID"]]
    statements = [one["statement"] for one in ours if one["query"] == "users.change_profile"]
    assert statements[0].startswith("BEGIN")
    assert any(text.startswith("update users set name = $2, settings = $3") for text in statements)
    assert all(one["elapsed_ms"] >= 0 and one["error"] is None for one in slow)
    explained = [one for one in slow if one["statement"].startswith("explain")]
    assert "$1" in explained[0]["statement"]
    assert "canary" not in str([one for one in events if one["event"] != "mail written"])


@pytest.mark.usefixtures("no_delays")
async def test_shared_read_is_logged_with_a_request_that_triggered_it(
    start_app: StartApp, conn: Any
) -> None:
    """Later batches must not keep the first batch's request id."""
    client = await start_app(slow_query_ms=0.0001)
    account = await register(client)

    def ask(request_id: str) -> Awaitable[Any]:
        headers = {**account.headers, "X-Request-ID": request_id}
        return asyncio.ensure_future(client.get("/api/v1/users/me", headers=headers))

    with logged() as events:
        async with conn.transaction():
            await conn.execute("lock table sessions in access exclusive mode")
            requests = []
            for running in range(1, BATCHES_MAX + 1):
                requests.append(ask(f"read-{running}"))
                await eventually(functools.partial(locks_waited_for, conn, running))
            requests.append(ask("follows"))
            # This later request completes once the previous one is waiting.
            assert (await client.get("/health/live")).status == 200
        await asyncio.gather(*requests)
    reads = [event for event in events if event.get("query") == "sessions.find_signed_in"]
    asked = {f"read-{number}" for number in range(1, BATCHES_MAX + 1)}
    assert {event["request_id"] for event in reads} == {*asked, "follows"}


async def locks_waited_for(conn: Any, count: int) -> bool:
    return bool(await conn.fetchval(WAITING) >= count)


@pytest.mark.usefixtures("no_delays")
async def test_statement_that_timed_out_is_a_slow_query(
    postgresql_cancels: None, start_app: StartApp, conn: Any
) -> None:
    account = await register(await start_app())
    client = await start_app(slow_query_ms=50, db_command_timeout_s=1)
    async with conn.transaction():
        await conn.execute("select 1 from users for update")
        with logged() as events:
            response = await client.patch(
                "/api/v1/users/me", headers=account.headers, json={"name": "Ada"}
            )
    assert response.status == 503
    of_request = [e for e in events if e.get("request_id") == response.headers["X-Request-ID"]]
    (slow,) = [event for event in of_request if event.get("error") == "QueryCanceledError"]
    assert (slow["event"], slow["query"]) == ("slow query", "users.change_profile")
    assert slow["statement"].endswith("where id = $1 for no key update")
    assert slow["elapsed_ms"] >= 990


async def test_time_in_which_the_loop_was_held_up_is_not_the_statement_s(
    start_app: StartApp,
) -> None:
    client = await start_app(slow_query_ms=500)
    async with pool_of(client).acquire() as held:
        with logged() as events:
            statement = asyncio.create_task(held.execute("select 1"))
            await asyncio.sleep(0)  # sends it
            time.sleep(1)  # noqa: ASYNC251
            await statement
            await asyncio.sleep(0)  # asyncpg calls its loggers one turn later
    assert "slow query" not in {event["event"] for event in events}


def test_loop_is_held_up_from_when_it_was_due_until_it_ran() -> None:
    delays = [slow_queries.Delay(due=1, ran=2), slow_queries.Delay(due=5, ran=5.5)]
    assert [slow_queries.held_up_s(delays, since) for since in (0, 1.75, 3, 6)] == [
        *(1.5, 0.75, 0.5, 0)
    ]


@pytest.mark.parametrize("slow_query_ms", [0, 20_000])
async def test_fast_queries_are_not_logged(start_app: StartApp, slow_query_ms: float) -> None:
    client = await start_app(slow_query_ms=slow_query_ms)
    with logged() as events:
        await register(client)
    assert "slow query" not in {event["event"] for event in events}


@pytest.mark.asvs("16.2.4", "16.3.4")
def test_library_messages_are_one_line_each(tmp_path: Path) -> None:
    """Covers libraries, warnings, tasks never awaited and uncaught exceptions."""
    code = """
import asyncio, gc, logging, threading, warnings
from service.telemetry.logs import configure_logging
from service.settings import Settings

configure_logging(Settings(log_format="json", log_level="debug"))
logging.getLogger("aiohttp.server").error("first\\nline %s", 2)
logging.getLogger("yoyo.migrations").warning("second")
logging.getLogger("asyncpg.pool").exception("never")
logging.getLogger("aiohttp.access").info("never")
logging.getLogger("aiohttp.access").critical("%d %d", 1)
warnings.warn("third", UserWarning)

async def fail():
    raise ValueError("in a task\\nof two lines")

async def main():
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    try:
        await group()
    except ExceptionGroup:
        logging.getLogger("x").exception("group")

asyncio.run(main())
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise KeyError("nobody catches this")
"""
    result = run_python(code, cwd=tmp_path)
    assert result.returncode == 1
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [(event["level"], event.get("logger")) for event in events] == [
        ("error", "aiohttp.server"),
        ("warning", "yoyo.migrations"),
        ("error", "aiohttp.access"),
        ("warning", "py.warnings"),
        ("error", "asyncio"),
        ("error", "x"),
        ("error", None),
        ("error", None),
    ]
    first, _, third, warned, task, group, thread, last = events
    assert first["event"] == "first\nline 2"
    assert third["event"] == "%d %d"
    assert "UserWarning: third" in warned["event"]
    assert task["exception"].endswith("ValueError: in a task\nof two lines")
    # From Python 3.13, the traceback also shows the raising line.
    assert group["exception"].count("ValueError: in a task") == 1
    assert (thread["event"], thread["thread_name"]) == ("uncaught exception", "worker")
    assert last["event"] == "uncaught exception"
    assert last["exception"].endswith("KeyError: 'nobody catches this'")


def test_disabled_level_is_not_written() -> None:
    pieces = _pieces_written("""
log.debug("never")
log.info("one")
logging.getLogger("library").info("never")
logging.getLogger("library").warning("two")
""")
    assert [event["event"] for piece in pieces for event in piece] == ["one", "two"]


class Collected(logging.Handler):
    """A handler that an operator might attach; it keeps every record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def test_other_handlers_see_every_event_with_its_fields(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Collected()
    caplog.clear()
    with attached(logging.getLogger(), theirs), logged() as events:
        body = {"email": "ada@example.com", "password": "not that passphrase"}
        response = await client.post("/api/v1/auth/login", json=body)
    assert [event["event"] for event in events] == ["sign-in refused", "request"]
    fields = {name: value for name, value in events[1].items() if name not in LINE}
    for records in (theirs.records, caplog.records):
        refused, request = (vars(one) for one in records if one.name.startswith("service."))
        assert (refused["name"], refused["msg"]) == ("service.auth.attempts", "sign-in refused")
        assert refused["account_id"] is None
        assert refused["request_id"] == response.headers["X-Request-ID"]
        assert (request["levelname"], request["msg"]) == ("INFO", "request")
        assert fields.items() <= request.items()


async def test_request_record_matches_one_made_by_logging(client: Client) -> None:
    """The service builds the record by hand to save time; see docs/performance.md."""
    theirs = Collected()
    requests = logging.getLogger("service.telemetry.access_log")
    with attached(requests, theirs):
        await client.get("/docs")
        (record,) = theirs.records
        extra = {name: value for name, value in vars(record).items() if name in FIELDS}
        requests.info(record.msg, extra=extra)
    made, logged_plainly = (dict(vars(one)) for one in theirs.records)
    assert [name for name in made if name != "request_id"] == list(logged_plainly)
    assert made["msecs"] == int(made["created"] % 1 * 1000)
    now = ("created", "msecs", "relativeCreated")
    place = ("pathname", "filename", "module", "lineno", "funcName", "request_id", "taskName")
    for name in (*now, *place):
        made.pop(name, None)
        logged_plainly.pop(name, None)
    assert made == logged_plainly


def test_existing_handlers_are_kept() -> None:
    pieces = _pieces_written("""
class Theirs(logging.Handler):
    def emit(self, record):
        vars(record)["told_by"] = "theirs"

logging.getLogger().handlers.insert(0, Theirs())
configure_logging(Settings(log_format="json"))
log.info("event", extra={"number": 1})
""")
    (event,) = (event for piece in pieces for event in piece)
    assert (event["event"], event["number"], event["told_by"]) == ("event", 1, "theirs")


def test_library_lines_have_the_same_format() -> None:
    """Lines of aiohttp and asyncio carry the request id but not their extras."""
    pieces = _pieces_written("""
from service.context import LOG_CONTEXT

async def main():
    LOG_CONTEXT.set({"request_id": "given"})
    for name in ("aiohttp.access", "aiohttp.server", "asyncio"):
        logging.getLogger(name).warning("of %s", name, extra={"secret": "canary"})

asyncio.run(main())
""")
    assert [list(event) for piece in pieces for event in piece] == [
        ["timestamp", "level", "event", "request_id", "logger"]
    ] * 3
    assert [(event["event"], event["logger"]) for piece in pieces for event in piece] == [
        ("of aiohttp.access", "aiohttp.access"),
        ("of aiohttp.server", "aiohttp.server"),
        ("of asyncio", "asyncio"),
    ]


def test_only_process_entry_points_configure_logging() -> None:
    """Other modules only get a logger from ``logging``."""
    service = ROOT / "service"
    importing = {
        path.relative_to(service).as_posix()
        for path in service.rglob("*.py")
        if re.search(
            r"service\.telemetry\.logs import|service\.telemetry import .*\blogs\b",
            path.read_text(),
        )
    }
    assert importing == {
        "commands/connection.py",
        "commands/migrate.py",
        "commands/serve.py",
        "process/worker.py",
    }


class Found(ast.NodeVisitor):
    """Collects a module's events with their levels and field names."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, set[str]]] = []
        self.dicts: dict[str, set[str]] = {}
        self.levels: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.levels = {
            one.attr.lower()
            for one in ast.walk(node)
            if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "logging"
        } & LEVELS
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        if isinstance(node.value, ast.Dict):
            self.dicts[ast.unparse(node.targets[0])] = self.names(node.value)

    def names(self, node: ast.expr) -> set[str]:
        if not isinstance(node, ast.Dict):
            return self.dicts.get(ast.unparse(node), set())
        return {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        func = node.func
        if ast.unparse(node).startswith("logging.LogRecord(log.name, level"):
            # The request event, whose record is built by hand.
            self.events += [("request", level, set()) for level in ("debug", "info", "warning")]
        if not isinstance(func, ast.Attribute) or ast.unparse(func.value) != "log":
            return
        given = {one.arg: one.value for one in node.keywords if one.arg}
        names = self.names(given["extra"]) if "extra" in given else set()
        if func.attr == "exception" or "exc_info" in given:
            names = names | {"exception"}
        levels = {"exception": {"error"}, "log": self.levels}.get(func.attr, {func.attr} & LEVELS)
        event = next((arg.value for arg in node.args if isinstance(arg, ast.Constant)), None)
        self.events += [(str(event), level, names) for level in levels]


@pytest.mark.asvs("16.2.4")
def test_documented_events_match_the_code() -> None:
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    table = page.split("## Events")[1].split("| fields of `request` |")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
    of_request = set(
        re.findall(r"`(\w+)`", page.split("| fields of `request` |")[1].split("\n\n")[0])
    )
    documented = {
        event: (
            set(re.findall(r"debug|info|warning|error", levels)),
            of_request if event == "request" else set(re.findall(r"`(\w+)`", names)),
        )
        for event, levels, names in rows
    }
    in_code: dict[str, set[str]] = {}
    for path in sorted((ROOT / "service").rglob("*.py")):
        found = Found()
        found.visit(ast.parse(path.read_text(encoding="utf-8")))
        for event, level, names in found.events:
            assert event in documented, f"{path.name}: {event!r} is not in docs/logs.md"
            assert names <= documented[event][1], f"{path.name}: {event!r}: {names}"
            assert not (names - {"exception"}) & TAKEN, f"{path.name}: {event!r}: {names}"
            in_code.setdefault(event, set()).add(level)
    assert in_code == {event: levels for event, (levels, _) in documented.items()}
