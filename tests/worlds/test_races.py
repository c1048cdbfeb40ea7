"""Requests that change one world at the same time."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from aiohttp import ClientError, ClientResponse

from service import purge
from service.settings import Database
from tests.support.clients import Client, pool_of
from tests.support.factories import Account, assert_problem
from tests.support.holding import holding
from tests.support.steps import delete_account, send
from tests.support.world_rows import TABLES, count_rows, worlds_with_wrong_counts
from tests.support.worlds import World, create_world

# Whoever writes in a world waits for this.
LOCK = "select from worlds where id = $1 for update"
ROUNDS = 20
NOTHING = dict.fromkeys(TABLES, 0)


@pytest.fixture
def ask(client: Client, account: Account) -> Callable[..., Awaitable[ClientResponse]]:
    """Send a request of the world's owner: method, path and body."""

    async def ask(method: str, path: str, body: Any = None) -> ClientResponse:
        return await send(client, method, path, body, by=account)

    return ask


async def add_beats(world: World, story: dict[str, Any], count: int = 3) -> list[str]:
    return [(await world.add_beat(story))["id"] for _ in range(count)]


async def beats_of(world: World, story: dict[str, Any]) -> list[dict[str, Any]]:
    beats: list[dict[str, Any]] = await world.get(f"/api/v1/stories/{story['id']}/beats")
    return beats


async def test_beat_that_is_inserted_during_a_reorder_comes_after_it(
    conn: Any, world: World, ask: Any
) -> None:
    story = await world.add_story()
    ids = await add_beats(world, story)
    path = f"/stories/{story['id']}/beats"
    async with holding(conn, LOCK, world.body["id"]) as start:
        reordered = await start(ask("POST", f"{path}/reorder", {"beat_ids": ids[::-1]}))
        inserted = await start(ask("POST", path, {"content": "One more."}))
    assert ((await reordered).status, (await inserted).status) == (200, 201)
    new = (await (await inserted).json())["id"]
    found = await beats_of(world, story)
    assert [beat["id"] for beat in found] == [*ids[::-1], new]
    assert [beat["order_index"] for beat in found] == [1, 2, 3, 4]


async def test_reorder_is_refused_if_a_beat_has_just_been_inserted(
    conn: Any, world: World, ask: Any
) -> None:
    story = await world.add_story()
    ids = await add_beats(world, story)
    path = f"/stories/{story['id']}/beats"
    async with holding(conn, LOCK, world.body["id"]) as start:
        inserted = await start(ask("POST", path, {"content": "One more.", "order_index": 1}))
        reordered = await start(ask("POST", f"{path}/reorder", {"beat_ids": ids[::-1]}))
    assert (await inserted).status == 201
    await assert_problem(await reordered, 400, "wrong_beats")
    new = (await (await inserted).json())["id"]
    assert [beat["id"] for beat in await beats_of(world, story)] == [new, *ids]


async def test_order_survives_reorders_and_inserts_at_the_same_time(world: World, ask: Any) -> None:
    story = await world.add_story()
    await add_beats(world, story)
    path = f"/stories/{story['id']}/beats"
    for number in range(ROUNDS):
        wanted = [beat["id"] for beat in await beats_of(world, story)][::-1]
        reordered, *inserted = await asyncio.gather(
            ask("POST", f"{path}/reorder", {"beat_ids": wanted}),
            ask("POST", path, {"content": "At the end."}),
            ask("POST", path, {"content": "Between.", "order_index": number}),
        )
        assert {response.status for response in inserted} == {201}
        assert reordered.status in (200, 400)
        found = await beats_of(world, story)
        places = [beat["order_index"] for beat in found]
        assert sorted(set(places)) == places
        if reordered.status == 200:
            assert [beat["id"] for beat in found if beat["id"] in wanted] == wanted


async def test_one_of_two_causes_that_would_close_a_cycle_is_refused(
    conn: Any, world: World, ask: Any
) -> None:
    one, other = await world.add_event(), await world.add_event()
    async with holding(conn, LOCK, world.body["id"]) as start:
        first = await start(ask("POST", f"/events/{one['id']}/dependencies/{other['id']}"))
        second = await start(ask("POST", f"/events/{other['id']}/dependencies/{one['id']}"))
    assert (await first).status == 204
    await assert_problem(await second, 422, "causes_cycle")


