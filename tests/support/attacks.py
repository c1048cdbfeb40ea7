"""Attacks as pairs of requests: one that is refused, and its accepted twin."""

from collections.abc import Iterable
from typing import NamedTuple

from tests.support.clients import Client
from tests.support.operations import Request

SHOWN = 40


class Attack(NamedTuple):
    """A request, with the status and code of its refusal; ``twin`` differs in one thing."""

    name: str
    request: Request
    twin: Request
    status: int
    code: str


async def carry_out(client: Client, attacks: Iterable[Attack], *, at_least: int) -> None:
    """Assert that each request is refused as expected, and that its twin is accepted after it."""
    wrong: list[str] = []
    count = 0
    for attack in attacks:
        count += 1
        response = await attack.request.send(client)
        problem = await response.json() if response.status >= 400 else {}
        found = (response.status, problem.get("code"))
        if found != (attack.status, attack.code):
            wrong.append(f"{attack.name}: expected {attack.status} {attack.code}, got {found}")
        response = await attack.twin.send(client)
        if response.status >= 300:
            wrong.append(f"{attack.name}: its twin is refused: {await response.text()}")
    report(wrong, count, at_least)


def report(wrong: list[str], count: int, at_least: int) -> None:
    """Fail if anything is wrong, or if there were fewer cases than expected."""
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:SHOWN]])
    assert count >= at_least, f"{count} cases"
