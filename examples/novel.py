"""Writes a novel's worth of data into a running service, as one import, and reads it back.

    make serve                                  # in one terminal
    .venv/bin/python examples/novel.py          # in another

This registers an account, imports a world of 10 stories with 500 beats each, whose paths cross at
300 events, and adds to it with single requests. It prints the status and the time of each request,
then the world's id. To add to an account of yours, give --email, and the password in PASSWORD.
--help lists the other options. examples/timeline.html draws the world.
"""

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import sys
import time
import uuid
from typing import Any, NamedTuple

import aiohttp

STORIES, BEATS, EVENTS = 10, 500, 300
# One beat in so many is linked to an event.
BEATS_PER_EVENT = 8
FIRST_YEAR = 2100
# A word that only a few beats have, and one that most have.
RARE, FREQUENT = "astrolabe", "lamp"

NAMES = ("Ada", "Bela", "Cosmo", "Dara", "Edgar", "Frida", "Goran", "Hana", "Ivo", "Juno", "Kalle")
PLACES = ("harbour", "observatory", "archive", "market", "lighthouse", "tunnel", "garden", "mill")
THINGS = ("lamp", "clock", "letter", "map", "key", "compass", "mirror", "engine", "bell", "ledger")
QUALITIES = ("brass", "broken", "silent", "borrowed", "forgotten", "heavy", "painted", "slow")
DEEDS = ("found", "hid", "wound", "sold", "followed", "feared", "mended", "counted", "carried")
HAPPENINGS = ("The {} stops.", "The {} burns.", "A {} is found.", "The last {} is sold.")
TITLES = ("The {} of {}", "{1} and the {0}", "What the {} told {}", "A {} for {}")
KINDS = ("major", "minor", "background", "catalyst")


class UnexpectedError(Exception):
    """A response is not as expected."""


class Client(NamedTuple):
    """A signed-in client of the service."""

    http: aiohttp.ClientSession
    headers: dict[str, str]

    async def call(self, expected: int, method: str, path: str, body: object = None) -> Any:
        """Send a request, print its status and time, and return the JSON of the response."""
        document = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        started = time.perf_counter()
        url = f"/api/v1{path}"
        async with self.http.request(method, url, data=document, headers=headers) as response:
            text = await response.text()
        taken_ms = (time.perf_counter() - started) * 1000
        sizes = f"{len(document or b'') / 1000:8.1f} kB sent {len(text) / 1000:8.1f} kB received"
        shown = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{id}", path)
        print(f"{response.status} {taken_ms:8.0f} ms {sizes}  {method:6} {shown}")
        if response.status != expected:
            raise UnexpectedError(f"expected {expected}: {text[:1000]}")
        return json.loads(text) if text else None


def compose(stories: int = STORIES, beats: int = BEATS, events: int = EVENTS) -> dict[str, Any]:
    """Return the document of a world, the same each time.

    Each event has up to three earlier ones as its causes. A story goes through some events in the
    order of their time, and meets the other stories that go through the same ones.
    """
    dice = random.Random(1)
    timeline = _compose_events(dice, events)
    return {
        "version": "1.0",
        "world": {
            "name": "The Clockmaker's Harbour",
            "description": "A city inside a clock, on the night when it stops.",
            "tone": "wistful",
            "laws": {"physics": "Light is slow.", "forbidden": "To wind the great clock back."},
            "text_search": "english",
        },
        "world_events": timeline,
        "stories": [_compose_story(dice, number, beats, timeline) for number in range(stories)],
    }


def _compose_events(dice: random.Random, count: int) -> list[dict[str, Any]]:
    ids = [str(uuid.UUID(int=dice.getrandbits(128), version=4)) for _ in range(count)]
    years = sorted(FIRST_YEAR + dice.randrange(count * 4) / 4 for _ in range(count))
    return [
        {
            "id": ids[number],
            "t": year,
            "label_time": f"{_season(year)} {int(year)}",
            "type": dice.choice(KINDS),
            "summary": dice.choice(HAPPENINGS).format(dice.choice(THINGS)),
            "description": _tell(dice, 4),
            "location": dice.choice(PLACES).capitalize(),
            "tags": dice.sample(THINGS, dice.randrange(3)),
            "caused_by_ids": dice.sample(ids[:number], min(number, dice.randrange(4))),
        }
        for number, year in enumerate(years)
    ]


def _season(year: float) -> str:
    return ("Spring", "Summer", "Autumn", "Winter")[int(year % 1 * 4)]


