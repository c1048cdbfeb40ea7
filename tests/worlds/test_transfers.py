"""Export, import and duplicates of whole worlds."""

import asyncio
import gzip
import json
from typing import Any

import pytest

from service.worlds import transfer_handlers
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, register
from tests.support.locks import WAITING
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.worlds import (
    EXACT_TEXT,
    NO_ONE,
    WORLDS,
    World,
    beat_at,
    beats_at,
    create_world,
    plain_document,
    story_at,
)

IMPORT = f"{WORLDS}/import"


async def fill(world: World) -> None:
    """Add something of every kind, with every field set somewhere."""
    late = await world.add_event(
        t=1.5,
        label_time=EXACT_TEXT,
        description=EXACT_TEXT,
        location="",
        location_id=NO_ONE,
        tags=["b", "a", "b"],
    )
    early = await world.add_event(t=-(2**53), type="background")
    await world.add_event(t=2, caused_by_ids=[late["id"], early["id"]])
    story = await world.add_story(
        synopsis="", theme=EXACT_TEXT, tags=["sea", "lamp"], mode="autonomous", pov_type="first"
    )
    await world.add_beat(
        story,
        order_index=0,
        content=EXACT_TEXT,
        type="memory",
        world_event_id=late["id"],
        generated_by="ai",
        summary="",
        local_time_label="Dawn",
        generation_reasoning=EXACT_TEXT,
    )
    await world.add_beat(story, order_index=2**31 - 2, world_event_id=late["id"])
    await world.add_story(title="empty")
    await world.delete(story_at(await world.add_story(title="archived")))


async def import_document(world: World, document: Any) -> World:
    """Import a document into the account of this world."""
    response = await world.send("POST", IMPORT, document)
    assert response.status == 201, await response.text()
    return world._replace(body=await response.json())


async def test_export_has_the_world_with_all_that_is_in_it(world: World) -> None:
    cause = await world.add_event(t=1)
    event = await world.add_event(t=2, caused_by_ids=[cause["id"]])
    story = await world.add_story()
    beats = [await world.add_beat(story, world_event_id=event["id"]) for _ in range(2)]
    empty = await world.add_story(title="empty")
    document = await world.get("export")
    assert document.pop("exported_at") > beats[-1]["created_at"]
    assert document == {
        "version": "1.0",
        "world": world.body,
        "world_events": [cause, event],
        "stories": [{**story, "story_beats": beats}, {**empty, "story_beats": []}],
    }


async def test_export_of_an_empty_world_has_empty_lists(world: World) -> None:
    document = await world.get("export")
    assert (document["world_events"], document["stories"]) == ([], [])


async def test_export_is_a_file_to_save(world: World) -> None:
    response = await world.send("GET", "export")
    name = f'attachment; filename="world-{world.body["id"]}.json"'
    assert response.headers["Content-Disposition"] == name


async def test_head_of_an_export_has_no_body(world: World) -> None:
    response = await world.send("HEAD", "export")
    assert (response.status, await response.read()) == (200, b"")


async def test_imported_world_is_equal_but_for_ids_and_times(world: World) -> None:
    await fill(world)
    document = await world.get("export")
    copy = await import_document(world, document)
    assert plain_document(await copy.get("export")) == plain_document(document)


async def test_imported_rows_have_new_ids(world: World) -> None:
    await fill(world)
    copy = await import_document(world, await world.get("export"))
    one, other = [ids_in(await each.get("export")) for each in (world, copy)]
    assert len(one) == len(other) == 9
    assert not one & other


def ids_in(document: dict[str, Any]) -> set[str]:
    rows = [document["world"], *document["world_events"], *document["stories"]]
    rows += [beat for story in document["stories"] for beat in story["story_beats"]]
    return {row["id"] for row in rows}


async def test_imported_world_is_at_its_location(world: World) -> None:
    created = await world.send("POST", IMPORT, await world.get("export"))
    assert (created.status, created.headers["ETag"]) == (201, '"1"')
    found = await world.send("GET", created.headers["Location"])
    assert await found.json() == await created.json()


async def test_imported_world_keeps_its_text_search(client: Client, account: Account) -> None:
    world = await create_world(client, account, text_search="english")
    await world.add_beat(await world.add_story(), content="The lamps were burning.")
    await world.add_event(summary="The lamps were burning.")
    copy = await import_document(world, await world.get("export"))
    assert (await copy.get("search?q=burn"))["total"] == 2


