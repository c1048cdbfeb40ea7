"""The test bed: a PostgreSQL with accounts, and servers pinned to a core."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import psycopg
import uuid_utils.compat as uuid_utils
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import OctKey

from service.app import create_app
from service.auth.assurance import Assurance
from service.auth.passwords import hash_password
from service.auth.tokens import sign_access_token
from service.db import migrations
from service.embedded import server as embedded
from service.sessions.tokens import hash_refresh_token, new_refresh_token
from service.settings import Database, Settings

# The measured server gets the first core; everything else shares the others.
SERVER_CORE, *OTHER_CORES = sorted(os.sched_getaffinity(0))
SECRET = "a secret key of the benchmarks, and nothing else's"
PASSWORD = "a passphrase of the benchmarks"
SHINKEI = [str(Path(sys.executable).with_name("shinkei")), "serve"]
STARTUP_S = 30
TOKEN_TTL_S = 86_400

# Tuned like a small server; durability settings keep PostgreSQL's defaults.
POSTGRES = {
    "max_connections": "200",
    "shared_buffers": "512MB",
    "effective_cache_size": "2GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
}

# Account n is created n minutes after START, and its id is a UUIDv7 of that time. Of a thousand,
# one is an administrator, two are support and five are suspended. The oldest twentieth are
# founders.
START = datetime(2020, 1, 1, tzinfo=UTC)
USERS = """
insert into users (id, email, email_folded, email_verified_at, name, password_hash, role, settings,
                   status, suspension_reason, created_at, updated_at)
select (lpad(to_hex((extract(epoch from t) * 1000)::bigint), 12, '0') || '7' || substr(h, 1, 3)
        || '8' || substr(h, 4, 15))::uuid,
       email, email, t, 'Name ' || h, $2,
       case when n % 1000 < 2 then 'support' when n % 1000 = 2 then 'admin' else 'user' end,
       jsonb_build_object('language', (array['en', 'fr', 'de'])[n % 3 + 1], 'plan', n % 1000)
           || case when n <= $1 / 20 then '{"founder": true}'::jsonb else '{}' end,
       case when n % 400 < 2 then 'suspended' else 'active' end,
       case when n % 400 < 2 then 'by the benchmark' end,
       t, t
from generate_series(1, $1) n, md5(n::text) h,
     lateral (select 'user' || n || '@mail.example') as emails (email),
     lateral (select $3::timestamptz + n * interval '1 minute') as times (t)
"""


def created_at(number: int) -> str:
    """Return the creation time of account ``number``."""
    return (START + timedelta(minutes=number)).isoformat().replace("+00:00", "Z")


class Identity(NamedTuple):
    """A signed-in user, with the service's tokens and those that the peers accept."""

    email: str
    access_token: str
    refresh_token: str
    peer_token: str
    fastapi_users_token: str


class Server(NamedTuple):
    """A server that is ready at ``url``."""

    url: str
    pid: int


