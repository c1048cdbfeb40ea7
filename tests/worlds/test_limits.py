"""Limits of an account, a world, a story and an event: a clear 422, and nothing is added."""

import asyncio
from typing import Any

import pytest

from service.worlds import (
    beat_handlers,
    event_handlers,
    plan,
    schemas,
    story_handlers,
)
from tests.support.clients import StartApp
from tests.support.factories import assert_problem, register
from tests.support.worlds import (
    NO_ONE,
    WORLDS,
    World,
    beat_at,
    beats_at,
    create_world,
    event_at,
    story_at,
)

IMPORT = f"{WORLDS}/import"
COUNTS = """
    select (select count(*) from worlds), (select count(*) from world_events),
        (select count(*) from event_causes), (select count(*) from stories),
        (select count(*) from story_beats), (select sum(stories) from worlds),
        (select sum(events) from worlds), (select sum(beats) from worlds)
"""
EVENT = {"t": 1, "type": "minor", "summary": "A bell."}


async def new_world(start_app: StartApp, **settings: int) -> World:
    client = await start_app(**settings)
    return await create_world(client, await register(client))


async def refuse(conn: Any, world: World, path: str, body: Any = None, method: str = "POST") -> str:
    """Assert that a request reaches a limit and adds nothing; return the detail."""
    before = await conn.fetchrow(COUNTS)
    problem = await assert_problem(await world.send(method, path, body), 422, "limit_reached")
    assert await conn.fetchrow(COUNTS) == before
    detail: str = problem["detail"]
    return detail


# Limits of an account.


async def test_worlds_of_an_account_are_limited(start_app: StartApp, conn: Any) -> None:
    world = await new_world(start_app, worlds_per_account=2)
    document = await world.get("export")
    await world.post(WORLDS, {"name": "second"})
    detail = await refuse(conn, world, WORLDS, {"name": "third"})
    assert detail == "You can have at most 2 worlds."
    await refuse(conn, world, IMPORT, document)
    await refuse(conn, world, f"{world.path}/duplicate")


async def test_stories_of_an_account_are_limited(start_app: StartApp, conn: Any) -> None:
    """In all of its worlds, archived or not."""
    world = await new_world(start_app, stories_per_account=3)
    other = world._replace(body=await world.post(WORLDS, {"name": "second"}))
    story = await world.add_story()
    document = await world.get("export")
    await world.add_story(status="archived")
    await other.add_story()
    detail = await refuse(conn, world, "stories", {"title": "third"})
    assert detail == "You can have at most 3 stories."
    await refuse(conn, world, f"{story_at(story)}/clone")
    await refuse(conn, world, f"{world.path}/duplicate")
    await refuse(conn, world, IMPORT, document)


async def test_beats_of_an_account_are_limited(start_app: StartApp, conn: Any) -> None:
    world = await new_world(start_app, beats_per_account=3)
    other = world._replace(body=await world.post(WORLDS, {"name": "second"}))
    story = await world.add_story()
    await world.add_beat(story)
    document = await world.get("export")
    await world.add_beat(story)
    await world.add_beat(await other.add_story())
    detail = await refuse(conn, world, beats_at(story), {"content": "x"})
    assert detail == "You can have at most 3 beats."
    await refuse(conn, world, f"{story_at(story)}/clone")
    await refuse(conn, world, f"{world.path}/duplicate")
    await refuse(conn, world, IMPORT, document)


async def test_deleted_rows_make_room(start_app: StartApp) -> None:
    world = await new_world(
        start_app, worlds_per_account=2, stories_per_account=1, beats_per_account=1
    )
    story = await world.add_story()
    await world.delete(beat_at(await world.add_beat(story)))
    await world.add_beat(story)
    await world.delete(f"{story_at(story)}?force=true")
    await world.add_beat(await world.add_story())
    second = world._replace(body=await world.post(WORLDS, {"name": "second"}))
    await world.delete("")
    await second.post(WORLDS, {"name": "third"})
    await second.add_beat(await second.add_story())


async def test_rows_of_others_do_not_count(start_app: StartApp) -> None:
    world = await new_world(start_app, worlds_per_account=1, stories_per_account=1)
    await world.add_story()
    other = await create_world(world.client, await register(world.client))
    await other.add_story()


