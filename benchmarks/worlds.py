"""Measures worlds: ``.venv/bin/python -m benchmarks.worlds``.

A novel (``examples/novel.py``) is imported and exported over HTTP, for time and memory, and so is
one of ten times its length. Then requests for the first are timed in two databases in turns: one
has only this world, the other also WORLDS such worlds of other accounts. SAMPLES is the number of
requests of each kind.
"""

import asyncio
import dataclasses
import http.client
import io
import json
import os
import statistics
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg

from benchmarks import measure, stage
from examples import novel
from service.settings import Database
from service.worlds import view_queries

WORLDS = int(os.environ.get("WORLDS", "100"))
SAMPLES = int(os.environ.get("SAMPLES", "40"))
WARM_UP = 8
GROWTH_BAR = 1.5
MIB = 2**20

# How to copy the rows of world $1 to another one, whose ids are hashes of these and of a number.
ID = "md5('{number}' || {column})::uuid"
IDS = ("id", "world_id", "story_id", "world_event_id", "event_id", "cause_id")
EXPLAIN = "analyze, costs off, timing off, summary off, buffers off"
TABLES = ("worlds", "world_events", "event_causes", "stories", "story_beats")


class Client(NamedTuple):
    """Sends requests with an access token, one at a time, on one connection."""

    connection: http.client.HTTPConnection
    headers: dict[str, str]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[float, float, bytes]:
        """Return the ms until the headers and the end of the response, and its body."""
        started = time.perf_counter()
        self.connection.request(method, f"/api/v1{path}", body, self.headers)
        response = self.connection.getresponse()
        begun = time.perf_counter()
        received = response.read()
        ended = time.perf_counter()
        if response.status not in (200, 201):
            raise RuntimeError(f"{path}: {response.status} {received[:500].decode()}")
        return (begun - started) * 1000, (ended - started) * 1000, received

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[2])


def connect(server: stage.Server, token: str) -> Client:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return Client(connection, headers)


def main() -> None:
    with stage.stage() as (directory, postgres):
        print(json.dumps(stage.machine(postgres.database)))
        small, long = (
            asyncio.run(stage.create_database(postgres.database, name))
            for name in ("bench_world", "bench_long_world")
        )
        identity, other = (
            asyncio.run(stage.seed(database, WORLDS + 10, 1))[0] for database in (small, long)
        )
        serve = partial(stage.serving, stage.SHINKEI, log=directory / "shinkei.log")
        print("\n| | MB | to the headers, s | in all, s | RSS before, MiB | highest, MiB |")
        print("|---|--:|--:|--:|--:|--:|")
        with serve(small) as server:
            client = connect(server, identity.access_token)
            world_id = _transfer("novel", novel.compose(), client, server.pid)
            paths = _paths(client, world_id)
        with serve(long) as server:
            client = connect(server, other.access_token)
            _transfer(
                "ten times that", novel.compose(stories=10 * novel.STORIES), client, server.pid
            )
        large = asyncio.run(_multiply(postgres.database, small, world_id))
        with serve(small) as one, serve(large) as hundred:
            clients = [connect(server, identity.access_token) for server in (one, hundred)]
            slow = _compare(clients, paths)
        for database in (small, large):
            asyncio.run(_explain(database, world_id))
    if slow:
        sys.exit(f"bench: grows by more than {GROWTH_BAR}: {'; '.join(slow)}")


# Import and export


def _transfer(name: str, document: dict[str, Any], client: Client, pid: int) -> str:
    """Import a world and export it; print time and memory, and return its id."""
    body = json.dumps(document).encode()
    received = _measure(f"import, {name}", client, pid, "POST", "/worlds/import", body)
    world_id = str(json.loads(received)["id"])
    _measure(f"export, {name}", client, pid, "GET", f"/worlds/{world_id}/export", None)
    return world_id


def _measure(
    name: str, client: Client, pid: int, method: str, path: str, body: bytes | None
) -> bytes:
    # So that VmHWM is the highest from now on (proc(5)).
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = measure.rss_bytes(pid) / MIB
    begun_ms, ended_ms, received = client.ask(method, path, body)
    status = Path(f"/proc/{pid}/status").read_text()
    highest = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    size = len(body or received) / 1e6
    print(
        f"| {name} | {size:.1f} | {begun_ms / 1000:.2f} | {ended_ms / 1000:.2f}"
        f" | {before:.0f} | {highest:.0f} |"
    )
    sys.stdout.flush()
    return received


# One world, and one among many