@contextlib.contextmanager
def stage() -> Iterator[tuple[Path, embedded.Server]]:
    """Run a PostgreSQL in a temporary directory, on all cores but the server's.

    This process moves to those cores too. Ctrl-C and SIGTERM stop everything in order.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.sched_setaffinity(0, OTHER_CORES or {SERVER_CORE})
    directory = Path(tempfile.mkdtemp(prefix="shinkei-bench-"))
    try:
        postgres = embedded.start(directory, options=POSTGRES)
        try:
            yield directory, postgres
        except KeyboardInterrupt:
            sys.exit("bench: stopped")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            postgres.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def url_of(database: Database) -> str:
    host, port = database.hosts[0]
    return f"postgresql://{database.user}:{database.password}@{host}:{port}/{database.name}"


async def create_database(server: Database, name: str) -> Database:
    conn = await asyncpg.connect(**server.asyncpg_arguments())
    await conn.execute(f'create database "{name}"')
    await conn.close()
    return dataclasses.replace(server, name=name)


async def seed(database: Database, users: int, sessions: int) -> list[Identity]:
    """Migrate, insert ``users`` accounts with one password, and sign in ``sessions`` of them.

    The first identity is an administrator. The others are a sample of the active users.
    """
    await asyncio.to_thread(migrations.apply_pending, database)
    settings = Settings(database=database, secret_key=SECRET, access_token_ttl_s=TOKEN_TTL_S)
    app = create_app(settings)
    runner = web.AppRunner(app)
    await runner.setup()
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        await conn.execute(USERS, users, await hash_password(app, PASSWORD), START)
        rows = await conn.fetch(
            """
            select id, email from users
            where status = 'active' and role = 'user' or id = (
                select id from users where status = 'active' and role = 'admin' limit 1
            )
            order by role <> 'admin', md5(email) limit $1
            """,
            sessions,
        )
        identities, records, tokens = [], [], []
        for user_id, email in rows:
            session_id, refresh_token = uuid_utils.uuid7(), new_refresh_token()
            records.append((session_id, user_id))
            tokens.append((hash_refresh_token(refresh_token), session_id))
            assurance = Assurance(["pwd"], 1, datetime.now(UTC))
            access_token = await sign_access_token(app, user_id, session_id, assurance)
            peer_tokens = _hs256(user_id), _hs256(user_id, aud=["fastapi-users:auth"])
            identities.append(Identity(email, access_token, refresh_token, *peer_tokens))
        await conn.executemany(
            """
            insert into sessions (id, user_id, expires_at, idle_expires_at, user_agent, ip)
            values ($1, $2, now() + interval '30 days', now() + interval '7 days', '', '127.0.0.1')
            """,
            records,
        )
        await conn.copy_records_to_table(
            "refresh_tokens", records=tokens, columns=["token_hash", "session_id"]
        )
        await conn.execute("vacuum (freeze, analyze)")
        await conn.execute("checkpoint")
    finally:
        await conn.close()
        await runner.cleanup()
    return identities


def _hs256(user_id: uuid.UUID, **more: object) -> str:
    now = int(time.time())
    claims = {"sub": str(user_id), "iat": now, "exp": now + TOKEN_TTL_S, **more}
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


@contextlib.contextmanager
def serving(
    command: list[str],
    database: Database,
    log: Path,
    *,
    pinned: bool = True,
    ready: str = "/health/live",
    **environ: str,
) -> Iterator[Server]:
    """Run a server on a free port and wait for ``ready``; its output goes to ``log``."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {
        "PATH": os.environ["PATH"],
        "PORT": str(port),
        "DATABASE_URL": url_of(database),
        "SECRET_KEY": SECRET,
        "JWT_SECRET": SECRET,
        "DATA_DIR": str(log.parent / "data"),
        **environ,
    }
    cores = [SERVER_CORE] if pinned else [SERVER_CORE, *OTHER_CORES]
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", ",".join(map(str, cores))]
            + [part.format(port=port) for part in command],
            stdout=output,
            stderr=output,
            env=given,
            # Only this process gets Ctrl-C, and then stops the server.
            start_new_session=True,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        _wait_until_ready(server.url + ready, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if ask(url)[0] == 200:
                return
        time.sleep(0.01)
    lines = log.read_text(errors="replace").splitlines()[-20:]
    raise RuntimeError("\n".join([f"{process.args!r} is not ready:", *lines]))


def ask(
    url: str,
    method: str = "GET",
    *,
    token: str | None = None,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> tuple[int, Any]:
    """Send a request and return the status and the JSON body (None if empty)."""
    parts = urlsplit(url)
    conn = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    headers = {"Content-Type": content_type} if body else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with contextlib.closing(conn):
        conn.request(method, f"{parts.path}?{parts.query}".rstrip("?"), body, headers)
        response = conn.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None


def write_files(directory: Path, identities: list[Identity]) -> dict[str, Path]:
    """Write a file per field of Identity, with a line per identity, for wrk's scripts."""
    for field in Identity._fields:
        lines = [f"{getattr(one, field)}\n" for one in identities]
        (directory / field).write_text("".join(lines))
    return {field: directory / field for field in Identity._fields}


def machine(postgres: Database) -> dict[str, Any]:
    """Describe the machine, the time, the commit and the versions."""
    with psycopg.connect(**postgres.libpq_arguments()) as conn:
        major, minor = divmod(conn.info.server_version, 10_000)
    return {
        **host(),
        "postgresql": {"version": f"{major}.{minor}", **POSTGRES},
        "wrk": output("wrk", "-v").split()[1] if shutil.which("wrk") else None,
    }


def host() -> dict[str, Any]:
    """Describe the machine, the time and the commit."""
    lines, here = Path("/proc/cpuinfo").read_text().splitlines(), str(Path(__file__).parent)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": output("git", "-C", here, "describe", "--always", "--dirty"),
        "cpu": next(line for line in lines if line.startswith("model name")).split(": ", 1)[1],
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