@pytest.mark.parametrize("kind", ["worlds", "stories", "beats"])
async def test_requests_at_the_same_time_do_not_exceed_a_limit_together(
    start_app: StartApp, conn: Any, kind: str
) -> None:
    """Stories and beats are added in two worlds, which do not wait for each other."""
    settings: dict[str, int] = {f"{kind}_per_account": 3}
    world = await new_world(start_app, db_pool_size=12, **settings)
    other = world
    if kind != "worlds":
        other = world._replace(body=await world.post(WORLDS, {"name": "second"}))
    paths = {"worlds": [WORLDS], "stories": [f"{each.path}/stories" for each in (world, other)]}
    if kind == "beats":
        paths[kind] = [beats_at(await each.add_story()) for each in (world, other)]
    body = {"worlds": {"name": "x"}, "stories": {"title": "x"}, "beats": {"content": "x"}}[kind]
    responses = await asyncio.gather(
        *(world.send("POST", paths[kind][n % len(paths[kind])], body) for n in range(20))
    )
    created = [response.status for response in responses].count(201)
    assert created == (2 if kind == "worlds" else 3)
    assert {response.status for response in responses} == {201, 422}
    table = "story_beats" if kind == "beats" else kind
    assert await conn.fetchval(f"select count(*) from {table}") == 3


async def test_document_with_too_many_rows_is_refused_before_all_are_read(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows past the limit are invalid, but not looked at."""
    world = await new_world(start_app, stories_per_account=1, beats_per_account=1)
    story, beat = {"title": "x"}, {"content": "x"}
    document = {"version": "1.0", "world": {"name": "x"}}
    monkeypatch.setattr(plan, "EVENTS_PER_WORLD", 1)
    await refuse(conn, world, IMPORT, {**document, "world_events": [{"id": NO_ONE, **EVENT}, 1]})
    await refuse(conn, world, IMPORT, {**document, "stories": [story, 1]})
    stories = [{**story, "story_beats": [beat, beat, 1]}]
    await refuse(conn, world, IMPORT, {**document, "stories": stories})


# Limits of a world, a story and an event.


async def test_events_of_a_world_are_limited(
    world: World, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add_event()
    await world.add_event()
    document = await world.get("export")
    for module in (event_handlers, plan):
        monkeypatch.setattr(module, "EVENTS_PER_WORLD", 2)
    detail = await refuse(conn, world, "events", EVENT)
    assert detail == "You can have at most 2 events in a world."
    document["world_events"].append({"id": NO_ONE, **EVENT})
    await refuse(conn, world, IMPORT, document)
    await world.delete(event_at((await world.get("events"))[0]))
    await world.add_event()


async def test_beats_of_a_story_are_limited(
    world: World, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (beat_handlers, plan):
        monkeypatch.setattr(module, "BEATS_PER_STORY", 2)
    story = await world.add_story()
    await world.add_beat(story)
    await world.add_beat(story)
    detail = await refuse(conn, world, beats_at(story), {"content": "x"})
    assert detail == "You can have at most 2 beats in a story."
    document = await world.get("export")
    document["stories"][0]["story_beats"].append({"content": "x"})
    await refuse(conn, world, IMPORT, document)
    await world.add_beat(await world.add_story())


async def test_beats_on_an_event_are_limited(
    world: World, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (beat_handlers, story_handlers, plan):
        monkeypatch.setattr(module, "BEATS_PER_EVENT", 2)
    event, story = await world.add_event(), await world.add_story()
    link = {"content": "x", "world_event_id": event["id"]}
    linked, _ = await world.add_beat(story, **link), await world.add_beat(story, **link)
    beat = await world.add_beat(story)
    detail = await refuse(conn, world, beats_at(story), link)
    assert detail == "You can have at most 2 beats on an event."
    await refuse(conn, world, beat_at(beat), link, "PUT")
    await refuse(conn, world, f"{story_at(story)}/clone")
    document = await world.get("export")
    document["stories"][0]["story_beats"].append({**link, "order_index": 9})
    await refuse(conn, world, IMPORT, document)
    await world.change(beat_at(linked), summary="Still linked.")


async def test_causes_of_an_event_are_limited(
    world: World, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "CAUSES_MAX", 1)
    first, second, event = [await world.add_event() for _ in range(3)]
    path = f"{event_at(event)}/dependencies"
    assert (await world.send("POST", f"{path}/{first['id']}")).status == 204
    detail = await refuse(conn, world, f"{path}/{second['id']}")
    assert detail == "You can have at most 1 causes of an event."
    assert (await world.send("POST", f"{path}/{first['id']}")).status == 204
