"""Worlds for tests, created over HTTP as a client would."""

import re
from typing import Any, NamedTuple

from tests.support.clients import Client
from tests.support.factories import Account

WORLDS = "/api/v1/worlds"
# Matches paths of what belongs to a world.
OF_WORLDS = re.compile("{(world|event|cause|story|beat)_id}")


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
        url = path if path.startswith("/") else f"{self.path}/{path}"
        response = await self.client.get(url, headers=self.headers)
        assert response.status == 200, await response.text()
        return await response.json()


async def create_world(client: Client, account: Account, **values: Any) -> World:
    empty = World(client, account.headers, {})
    return empty._replace(body=await empty.post(WORLDS, {"name": "Orrery", **values}))


_ids: dict[str, dict[str, str]] = {}


async def ids_of_each(client: Client, account: Account, *, anew: bool = False) -> dict[str, str]:
    """Return the ids of a world, a story, a beat and two events of the account, by path parameter.

    They are created once for each account, or ``anew``.
    """
    owner = account.profile["id"]
    if anew or owner not in _ids:
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