async def test_imported_beats_are_counted_in_words(world: World) -> None:
    story = await world.add_story()
    await world.add_beat(story, content="one two three")
    copy = await import_document(world, await world.get("export"))
    (imported,) = await copy.get("stories")
    assert (await copy.get(f"{story_at(imported)}/statistics"))["word_count"] == 3


async def test_import_takes_what_a_creation_takes(world: World) -> None:
    """Fields that a creation may omit may be omitted, and older names are read."""
    document = {
        "version": "1.0",
        "world": {"name": "Orrery"},
        "world_events": [{"id": NO_ONE, "t": 1, "type": "major", "summary": "A bell."}],
        "stories": [
            {
                "title": "The Lamplighter",
                "status": "in_progress",
                "story_beats": [
                    {"content": "One.", "beat_type": "log", "order_index": 5},
                    {"content": "Two.", "world_event_id": NO_ONE},
                ],
            },
            {"title": "Without beats"},
        ],
    }
    copy = await import_document(world, document)
    found = await copy.get("export")
    story, _ = found["stories"]
    assert story["status"] == "active"
    one, two = story["story_beats"]
    assert (one["type"], one["order_index"], two["order_index"]) == ("log", 5, 6)
    assert two["world_event_id"] == found["world_events"][0]["id"]


async def test_import_needs_no_events_or_stories(world: World) -> None:
    copy = await import_document(world, {"version": "1.0", "world": {"name": "Orrery"}})
    assert copy.body["name"] == "Orrery"


async def test_members_may_be_in_any_order(world: World) -> None:
    await fill(world)
    document = await world.get("export")
    backwards = dict(reversed(document.items()))
    copy = await import_document(world, backwards)
    assert plain_document(await copy.get("export")) == plain_document(document)


async def test_import_belongs_to_who_imports_it(client: Client, world: World) -> None:
    document = await world.get("export")
    other = World(client, (await register(client)).headers, {})
    copy = await import_document(other, document)
    assert copy.body["user_id"] != world.body["user_id"]
    assert (await world.send("GET", copy.path)).status == 404


async def test_import_may_be_compressed(world: World) -> None:
    await fill(world)
    document = await world.get("export")
    headers = {
        **world.headers,
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
    }
    data = gzip.compress(json.dumps(document).encode())
    response = await world.client.post(IMPORT, headers=headers, data=data)
    assert response.status == 201, await response.text()


@pytest.mark.parametrize("path", ["import", "duplicate"])
async def test_repetition_with_a_key_creates_one_world(world: World, path: str) -> None:
    document = await world.get("export") if path == "import" else None
    url = IMPORT if path == "import" else f"{world.path}/duplicate"
    headers = {"Idempotency-Key": "once"}
    first, second = [await world.send("POST", url, document, headers) for _ in range(2)]
    assert (first.status, await first.json()) == (second.status, await second.json())
    assert first.headers["Location"] == second.headers["Location"]
    assert len(await world.get(WORLDS)) == 2


async def test_key_of_another_document_is_refused(world: World) -> None:
    headers = {"Idempotency-Key": "once"}
    documents = [{"version": "1.0", "world": {"name": name}} for name in "ab"]
    assert (await world.send("POST", IMPORT, documents[0], headers)).status == 201
    second = await world.send("POST", IMPORT, documents[1], headers)
    await assert_problem(second, 422, "idempotency_key_reused")
    assert len(await world.get(WORLDS)) == 2


# Duplicates.


async def test_duplicate_is_a_copy_under_another_name(world: World) -> None:
    await fill(world)
    copy = world._replace(body=await world.post(f"{world.path}/duplicate", {}))
    expected = plain_document(await world.get("export"))
    expected["world"]["name"] = "Orrery (Copy)"
    assert plain_document(await copy.get("export")) == expected


async def test_duplicate_may_be_named_and_searched_otherwise(world: World) -> None:
    await world.add_event(summary="The lamps were burning.")
    body = {"name": "Second draft", "text_search": "english"}
    copy = world._replace(body=await world.post(f"{world.path}/duplicate", body))
    assert (copy.body["name"], copy.body["text_search"]) == ("Second draft", "english")
    assert (await copy.get("search?q=burn"))["total"] == 1


async def test_duplicate_needs_no_body(world: World) -> None:
    response = await world.send("POST", "duplicate")
    assert (response.status, response.headers["ETag"]) == (201, '"1"')
    assert (await response.json())["name"] == "Orrery (Copy)"


async def test_duplicate_of_the_longest_name_is_cut_to_fit(
    client: Client, account: Account
) -> None:
    world = await create_world(client, account, name="é" * 255)
    copy = await world.post(f"{world.path}/duplicate", {})
    assert copy["name"] == "é" * 248 + " (Copy)"


