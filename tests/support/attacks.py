"""Attacks as pairs of requests: one that is refused, and its accepted twin."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, NamedTuple

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


async def carry_out(
    client: Client, attacks: Iterable[Attack] | AsyncIterable[Attack], *, at_least: int
) -> None:
    """Assert that each request is refused as expected, and that its twin is accepted after it.

    Each attack is taken after the one before it, so that it can be prepared only then.
    """
    wrong: list[str] = []
    count = 0
    async for attack in attacks if isinstance(attacks, AsyncIterable) else _one_by_one(attacks):
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


async def _one_by_one(attacks: Iterable[Attack]) -> AsyncIterator[Attack]:
    for attack in attacks:
        yield attack


def report(wrong: list[str], count: int, at_least: int) -> None:
    """Fail if anything is wrong, or if there were fewer cases than expected."""
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:SHOWN]])
    assert count >= at_least, f"{count} cases"


def changed(token: str) -> Iterator[tuple[str, Any, int, str]]:
    """Yield other texts than an opaque token: its name, the text, and the status and kind."""
    for name, text in {
        "first character cut": token[1:],
        "last character cut": token[:-1],
        "one more character": f"{token}A",
        "padding": f"{token}=",
        "swapped case": token.swapcase(),
        "lower case": token.lower(),
        "upper case": token.upper(),
        "turned round": token[::-1],
        "space before": f" {token}",
        "space after": f"{token} ",
        "line feed after": f"{token}\n",
        "tab within": f"{token[:9]}\t{token[9:]}",
        "zero-width space": f"{token}\u200b",
        "full-width letters": "".join(chr(ord(char) + 0xFEE0) for char in token),
        "escaped": "".join(f"%{ord(char):02X}" for char in token),
        "twice": token * 2,
        "two, with a comma": f"{token},{token}",
        "in quotes": f'"{token}"',
        "with its scheme": f"Bearer {token}",
        "another first character": ("A" if token[0] != "A" else "B") + token[1:],
        "wildcard": "%",
        "SQL": "' or '1'='1",
        "zeros": "0" * len(token),
        "null": "null",
        "longest": "A" * 512,
    }.items():
        yield name, text, 401, "invalid"
    for name, value in {
        "NUL": f"{token}\0",
        "too long": "A" * 513,
        "empty": "",
        "array": [token],
        "object": {"token": token},
        "number": 7,
        "true": True,
        "null value": None,
    }.items():
        yield name, value, 422, "invalid_fields"
