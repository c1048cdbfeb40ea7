"""Faults between the two requests of a sign-in: of a passkey, or of a second factor."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from tests.faults.holders import (
    Holder,
    Send,
    create_holder,
    sign_in_by_passkey,
    sign_in_in_two_steps,
)
from tests.faults.load import BROKEN, WRITERS, Load
from tests.faults.of_clocks import STEP_S, preloaded, set_clock
from tests.faults.run import Fault
from tests.faults.stage import Stage
from tests.support.proxy import reset

LAST = ("/auth/passkey", "/auth/second-factor")
ALONE_OR_TWO = ("direct", "two workers")
TIMES = 10


def interrupted(load: Load, happen: Callable[[], Awaitable[object]]) -> Send:
    """Return what sends the requests of a sign-in, and has something happen before the last."""

    async def send(
        method: str,
        path: str,
        body: object,
        headers: dict[str, str] | None = None,
        *,
        refusals: tuple[str, ...] = (),
    ) -> tuple[int, Any]:
        if path in LAST and not refusals:
            await happen()
        return await load.send(method, path, body, headers, refusals=refusals)

    return send


async def sign_in_both_ways(load: Load, send: Send) -> Holder:
    """Sign a new holder in, and have the ledger compared with the others."""
    holder = await create_holder(load.expect, f"holder{len(load.holders)}of@example.com")
    load.holders.append(holder)
    for sign_in in (sign_in_by_passkey, sign_in_in_two_steps):
        await sign_in(send, holder)
    return holder


async def responses_to_sign_ins_are_lost(stage: Stage, load: Load) -> int:
    """The client hangs up before it has read more than the status. Repeated, the sign-in is refused."""

    async def send(
        method: str,
        path: str,
        body: object,
        headers: dict[str, str] | None = None,
        *,
        refusals: tuple[str, ...] = (),
    ) -> tuple[int, Any]:
        if path not in LAST or refusals:
            return await load.send(method, path, body, headers, refusals=refusals)
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.service.port)
        writer.write(
            f"{method} {load.api}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        reset(writer)
        return BROKEN, None

    for _ in range(TIMES):
        holder = await sign_in_both_ways(load, send)
        await sign_in_by_passkey(load.send, holder)
    return sum(len(holder.repeated) for holder in load.holders[-TIMES:])


async def the_service_is_killed_within_a_sign_in(stage: Stage, load: Load) -> int:
    """Another process completes it."""

    async def happen() -> None:
        await stage.service.kill()
        await stage.service.start()

    holder = await sign_in_both_ways(load, interrupted(load, happen))
    assert len(holder.sessions) == 2, holder
    return sum(each.status == BROKEN for each in load.requests)


async def the_server_is_killed_within_a_sign_in(stage: Stage, load: Load) -> int:
    """The challenge is still there afterwards."""

    async def happen() -> None:
        await stage.postgres.stop(signal.SIGKILL)
        await stage.postgres.start()
        await load.acknowledge(WRITERS)

    holder = await sign_in_both_ways(load, interrupted(load, happen))
    assert len(holder.sessions) == 2, holder
    return load.count_hindered()


async def the_clock_is_set_within_a_sign_in(stage: Stage, load: Load) -> int:
    """Like clocks of replicas that differ by minutes: one begins it and another completes it."""
    seen = 0
    for offset_s in (STEP_S, -STEP_S):

        async def happen(offset_s: int = offset_s) -> None:
            nonlocal seen
            seen += await set_clock(stage, load, offset_s)

        holder = await sign_in_both_ways(load, interrupted(load, happen))
        await set_clock(stage, load, 0)
        assert len(holder.sessions) == 2, holder
    return seen


FAULTS = [
    Fault(responses_to_sign_ins_are_lost, modes=ALONE_OR_TWO, refusals=False),
    Fault(the_service_is_killed_within_a_sign_in, modes=ALONE_OR_TWO, breaks=True),
    Fault(the_server_is_killed_within_a_sign_in),
    Fault(
        the_clock_is_set_within_a_sign_in, modes=ALONE_OR_TWO, refusals=False, settings=preloaded
    ),
]