async def test_copy_shares_nothing_with_the_original(world: World) -> None:
    beat = await world.add_beat(await world.add_story())
    copy = world._replace(body=await world.post(f"{world.path}/duplicate", {}))
    (story,) = await copy.get("stories")
    await world.delete("")
    (copied,) = await copy.get(beats_at(story))
    assert copied["content"] == beat["content"]


# How many at once.


LOCK = "lock table world_events in access exclusive mode"


async def worlds_of_others(world: World, count: int) -> list[World]:
    """Return a world of each of ``count`` other accounts."""
    return [await create_world(world.client, await register(world.client)) for _ in range(count)]


async def export(world: World) -> int:
    return (await world.send("GET", "export")).status


async def test_account_has_one_transfer_at_a_time(world: World, conn: Any) -> None:
    document = await world.get("export")
    (other,) = await worlds_of_others(world, 1)
    async with conn.transaction():
        await conn.execute(LOCK)
        exports = [asyncio.ensure_future(export(world))]
        await eventually(lambda: _waiting(conn, 1))
        for response in (
            await world.send("GET", "export"),
            await world.send("POST", IMPORT, document),
            await world.send("POST", "duplicate"),
        ):
            await assert_problem(response, 409, "transfer_in_progress")
        exports.append(asyncio.ensure_future(export(other)))
        await eventually(lambda: _waiting(conn, 2))
    assert await asyncio.gather(*exports) == [200, 200]
    assert await export(world) == 200


async def test_number_of_transfers_at_a_time_is_limited(
    world: World, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_handlers, "TRANSFERS_MAX", 1)
    (other,) = await worlds_of_others(world, 1)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(export(world))
        await eventually(lambda: _waiting(conn, 1))
        await assert_problem(await other.send("GET", "export"), 503, "too_many_transfers")
    assert await exporting == 200
    assert await export(other) == 200


async def test_transfers_take_turns_at_the_database(world: World, conn: Any) -> None:
    """So that they leave connections to other requests."""
    assert world.client.app is not None
    transfers = world.client.app[transfer_handlers.TRANSFERS]
    worlds = [world, *await worlds_of_others(world, 3)]
    async with conn.transaction():
        await conn.execute(LOCK)
        exports = [asyncio.ensure_future(export(each)) for each in worlds]
        await eventually(lambda: len(transfers.accounts) == len(worlds))
        await eventually(lambda: _waiting(conn, transfer_handlers.WORKING_MAX))
        assert await world.get("") == world.body
        assert await conn.fetchval(WAITING) == transfer_handlers.WORKING_MAX
    assert await asyncio.gather(*exports) == [200] * 4


async def test_repeated_import_with_a_key_waits_for_no_turn(world: World, conn: Any) -> None:
    document, key = await world.get("export"), {"Idempotency-Key": "once"}
    first = await world.send("POST", IMPORT, document, key)
    others = await worlds_of_others(world, transfer_handlers.WORKING_MAX)
    async with conn.transaction():
        await conn.execute(LOCK)
        exports = [asyncio.ensure_future(export(each)) for each in others]
        await eventually(lambda: _waiting(conn, len(others)))
        second = await asyncio.wait_for(world.send("POST", IMPORT, document, key), DEADLINE_S)
        assert await second.json() == await first.json()
    assert await asyncio.gather(*exports) == [200, 200]


async def _waiting(conn: Any, count: int) -> bool:
    return bool(await conn.fetchval(WAITING) >= count)


async def test_export_is_of_one_moment(world: World, conn: Any) -> None:
    """What is added while it is made is not in it."""
    story = await world.add_story()
    beat = await world.add_beat(story)
    async with conn.transaction():
        await conn.execute(LOCK)
        exporting = asyncio.ensure_future(world.send("GET", "export"))
        await eventually(lambda: _waiting(conn, 1))
        await conn.execute("delete from story_beats")
    document = await (await exporting).json()
    assert len(document["stories"][0]["story_beats"]) == 1
    assert (await world.send("GET", beat_at(beat))).status == 404


async def test_accounts_export_has_its_worlds(client: Client, world: World) -> None:
    await fill(world)
    await create_world(client, await register(client))
    second = world._replace(body=await world.post(WORLDS, {"name": "second"}))
    documents = (await world.get("/api/v1/users/me/export"))["worlds"]
    expected = [await each.get("export") for each in (second, world)]
    for document in (*documents, *expected):
        del document["exported_at"]
    assert documents == expected
