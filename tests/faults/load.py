"""Clients that use the service during a fault, and the ledger of what it told them.

The ledger holds each write by an id of the client's own, and what the service answered. After the
fault it is compared with what the service has.
"""

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from tests.faults.holders import (
    Holder,
    create_holder,
    sign_in_by_passkey,
    sign_in_in_two_steps,
)
from tests.faults.stage import Postgres
from tests.support.factories import PASSWORD, bearer
from tests.support.waiting import eventually

WRITERS = 6
# A writer lists its events after each write whose number this divides.
LOOK_AFTER = 9
# As many events as a list has at most.
LIST_MAX = 1000
PROBE_EVERY_S = 0.1
SIGN_IN_EVERY_S = 0.4
# Far longer than any request may take.
TIMEOUT_S = 20
# Instead of a status.
BROKEN, TIMEOUT = 0, -1
_numbers = itertools.count(1)


class Outcome(NamedTuple):
    """A request that ended: its kind, when it began and ended, its status, and what was wrong."""

    kind: str
    began: float
    ended: float
    status: int
    wrong: str = ""


@dataclass
class Writer:
    """A client with an account and a world, and what it wrote."""

    email: str
    headers: dict[str, str]
    refresh_token: str
    world: str
    # Events by their summary, and whether the write was acknowledged. Those with an
    # Idempotency-Key, which is the summary, can be repeated until they are.
    keyed: dict[str, bool] = field(default_factory=dict)
    plain: dict[str, bool] = field(default_factory=dict)
    # The account's name counts up: the last one sent, and the last one acknowledged.
    name_sent: int = 0
    name_acknowledged: int = 0
    names_acknowledged: int = 0

    @property
    def acknowledged(self) -> int:
        return sum(self.keyed.values()) + sum(self.plain.values()) + self.names_acknowledged


