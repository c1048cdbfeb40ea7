"""Lists: arrays of any length, in pages if asked for, with a Link to what is left out."""

import base64
from typing import Any

import pytest
from yarl import URL

from service.worlds import lists
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers, register
from tests.support.worlds import EVENTS, WORLDS, World, beats_at, create_world

SLICE = 4
# Counts of rows around the end of a slice, and limits around those.
COUNTS = (0, 1, 3, 4, 5, 7, 8, 9)
LIMITS = (1, 3, 4, 5, 7, 8, 9, 10)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "SLICE", SLICE)


async def seed_events(conn: Any, world: World, count: int) -> None:
    """Add events, two of them at each time."""
    await conn.execute(
        """
        insert into world_events (id, world_id, t, type, summary, tags)
        select gen_random_uuid(), $1, n / 2, 'minor', 'A bell.', '{}'
        from generate_series(1, $2) n
        """,
        world.body["id"],
        count,
    )
    await conn.execute("update worlds set events = $2 where id = $1", world.body["id"], count)


async def seed(conn: Any, world: World, count: int) -> dict[str, str]:
    """Add rows to every kind of list below the world, and return the path of each list."""
    await seed_events(conn, world, count)
    event = await world.add_event(t=-1)
    await conn.execute(
        """
        insert into stories (id, world_id, title, status, mode, pov_type, tags, updated_at,
            archived_at)
        select gen_random_uuid(), $1, 'Story ' || n, case when archived then 'archived'
            else 'draft' end, 'manual', 'third', '{sea}', now() - n / 2 * interval '1 second',
            case when archived then now() end
        from generate_series(1, $2) n, unnest(array[true, false]) archived
        """,
        world.body["id"],
        count,
    )
    story = await world.add_story(title="with beats", status="archived")
    await conn.execute(
        """
        insert into story_beats (id, world_id, story_id, order_index, content, words, characters, type,
            generated_by)
        select gen_random_uuid(), $1, $2, n * 2, 'x', 1, 1, 'scene', 'user'
        from generate_series(1, $3) n
        """,
        world.body["id"],
        story["id"],
        count,
    )
    await conn.execute(
        """
        insert into story_beats (id, world_id, story_id, order_index, content, words, characters, type,
            generated_by, world_event_id)
        select gen_random_uuid(), $1, id, 1, 'x', 1, 1, 'scene', 'user', $2
        from stories where archived_at is null
        """,
        world.body["id"],
        event["id"],
    )
    return {
        "beats": beats_at(story),
        "beats of an event": f"{EVENTS}/{event['id']}/beats",
        "stories": f"{world.path}/stories",
        "stories by tag": f"{world.path}/stories?tag=sea",
        "archived": f"{world.path}/stories/archived",
        "timeline": f"{world.path}/timeline",
        "events": f"{world.path}/events",
    }


async def read_pages(world: World, path: str, limit: int) -> list[Any]:
    """Follow Links, and return the rows of each page."""
    url: URL | None = URL(path).update_query(limit=limit)
    pages = []
    while url is not None:
        response = await world.client.get(url, headers=world.headers)
        assert response.status == 200, await response.text()
        body = await response.json()
        pages.append(body["events"] if isinstance(body, dict) else body)
        link = response.links.get("next")
        url = URL(str(link["url"])).relative() if link else None
    return pages