def _paths(client: Client, world_id: str) -> dict[str, str]:
    world = f"/worlds/{world_id}"
    story = client.get(f"{world}/stories")[-1]
    return {
        "timeline": f"{world}/timeline",
        "intersections": f"{world}/intersections",
        "search, a rare word": f"{world}/search?q={novel.RARE}",
        "search, a frequent word": f"{world}/search?q={novel.FREQUENT}",
        "events": f"{world}/events",
        "stories": f"{world}/stories",
        "beats of a story": f"/stories/{story['id']}/beats",
        "statistics of a story": f"/stories/{story['id']}/statistics",
    }


async def _multiply(server: Database, small: Database, world_id: str) -> Database:
    """Copy the database, and give each of WORLDS other accounts a copy of the world."""
    started = time.perf_counter()
    conn = await asyncpg.connect(**server.asyncpg_arguments())
    await conn.execute(f'create database "bench_worlds" template "{small.name}"')
    await conn.close()
    large = dataclasses.replace(small, name="bench_worlds")
    conn = await asyncpg.connect(**large.asyncpg_arguments())
    owner = await conn.fetchval("select user_id from worlds where id = $1", world_id)
    users = await conn.fetch(
        "select id from users where id <> $1 order by id limit $2", owner, WORLDS
    )
    for number, user in enumerate(users):
        for table in TABLES:
            await _copy(conn, table, world_id, number, user["id"])
    await conn.close()
    for database in (small, large):
        conn = await asyncpg.connect(**database.asyncpg_arguments())
        await conn.execute("vacuum (analyze)")
        size = await conn.fetchval("select pg_database_size(current_database())")
        beats = await conn.fetchval("select count(*) from story_beats")
        print(f"\n{database.name}: {beats} beats, {size / MIB:.0f} MiB")
        await conn.close()
    print(f"copied in {time.perf_counter() - started:.0f} s")
    return large


async def _copy(
    conn: "asyncpg.Connection[asyncpg.Record]",
    table: str,
    world_id: str,
    number: int,
    user_id: object,
) -> None:
    rows = await conn.fetch(
        "select attname from pg_attribute where attrelid = $1::text::regclass and attnum > 0"
        " and not attisdropped order by attnum",
        table,
    )
    columns = [row["attname"] for row in rows]
    values = [
        f"'{user_id}'"
        if column == "user_id"
        else ID.format(number=number, column=column)
        if column in IDS
        else column
        for column in columns
    ]
    of_world = "id" if table == "worlds" else "world_id"
    buffer = io.BytesIO()
    query = f"select {', '.join(values)} from {table} where {of_world} = '{world_id}'"
    await conn.copy_from_query(query, output=buffer)
    buffer.seek(0)
    await conn.copy_to_table(table, source=buffer, columns=columns)


def _compare(clients: list[Client], paths: dict[str, str]) -> list[str]:
    """Time the requests in both databases in turns; return what grows by more than the bar."""
    print(f"\n| p50 of {SAMPLES}, ms | alone | among {WORLDS} others | growth |")
    print("|---|--:|--:|--:|")
    slow = []
    for name, path in paths.items():
        times: list[list[float]] = [[], []]
        for _ in range(WARM_UP + SAMPLES):
            for client, taken in zip(clients, times, strict=True):
                taken.append(client.ask("GET", path)[1])
        alone, among = (statistics.median(taken[WARM_UP:]) for taken in times)
        print(f"| {name} | {alone:.1f} | {among:.1f} | {among / alone:.2f} |")
        sys.stdout.flush()
        if among > GROWTH_BAR * alone:
            slow.append(name)
    return slow


class _Recorder:
    """A connection that keeps a statement instead of executing it."""

    statement: tuple[Any, ...] = ()

    async def fetch(self, *statement: Any) -> list[Any]:
        self.statement = statement
        return []


async def _explain(database: Database, world_id: str) -> None:
    """Print how PostgreSQL searches for a frequent word, for these and for any arguments."""
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    for word in (novel.RARE, novel.FREQUENT):
        recorder: Any = _Recorder()
        await view_queries.search(recorder, uuid.UUID(world_id), "english", word, 20)
        sql, *arguments = recorder.statement
        for mode in ("force_custom_plan", "force_generic_plan"):
            await conn.execute(f"set plan_cache_mode = {mode}")
            await conn.execute(f"prepare searching as {sql}")
            given = ", ".join(f"'{argument}'" for argument in arguments)
            rows = await conn.fetch(f"explain ({EXPLAIN}) execute searching({given})")
            await conn.execute("deallocate searching")
            print(f"\n{database.name}, {word}, {mode}")
            print("\n".join(row[0] for row in rows))
    await conn.close()


if __name__ == "__main__":
    main()