class Load:
    """Writers, holders of passkeys, a reader and probes, and the outcomes of their requests."""

    api = "/api/v1"
    has_readiness = True
    pause_s = 0.05

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.writers: list[Writer] = []
        self.holders: list[Holder] = []
        self.requests: list[Outcome] = []
        self.probes: list[Outcome] = []
        self.stale: list[str] = []
        # When the requests without an answer yet began.
        self.waiting: Counter[float] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._going = asyncio.Event()
        self._going.set()
        self._busy = 0

    @property
    def acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    async def set_up(self, postgres: Postgres) -> None:
        """Register the writers and create their worlds, and register two holders of passkeys."""
        for _ in range(WRITERS):
            email = f"writer{next(_numbers)}@example.com"
            body = {"email": email, "password": PASSWORD}
            tokens = await self.expect("POST", "/auth/register", body)
            headers = bearer(tokens["access_token"])
            world = await self.expect("POST", "/worlds/", {"name": "Orrery"}, headers)
            self.writers.append(Writer(email, headers, tokens["refresh_token"], world["id"]))
        for _ in range(2):
            email = f"holder{next(_numbers)}@example.com"
            self.holders.append(await create_holder(self.expect, email))

    def start(self) -> None:
        for writer in self.writers:
            self.repeat(self.pause_s, self._write, writer)
        self.repeat(self.pause_s, self.read)
        self.repeat(SIGN_IN_EVERY_S, self._sign_in)
        self.repeat(SIGN_IN_EVERY_S, self._refresh)
        by_passkey, in_two_steps = self.holders
        self.repeat(SIGN_IN_EVERY_S, sign_in_by_passkey, self.send, by_passkey)
        self.repeat(SIGN_IN_EVERY_S, sign_in_in_two_steps, self.send, in_two_steps)
        for probe in ("live", "ready"):
            self.repeat(PROBE_EVERY_S, self.probe, probe)

    async def stop(self) -> None:
        """Stop, once every request has been answered."""
        self._stopping = True
        self.resume()
        await asyncio.gather(*self._tasks)

    async def pause(self) -> None:
        """Send nothing more, and return once everything has been answered."""
        self._going.clear()
        await eventually(lambda: not self._busy)

    def resume(self) -> None:
        self._going.set()

    def repeat(self, pause_s: float, step: Callable[..., Awaitable[object]], *args: Any) -> None:
        async def repeat() -> None:
            while not self._stopping:
                await self._going.wait()
                self._busy += 1
                await step(*args)
                self._busy -= 1
                await asyncio.sleep(pause_s)

        self._tasks.append(asyncio.create_task(repeat()))

    async def acknowledge(self, count: int) -> None:
        """Return once this many more writes have been acknowledged."""
        wanted = self.acknowledged + count

        def acknowledged() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.acknowledged >= wanted

        await eventually(acknowledged)

    def count_hindered(self) -> int:
        """Return how many requests were refused or took more than a second."""
        return sum(
            (each.status != 200 and each.status >= 500) or each.ended - each.began > 1
            for each in self.requests
        )

    def forget(self) -> None:
        """Forget the outcomes so far, but not the ledger."""
        self.stale.clear()
        self.requests.clear()
        self.probes.clear()

    async def settle(self) -> None:
        """Repeat each keyed write that was not acknowledged, until it is."""
        for writer in self.writers:
            for summary in [summary for summary, known in writer.keyed.items() if not known]:
                await eventually(functools.partial(self._is_settled, writer, summary))

    async def _is_settled(self, writer: Writer, summary: str) -> bool:
        writer.keyed[summary] = await self._insert(writer, summary, keyed=True) == 201
        return writer.keyed[summary]

    async def compare(self, postgres: Postgres) -> tuple[int, int]:
        """Compare the ledger with what is stored; return how many are lost, and doubled."""
        lost = doubled = 0
        async with postgres.administrator() as administrator:
            for writer in self.writers:
                written = writer.keyed | writer.plain
                rows = await administrator.fetch(
                    "select summary from world_events where world_id::text = $1", writer.world
                )
                found = Counter(row["summary"] for row in rows)
                lost += sum(known and not found[summary] for summary, known in written.items())
                doubled += sum(count > 1 for count in found.values())
                assert found.keys() <= written.keys(), found.keys() - written.keys()
                stored = "select name from users where email = $1"
                name = int(await administrator.fetchval(stored, writer.email) or 0)
                lost += max(0, writer.name_acknowledged - name)
                assert name <= writer.name_sent
            for holder in self.holders:
                lost_of_holder, doubled_of_holder = await holder.compare(administrator)
                lost += lost_of_holder
                doubled += doubled_of_holder
        return lost, doubled

    async def expect(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Send a request that must succeed, and return its body."""
        sending = self.session.request(
            method, self.url + self.api + path, json=body, headers=headers
        )
        async with sending as response:
            assert response.ok, (method, path, response.status, await response.text())
            return await response.json()

    async def _write(self, writer: Writer) -> None:
        number = len(writer.keyed) + len(writer.plain) + writer.name_sent
        if number % 3 == 2:
            await self.rename(writer)
            return
        written = writer.plain if number % 3 else writer.keyed
        summary = f"{number}"
        written[summary] = False
        status = await self._insert(writer, summary, keyed=written is writer.keyed)
        written[summary] = status == 201
        if status == 201 and number % LOOK_AFTER == 0 and number < LIST_MAX:
            await self._look(writer, summary)

    async def _look(self, writer: Writer, summary: str) -> None:
        """List the events of the writer's world, which has what has just been written."""
        path = f"/worlds/{writer.world}/events"
        status, events = await self.send("GET", path, None, writer.headers)
        if status == 200 and summary not in (event["summary"] for event in events):
            self.stale.append(summary)

    async def rename(self, writer: Writer) -> None:
        """Count the name of the writer's account up."""
        writer.name_sent += 1
        body = {"name": str(writer.name_sent)}
        status, _ = await self.send("PATCH", "/users/me", body, writer.headers)
        if status == 200:
            writer.name_acknowledged = writer.name_sent
            writer.names_acknowledged += 1

    async def _insert(self, writer: Writer, summary: str, *, keyed: bool) -> int:
        event = {"t": 1, "type": "major", "summary": summary}
        headers = writer.headers | ({"Idempotency-Key": summary} if keyed else {})
        status, _ = await self.send("POST", f"/worlds/{writer.world}/events", event, headers)
        return status

    async def read(self) -> None:
        await self.send("GET", "/users/me", None, self.writers[0].headers)

    async def _sign_in(self) -> None:
        body = {"email": self.writers[1].email, "password": PASSWORD}
        await self.send("POST", "/auth/login", body)

    async def _refresh(self) -> None:
        """Refresh a session, again with the same token if there was no answer."""
        writer = self.writers[2]
        body = {"refresh_token": writer.refresh_token}
        status, tokens = await self.send("POST", "/auth/refresh", body)
        if status == 200:
            writer.refresh_token = tokens["refresh_token"]

    async def probe(self, probe: str) -> None:
        began = time.monotonic()
        try:
            async with self.session.get(f"{self.url}/health/{probe}") as response:
                await response.read()
                status = response.status
        except TimeoutError:
            status = TIMEOUT
        except (OSError, aiohttp.ClientError):
            status = BROKEN
        self.probes.append(Outcome(probe, began, time.monotonic(), status))

    async def send(
        self,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str] | None = None,
        *,
        refusals: tuple[str, ...] = (),
    ) -> tuple[int, Any]:
        """Send a request once, note its outcome, and return its status and body.

        Nothing is wrong with a problem whose code is one of ``refusals``.
        """
        began = time.monotonic()
        self.waiting[began] += 1
        wrong, parsed = "", None
        sending = self.session.request(
            method, self.url + self.api + path, json=body, headers=headers
        )
        try:
            async with sending as response:
                parsed = await response.json(content_type=None)
                status = response.status
                if not response.ok and (response.status >= 500 or parsed["code"] not in refusals):
                    wrong = _explain(response, parsed)
        except TimeoutError:
            status = TIMEOUT
        except (OSError, aiohttp.ClientError) as error:
            status, wrong = BROKEN, repr(error)
        self.waiting -= Counter([began])
        outcome = Outcome(f"{method} {path}", began, time.monotonic(), status, wrong)
        self.requests.append(outcome)
        return status, parsed


def _explain(response: aiohttp.ClientResponse, problem: Any) -> str:
    """Return what is wrong with a response; nothing is with a 503 that a client understands."""
    if response.status != 503:
        return f"{problem}"
    if "Retry-After" not in response.headers:
        return "503 without Retry-After"
    if response.content_type != "application/problem+json" or "code" not in problem:
        return f"503 without a problem: {problem}"
    return ""