async def check_pages(world: World, path: str, count: int) -> None:
    whole = await world.get(path)
    assert len(whole) == count
    for limit in LIMITS:
        pages = await read_pages(world, path, limit)
        assert [row for page in pages for row in page] == whole, limit
        assert len(pages) == max(1, -(-count // limit)), limit


async def test_pages_hold_every_event_once_and_in_order(
    world: World, conn: Any, small_slices: None
) -> None:
    path = f"{world.path}/events"
    for count in COUNTS:
        await conn.execute("delete from world_events")
        await seed_events(conn, world, count)
        await check_pages(world, path, count)
        times = [(event["t"], event["id"]) for event in await world.get(path)]
        assert times == sorted(times)


async def test_pages_hold_every_row_of_every_list_once(
    world: World, conn: Any, small_slices: None
) -> None:
    paths = await seed(conn, world, 9)
    for name in ("beats", "beats of an event", "stories", "stories by tag"):
        await check_pages(world, paths[name], 9)
    for name in ("archived", "timeline", "events"):
        await check_pages(world, paths[name], 10)


async def test_pages_hold_every_pair_of_stories_once(
    world: World, conn: Any, small_slices: None
) -> None:
    await seed(conn, world, 5)
    await check_pages(world, f"{world.path}/intersections", 10)


async def test_pages_hold_every_world_once(
    client: Client, world: World, small_slices: None
) -> None:
    for _ in range(8):
        await world.post(WORLDS, {"name": "another"})
    await check_pages(world, WORLDS, 9)


@pytest.mark.parametrize("count", [99, 100, 101, 200, 201])
async def test_long_list_is_whole_where_slices_end(world: World, conn: Any, count: int) -> None:
    """With the slices of production."""
    await seed_events(conn, world, count)
    assert len({event["id"] for event in await world.get("events")}) == count
    for limit in (99, 100, 101, 199, 200, 201, 202):
        pages = await read_pages(world, f"{world.path}/events", limit)
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert sum(map(len, pages)) == count
        assert len(pages) == -(-count // limit)


@pytest.mark.parametrize(("count", "linked"), [(1000, False), (1001, True)])
async def test_list_without_limit_ends_at_1000_with_a_link_to_the_rest(
    world: World, conn: Any, count: int, linked: bool
) -> None:
    await seed_events(conn, world, count)
    response = await world.send("GET", "events")
    assert len(await response.json()) == 1000
    link = response.links.get("next")
    assert bool(link) == linked
    if link:
        rest = await world.get(URL(str(link["url"])).path_qs)
        assert len(rest) == 1


async def test_streamed_list_is_sent_in_chunks(world: World, conn: Any) -> None:
    await seed_events(conn, world, 101)
    response = await world.send("GET", "events")
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert len(await response.json()) == 101


@pytest.mark.parametrize("count", [1, 101])
async def test_head_of_a_list_has_its_link_and_no_body(world: World, conn: Any, count: int) -> None:
    await seed_events(conn, world, count + 1)
    response = await world.send("HEAD", f"events?limit={count}")
    assert (response.status, await response.read()) == (200, b"")
    assert "next" in response.links


async def test_rows_added_or_removed_between_pages_do_not_shift_the_rest(
    world: World, conn: Any
) -> None:
    await seed_events(conn, world, 10)
    events = await world.get("events")
    response = await world.send("GET", "events?limit=5")
    await world.delete(f"events/{events[4]['id']}")
    await world.add_event(t=-1)
    page = await world.get(URL(str(response.links["next"]["url"])).path_qs)
    assert page["events"] == events[5:]


async def test_cursor_is_valid_only_for_its_own_list(
    client: Client, account: Account, world: World, conn: Any
) -> None:
    paths = await seed(conn, world, 3)
    other = await create_world(client, account)
    response = await world.send("GET", f"{paths['stories']}?limit=1&tag=sea")
    cursor = URL(str(response.links["next"]["url"])).query["cursor"]
    assert len(await world.get(f"stories?tag=sea&cursor={cursor}")) == 2
    for path in (
        f"{world.path}/stories",
        f"{world.path}/stories?tag=lamp",
        f"{world.path}/stories?tag=sea&include_archived=true",
        f"{other.path}/stories?tag=sea",
        f"{world.path}/events",
        f"{world.path}/timeline",
        paths["beats"],
        WORLDS,
    ):
        url = str(URL(path).update_query(cursor=cursor))
        await assert_problem(await world.send("GET", url), 400, "cursor_mismatch")


INVALID = [
    ("limit=0", 422),
    ("limit=-1", 422),
    ("limit=1001", 422),
    ("limit=1.0", 422),
    ("limit=", 422),
    ("limit=" + "9" * 5000, 422),
    ("cursor=", 422),
    ("skip=1", 422),
    ("limit=1&limit=1", 400),
    ("cursor=%", 400),
    ("cursor=nonsense", 400),
    ("cursor=" + base64.urlsafe_b64encode(b"x" * 16 + b'["",[]]').decode(), 400),
]


async def test_invalid_parameters_are_refused_by_every_list(world: World, conn: Any) -> None:
    paths = [WORLDS, f"{world.path}/intersections", *(await seed(conn, world, 1)).values()]
    for path in paths:
        for query, status in INVALID:
            url = URL(f"{path}{'&' if '?' in path else '?'}{query}", encoded=True)
            response = await world.client.get(url, headers=world.headers)
            assert response.status == status, (path, query, await response.text())


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("tag=", "?/tag"),
        ("tag=" + "x" * 101, "?/tag"),
        ("tag=a%00", "?/tag"),
        ("include_archived=1", "?/include_archived"),
        ("include_archived=True", "?/include_archived"),
    ],
)
async def test_invalid_filters_of_stories_are_named(world: World, query: str, pointer: str) -> None:
    url = URL(f"{world.path}/stories?{query}", encoded=True)
    response = await world.client.get(url, headers=world.headers)
    assert pointers(await assert_problem(response, 422, "invalid_fields")) == {pointer}


async def test_lists_of_an_empty_world_are_empty(client: Client, world: World) -> None:
    for path in ("events", "stories", "stories/archived", "timeline", "intersections"):
        response = await world.send("GET", path)
        assert await response.json() == []
        assert "Link" not in response.headers
    other = await register(client)
    assert await (await client.get(WORLDS, headers=other.headers)).json() == []
