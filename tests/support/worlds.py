"""Worlds for tests, created over HTTP as a client would."""

import re
from typing import Any, NamedTuple

from aiohttp import ClientResponse

from tests.support.clients import Client
from tests.support.factories import Account

WORLDS = "/api/v1/worlds"
# Matches paths of what belongs to a world.
OF_WORLDS = re.compile("{(world|event|cause|story|beat)_id}")
EVENTS = "/api/v1/events"
STORIES = "/api/v1/stories"
NO_ONE = "01890000-0000-7000-8000-000000000000"
# Spaces at both ends, CRLF, a tab, an emoji of several code points, text in both directions with
# marks, and a letter in two parts.
EXACT_TEXT = "  \r\n\tune étoile 👩\u200d🚀 \u200fשלום\u200f e\u0301 \n"


class World(NamedTuple):
    """A world of an account, with its path."""

    client: Client
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def path(self) -> str:
        return f"{WORLDS}/{self.body['id']}"

    async def add_event(self, **values: Any) -> dict[str, Any]:
        """Create an event, at t = 1 unless ``values`` say otherwise."""
        event = {"t": 1, "type": "major", "summary": "The lamp goes out.", **values}
        return await self.post(f"{self.path}/events", event)

    async def add_story(self, **values: Any) -> dict[str, Any]:
        return await self.post(f"{self.path}/stories", {"title": "The Lamplighter", **values})

    async def add_beat(self, story: dict[str, Any], **values: Any) -> dict[str, Any]:
        beat = {"content": "It was dark.", **values}
        return await self.post(f"/api/v1/stories/{story['id']}/beats", beat)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create something, and return it."""
        response = await self.client.post(path, headers=self.headers, json=body)
        assert response.status == 201, await response.text()
        created: dict[str, Any] = await response.json()
        return created

    async def get(self, path: str) -> Any:
        """Read below the world, or at another path if that begins with a slash."""
        response = await self.send("GET", path)
        assert response.status == 200, await response.text()
        return await response.json()

    async def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> ClientResponse:
        """Send a request, and return any response. Paths are those of ``get``."""
        url = path if path.startswith("/") else f"{self.path}/{path}".rstrip("/")
        sent = {**self.headers, **(headers or {})}
        return await self.client.request(method, url, json=body, headers=sent)

    async def change(self, path: str, **values: Any) -> Any:
        """Change something with PUT, and return it."""
        response = await self.send("PUT", path, values)
        assert response.status == 200, await response.text()
        return await response.json()

    async def delete(self, path: str) -> None:
        response = await self.send("DELETE", path)
        assert response.status == 204, await response.text()


async def create_world(client: Client, account: Account, **values: Any) -> World:
    empty = World(client, account.headers, {})
    return empty._replace(body=await empty.post(WORLDS, {"name": "Orrery", **values}))


_ids: dict[str, dict[str, str]] = {}


async def ids_of_each(client: Client, account: Account, *, fresh: bool = False) -> dict[str, str]:
    """Return the ids of a world, a story, a beat and two events of the account, by path parameter.

    They are created once for each account, or again if ``fresh``.
    """
    owner = account.profile["id"]
    if fresh or owner not in _ids:
        world = await create_world(client, account)
        event, cause = await world.add_event(), await world.add_event()
        story = await world.add_story()
        beat = await world.add_beat(story)
        _ids[owner] = {
            "world_id": world.body["id"],
            "event_id": event["id"],
            "cause_id": cause["id"],
            "story_id": story["id"],
            "beat_id": beat["id"],
        }
    return _ids[owner]


def event_at(event: dict[str, Any]) -> str:
    return f"{EVENTS}/{event['id']}"


def story_at(story: dict[str, Any]) -> str:
    return f"{STORIES}/{story['id']}"


def beats_at(story: dict[str, Any]) -> str:
    return f"{story_at(story)}/beats"


def beat_at(beat: dict[str, Any]) -> str:
    return f"{STORIES}/{beat['story_id']}/beats/{beat['id']}"


def plain_document(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without ids and times; events are named by their place in it."""
    places = {event["id"]: n for n, event in enumerate(document["world_events"])}

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        own = ("id", "user_id", "world_id", "story_id", "created_at", "updated_at", "archived_at")
        kept = {name: value for name, value in row.items() if name not in own}
        if "caused_by_ids" in kept:
            kept["caused_by_ids"] = [places[each] for each in kept["caused_by_ids"]]
        if kept.get("world_event_id"):
            kept["world_event_id"] = places[kept["world_event_id"]]
        if "story_beats" in kept:
            kept["story_beats"] = [plain(beat) for beat in kept["story_beats"]]
        return kept

    return {
        "version": document["version"],
        "world": plain(document["world"]),
        "world_events": [plain(event) for event in document["world_events"]],
        "stories": [plain(story) for story in document["stories"]],
    }