def _compose_story(
    dice: random.Random, number: int, beats: int, timeline: list[dict[str, Any]]
) -> dict[str, Any]:
    hero = NAMES[number % len(NAMES)]
    met = min(beats, len(timeline), max(3, beats // BEATS_PER_EVENT))
    events = sorted(dice.sample(timeline, met), key=lambda event: event["t"])
    # The place of the beat linked to each of them.
    linked = dict(zip(sorted(dice.sample(range(beats), met)), events, strict=True))
    return {
        "title": dice.choice(TITLES).format(dice.choice(THINGS), hero),
        "synopsis": _tell(dice, 2, hero),
        "theme": "time",
        "status": dice.choice(("draft", "active", "completed")),
        "pov_type": dice.choice(("first", "third", "omniscient")),
        "tags": dice.sample(PLACES, 2),
        "story_beats": [
            _compose_beat(dice, place, hero, linked.get(place)) for place in range(beats)
        ],
    }


def _compose_beat(
    dice: random.Random, place: int, hero: str, event: dict[str, Any] | None
) -> dict[str, Any]:
    content = _tell(dice, dice.randrange(4, 20), hero)
    if dice.random() < 0.002:
        content += f" It was the {RARE}."
    return {
        "order_index": place + 1,
        "content": content,
        "type": dice.choice(("scene", "scene", "scene", "summary", "note")),
        "generated_by": dice.choice(("user", "user", "ai", "collaborative")),
        "world_event_id": event["id"] if event else None,
        "local_time_label": event["label_time"] if event else None,
    }


def _tell(dice: random.Random, sentences: int, hero: str = "Somebody") -> str:
    return " ".join(
        f"{dice.choice((hero, *NAMES))} {dice.choice(DEEDS)} the {dice.choice(QUALITIES)}"
        f" {dice.choice(THINGS)} in the {dice.choice(PLACES)}."
        for _ in range(sentences)
    )


async def write_novel(client: Client, document: dict[str, Any]) -> str:
    """Import the world and add to it with single requests. Return its id."""
    print("-- everything at once")
    world = await client.call(201, "POST", "/worlds/import", document)
    path = f"/worlds/{world['id']}"

    print("-- one more event, story and beat")
    cause = (await client.call(200, "GET", f"{path}/events?limit=1"))["events"][0]
    event = {"t": cause["t"] + 0.5, "type": "major", "summary": "The great clock is wound back."}
    event = await client.call(201, "POST", f"{path}/events", event)
    await client.call(204, "POST", f"/events/{event['id']}/dependencies/{cause['id']}")
    story = await client.call(201, "POST", f"{path}/stories", {"title": "The Lamplighter"})
    for linked in (cause, event):
        beat = {"content": "The lamp went out.", "world_event_id": linked["id"]}
        await client.call(201, "POST", f"/stories/{story['id']}/beats", beat)

    print("-- what a reader asks for")
    await client.call(200, "GET", f"{path}/timeline")
    await client.call(200, "GET", f"{path}/intersections")
    await client.call(200, "GET", f"{path}/events/dependency-graph")
    for words in (RARE, FREQUENT):
        found = await client.call(200, "GET", f"{path}/search?q={words}")
        print(f"   {found['total']} matches of “{words}”")
    first = (await client.call(200, "GET", f"{path}/stories"))[-1]
    await client.call(200, "GET", f"/stories/{first['id']}/beats")
    await client.call(200, "GET", f"/stories/{first['id']}/statistics")
    await client.call(200, "GET", f"{path}/export")
    return str(world["id"])


async def sign_in(http: aiohttp.ClientSession, email: str | None, password: str) -> Client:
    """Sign in, or register a new account if no email is given."""
    client = Client(http, {})
    if email:
        body = {"email": email, "password": password}
        tokens = await client.call(200, "POST", "/auth/login", body)
    else:
        email = f"novelist-{secrets.token_hex(4)}@example.com"
        body = {"email": email, "password": password, "name": "A novelist"}
        tokens = await client.call(201, "POST", "/auth/register", body)
        print(f"   signed in as {email}, with the password {password}")
    return client._replace(headers={"Authorization": f"Bearer {tokens['access_token']}"})


async def main() -> None:
    parser = argparse.ArgumentParser(description="Write a novel's worth of data into the service.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service")
    parser.add_argument("--email", help="of your account; without it, a new one is registered")
    parser.add_argument("--stories", type=int, default=STORIES)
    parser.add_argument("--beats", type=int, default=BEATS, help="of each story")
    parser.add_argument("--events", type=int, default=EVENTS)
    given = parser.parse_args()
    password = os.environ.get("PASSWORD") or secrets.token_urlsafe(12)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(given.url, timeout=timeout) as http:
        try:
            client = await sign_in(http, given.email, password)
            document = compose(given.stories, given.beats, given.events)
            print(f"world {await write_novel(client, document)}")
        except (UnexpectedError, aiohttp.ClientError) as error:
            sys.exit(f"novel: {error}")


if __name__ == "__main__":
    asyncio.run(main())