async def test_cycles_are_never_closed_however_often_it_is_tried(world: World, ask: Any) -> None:
    for _ in range(ROUNDS):
        ids = [(await world.add_event())["id"] for _ in range(3)]
        # Three causes, of which any two are fine.
        responses = await asyncio.gather(
            ask("POST", f"/events/{ids[0]}/dependencies/{ids[1]}"),
            ask("POST", f"/events/{ids[1]}/dependencies/{ids[2]}"),
            ask("PUT", f"/events/{ids[2]}", {"caused_by_ids": [ids[0]]}),
        )
        statuses = [response.status for response in responses]
        assert sorted(statuses) in ([200, 204, 422], [204, 204, 422]), statuses


@pytest.mark.parametrize("first", ["clone", "edit"])
async def test_clone_has_a_beat_as_it_was_before_or_after_an_edit(
    conn: Any, world: World, ask: Any, first: str
) -> None:
    story = await world.add_story()
    beat = await world.add_beat(story, content="Before.")
    path = f"/stories/{story['id']}"
    steps = {
        "clone": ("POST", f"{path}/clone", None),
        "edit": ("PUT", f"{path}/beats/{beat['id']}", {"content": "After."}),
    }
    order = [first, *(steps.keys() - {first})]
    async with holding(conn, LOCK, world.body["id"]) as start:
        tasks = {step: await start(ask(*steps[step])) for step in order}
    assert (await tasks["edit"]).status == 200
    clone = await (await tasks["clone"]).json()
    texts = [beat["content"] for beat in await beats_of(world, clone)]
    assert texts == (["Before."] if first == "clone" else ["After."])
    assert await worlds_with_wrong_counts(conn) == []


INSERTS = {
    "an event": ("/worlds/{world}/events", {"t": 2, "type": "major", "summary": "A comet."}),
    "a story": ("/worlds/{world}/stories", {"title": "The Comet"}),
    "a beat": ("/stories/{story}/beats", {"content": "It was bright."}),
    "a clone": ("/stories/{story}/clone", None),
}


@pytest.mark.parametrize("first", ["deletion", "insert"])
@pytest.mark.parametrize("inserted", INSERTS)
async def test_what_is_inserted_while_the_world_is_deleted_goes_with_it(
    client: Client, conn: Any, world: World, ask: Any, inserted: str, first: str
) -> None:
    story = await world.add_story()
    await world.add_beat(story, world_event_id=(await world.add_event())["id"])
    template, body = INSERTS[inserted]
    path = template.format(world=world.body["id"], story=story["id"])
    async with holding(conn, LOCK, world.body["id"]) as start:
        if first == "deletion":
            deleted = await start(ask("DELETE", f"/worlds/{world.body['id']}"))
            created = await start(ask("POST", path, body))
        else:
            created = await start(ask("POST", path, body))
            deleted = await start(ask("DELETE", f"/worlds/{world.body['id']}"))
    assert (await deleted).status == 204
    assert (await created).status == (404 if first == "deletion" else 201)
    assert client.app is not None
    await purge.delete_worlds(client.app)
    assert await count_rows(conn) == NOTHING


@pytest.mark.parametrize("first", ["deletion", "insert"])
async def test_beat_that_is_inserted_while_its_story_is_deleted_goes_with_it(
    conn: Any, world: World, ask: Any, first: str
) -> None:
    story = await world.add_story()
    await world.add_beat(story)
    steps = {
        "deletion": ("DELETE", f"/stories/{story['id']}?force=true", None),
        "insert": ("POST", f"/stories/{story['id']}/beats", {"content": "It was bright."}),
    }
    order = [first, *(steps.keys() - {first})]
    async with holding(conn, LOCK, world.body["id"]) as start:
        tasks = {step: await start(ask(*steps[step])) for step in order}
    assert (await tasks["deletion"]).status == 204
    assert (await tasks["insert"]).status == (404 if first == "deletion" else 201)
    assert (await count_rows(conn))["story_beats"] == 0
    assert await worlds_with_wrong_counts(conn) == []


async def test_event_is_unlinked_from_a_beat_that_is_linked_while_it_is_deleted(
    conn: Any, world: World, ask: Any
) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat = {"content": "It was bright.", "world_event_id": event["id"]}
    async with holding(conn, LOCK, world.body["id"]) as start:
        linked = await start(ask("POST", f"/stories/{story['id']}/beats", beat))
        deleted = await start(ask("DELETE", f"/events/{event['id']}"))
    assert ((await linked).status, (await deleted).status) == (201, 204)
    assert [beat["world_event_id"] for beat in await beats_of(world, story)] == [None]


