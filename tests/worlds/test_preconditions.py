"""If-Match, on every route of worlds that honours it."""

from typing import Any

import pytest

from service.http.descriptions import description_of
from service.http.route import Route
from service.routes import ROUTES
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem
from tests.support.worlds import World, ids_of_each

HONOURING = [
    route
    for route in ROUTES
    if route.handler.__module__.startswith("service.worlds.")
    and description_of(route.handler).if_match == "honoured"
]
STATE = """
    select (select jsonb_agg(worlds) from worlds), (select jsonb_agg(world_events) from world_events),
        (select jsonb_agg(stories) from stories), (select jsonb_agg(story_beats) from story_beats)
"""


def name_of(route: Route) -> str:
    return route.handler.__name__


def test_every_route_that_changes_a_row_honours_if_match() -> None:
    changing = {
        route.handler
        for route in ROUTES
        if route.handler.__module__.startswith("service.worlds.")
        and route.method in ("PUT", "PATCH", "DELETE")
        and "{cause_id}" not in route.path
    }
    assert {route.handler for route in HONOURING} == changing


async def ask(client: Client, account: Account, route: Route, ids: Any, tag: str) -> Any:
    headers = {**account.headers, "If-Match": tag}
    body = description_of(route.handler).example
    return await client.request(route.method, route.path.format(**ids), headers=headers, json=body)


@pytest.mark.parametrize("route", HONOURING, ids=name_of)
async def test_other_etag_is_refused_and_changes_nothing(
    client: Client, account: Account, conn: Any, route: Route
) -> None:
    ids = await ids_of_each(client, account, fresh=True)
    before = await conn.fetch(STATE)
    for tag in ('"2"', 'W/"1"', '"0", "7"'):
        await assert_problem(
            await ask(client, account, route, ids, tag), 412, "precondition_failed"
        )
    assert await conn.fetch(STATE) == before


@pytest.mark.parametrize("route", HONOURING, ids=name_of)
async def test_current_etag_is_accepted(client: Client, account: Account, route: Route) -> None:
    for tag in ('"1"', '"7", "1"', "*"):
        ids = await ids_of_each(client, account, fresh=True)
        response = await ask(client, account, route, ids, tag)
        assert response.status in (200, 204), await response.text()


async def test_forced_deletion_honours_if_match(world: World) -> None:
    story = await world.add_story()
    path = f"/api/v1/stories/{story['id']}?force=true"
    response = await world.send("DELETE", path, headers={"If-Match": '"2"'})
    await assert_problem(response, 412, "precondition_failed")
    assert await world.get("stories") == [story]