async def test_beat_cannot_be_linked_to_an_event_that_has_just_been_deleted(
    conn: Any, world: World, ask: Any
) -> None:
    event, story = await world.add_event(), await world.add_story()
    beat = {"content": "It was bright.", "world_event_id": event["id"]}
    async with holding(conn, LOCK, world.body["id"]) as start:
        deleted = await start(ask("DELETE", f"/events/{event['id']}"))
        linked = await start(ask("POST", f"/stories/{story['id']}/beats", beat))
    assert (await deleted).status == 204
    await assert_problem(await linked, 422, "invalid_fields")
    assert await beats_of(world, story) == []


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, database: Database) -> Callable[[str], None]:
    """Have SQL executed as soon as the service opens a temporary file, before it reads a world."""
    arguments: dict[str, Any] = {**database.libpq_arguments()}
    original = tempfile.SpooledTemporaryFile

    def do(statements: str) -> None:
        def open_later(*args: Any) -> Any:
            with psycopg.connect(**arguments) as conn:
                conn.execute(statements)
            return original(*args)

        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", open_later)

    return do


DELETE = "update worlds set deleted_at = now(); delete from story_beats"


@pytest.mark.parametrize(("method", "what"), [("GET", "export"), ("POST", "duplicate")])
async def test_world_that_is_deleted_meanwhile_is_not_exported_in_part(
    world: World, ask: Any, meanwhile: Any, method: str, what: str
) -> None:
    await world.add_beat(await world.add_story())
    meanwhile(DELETE)
    response = await ask(method, f"/worlds/{world.body['id']}/{what}")
    await assert_problem(response, 404, "not_found")


async def test_export_of_an_account_leaves_out_a_world_that_is_deleted_meanwhile(
    world: World, ask: Any, meanwhile: Any
) -> None:
    meanwhile(DELETE)
    assert (await (await ask("GET", "/users/me/export")).json())["worlds"] == []


async def test_export_of_an_account_is_cut_off_if_the_session_ends_between_worlds(
    client: Client, account: Account, world: World, ask: Any, meanwhile: Any
) -> None:
    await create_world(client, account)
    meanwhile("delete from sessions")
    with pytest.raises(ClientError):
        await (await ask("GET", "/users/me/export")).read()


async def test_account_is_not_purged_while_it_imports_a_world(
    client: Client, conn: Any, account: Account, ask: Any
) -> None:
    document = {"version": "1.0", "world": {"name": "Late"}, "stories": [{"title": "One"}]}
    assert client.app is not None
    # The import has begun, and waits for others that count the account's rows.
    counting = "select pg_advisory_xact_lock(hashtextextended($1, 0))"
    async with holding(conn, counting, f"worlds {account.profile['id']}") as start:
        imported = await start(ask("POST", "/worlds/import", document))
        assert (await delete_account(client, account, account.password)).status == 202
        pool = pool_of(client)
        await pool.execute("update users set purge_at = now() where status = 'deleting'")
        await purge.purge_accounts(client.app)
        assert await conn.fetchval("select count(*) from users") == 1
    assert (await imported).status == 201
    await purge.purge_accounts(client.app)
    assert await conn.fetchval("select count(*) from users") == 0
    assert await count_rows(conn) == NOTHING


async def test_graph_names_no_event_that_was_added_after_its_nodes_were_read(
    conn: Any, world: World, ask: Any
) -> None:
    first = await world.add_event()
    async with holding(conn, "lock table event_causes in access exclusive mode") as start:
        read = await start(ask("GET", f"/worlds/{world.body['id']}/events/dependency-graph"))
        await conn.execute(
            """
            with added as (
                insert into world_events (id, world_id, t, type, summary, tags)
                values (gen_random_uuid(), $1, 2, 'major', 'A comet.', '{}')
                returning id
            )
            insert into event_causes (world_id, event_id, cause_id) select $1, id, $2 from added
            """,
            world.body["id"],
            first["id"],
        )
    graph = await (await read).json()
    assert [node["id"] for node in graph["nodes"]] == [first["id"]]
    assert graph["edges"] == []


async def test_beats_of_an_event_can_be_read_while_their_stories_are_deleted(
    world: World, ask: Any
) -> None:
    event = await world.add_event()
    for _ in range(ROUNDS):
        story = await world.add_story()
        await world.add_beat(story, world_event_id=event["id"])
        *found, deleted = await asyncio.gather(
            *(ask("GET", f"/events/{event['id']}/beats") for _ in range(3)),
            ask("DELETE", f"/stories/{story['id']}?force=true"),
        )
        assert deleted.status == 204
        assert {response.status for response in found} == {200}


async def test_writes_in_one_world_do_not_wait_for_another(
    client: Client, conn: Any, account: Account, world: World
) -> None:
    other = await create_world(client, account)
    async with holding(conn, LOCK, world.body["id"]):
        await other.add_event()
