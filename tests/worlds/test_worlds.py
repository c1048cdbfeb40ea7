"""``/worlds``: an account's worlds."""

import uuid
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, register
from tests.support.worlds import EXACT_TEXT, WORLDS, World, create_world

NO_LAWS = {"physics": None, "metaphysics": None, "social": None, "forbidden": None}


async def test_created_world_has_all_fields(client: Client, account: Account) -> None:
    response = await client.post(WORLDS, headers=account.headers, json={"name": "Orrery"})
    assert response.status == 201
    world = await response.json()
    assert uuid.UUID(world.pop("id")).version == 7
    assert world.pop("created_at") == world.pop("updated_at")
    assert world == {
        "user_id": account.profile["id"],
        "name": "Orrery",
        "description": None,
        "tone": None,
        "backdrop": None,
        "laws": NO_LAWS,
        "chronology_mode": "linear",
        "text_search": "simple",
    }


async def test_created_world_is_at_its_location(client: Client, account: Account) -> None:
    created = await client.post(f"{WORLDS}/", headers=account.headers, json={"name": "Orrery"})
    found = await client.get(created.headers["Location"], headers=account.headers)
    assert await found.json() == await created.json()
    assert created.headers["ETag"] == found.headers["ETag"] == '"1"'


async def test_world_keeps_all_that_was_sent(client: Client, account: Account) -> None:
    sent = {
        "name": "Orrery",
        "description": "A city inside a clock.",
        "tone": "wry",
        "backdrop": "Brass.",
        "laws": {"physics": "Light is slow.", "metaphysics": "", "social": "No debts."},
        "chronology_mode": "timeless",
        "text_search": "french",
    }
    world = await create_world(client, account, **sent)
    found = await world.get("")
    assert found == {**found, **sent, "laws": {**NO_LAWS, **sent["laws"]}}  # type: ignore[dict-item]


@pytest.mark.parametrize("field", ["name", "description", "tone", "backdrop"])
async def test_text_is_kept_exactly_as_written(
    client: Client, account: Account, field: str
) -> None:
    world = await create_world(client, account, **{field: EXACT_TEXT})
    assert (await world.get(""))[field] == EXACT_TEXT


async def test_world_may_have_the_longest_texts_of_four_byte_characters(
    client: Client, account: Account
) -> None:
    sent = {"name": "🜁" * 255, "tone": "🜂" * 500, "backdrop": "🜃" * 50_000}
    world = await create_world(client, account, **sent)
    found = await world.get("")
    assert {name: found[name] for name in sent} == sent


async def test_change_keeps_omitted_fields(world: World) -> None:
    changed = await world.change("", chronology_mode="fragmented")
    assert changed["updated_at"] > world.body["updated_at"]
    expected = {**world.body, "chronology_mode": "fragmented"}
    assert changed == {**expected, "updated_at": changed["updated_at"]}
    assert await world.get("") == changed


async def test_change_makes_a_new_etag(world: World) -> None:
    response = await world.send("PUT", "", {"name": "Clockwork"})
    assert response.headers["ETag"] == '"2"'
    assert (await world.send("GET", "")).headers["ETag"] == '"2"'


@pytest.mark.parametrize("change", [{}, {"name": "Orrery"}, {"laws": {}}])
async def test_change_to_what_is_there_changes_nothing(world: World, change: Any) -> None:
    response = await world.send("PUT", "", change)
    assert response.status == 200
    assert response.headers["ETag"] == '"1"'
    assert await response.json() == world.body


async def test_emptied_text_is_stored_as_sent(world: World) -> None:
    changed = await world.change("", description="", tone="", backdrop="")
    assert (changed["description"], changed["tone"], changed["backdrop"]) == ("", "", "")


async def test_null_clears_text(client: Client, account: Account) -> None:
    world = await create_world(client, account, description="A city.", tone="wry")
    changed = await world.change("", description=None, tone=None)
    assert (changed["description"], changed["tone"]) == (None, None)


async def test_laws_are_replaced_as_a_whole(client: Client, account: Account) -> None:
    world = await create_world(client, account, laws={"physics": "Light is slow."})
    changed = await world.change("", laws={"social": "No debts."})
    assert changed["laws"] == {**NO_LAWS, "social": "No debts."}


async def test_laws_cannot_be_null(world: World) -> None:
    await assert_problem(await world.send("PUT", "", {"laws": None}), 422, "invalid_fields")
    assert (await world.get(""))["laws"] == NO_LAWS


async def test_worlds_are_listed_newest_first(client: Client, account: Account) -> None:
    worlds = [await create_world(client, account, name=name) for name in "abc"]
    await worlds[0].change("", name="changed")
    found = await worlds[0].get(WORLDS)
    assert [each["name"] for each in found] == ["c", "b", "changed"]


async def test_list_has_only_worlds_of_the_account(client: Client, world: World) -> None:
    other = await register(client)
    assert await (await client.get(WORLDS, headers=other.headers)).json() == []


async def test_deleted_world_is_gone_with_all_that_is_in_it(world: World) -> None:
    event, story = await world.add_event(), await world.add_story()
    await world.delete("")
    for path in (
        world.path,
        f"{world.path}/events",
        f"{world.path}/export",
        f"/api/v1/events/{event['id']}",
        f"/api/v1/stories/{story['id']}",
        f"/api/v1/stories/{story['id']}/beats",
    ):
        await assert_problem(await world.send("GET", path), 404, "not_found")
    assert await world.get(WORLDS) == []


async def test_repeated_creation_with_a_key_creates_one_world(
    client: Client, account: Account
) -> None:
    headers = {**account.headers, "Idempotency-Key": "once"}
    first, second = [
        await client.post(WORLDS, headers=headers, json={"name": "Orrery"}) for _ in range(2)
    ]
    assert (first.status, await first.json()) == (second.status, await second.json())
    assert first.headers["Location"] == second.headers["Location"]
    assert len(await (await client.get(WORLDS, headers=account.headers)).json()) == 1


async def actions(conn: Any, account: Account) -> list[tuple[str, Any, Any]]:
    """Return the audit events of worlds: what was done, and the world before and after."""
    rows = await conn.fetch(
        """
        select action, before, after from audit_events
        where subject_id = $1 and actor_id = $1 and action like 'world.%'
        order by occurred_at, id
        """,
        account.profile["id"],
    )
    return [tuple(row) for row in rows]


async def test_creation_of_a_world_is_recorded(account: Account, world: World, conn: Any) -> None:
    (event,) = await actions(conn, account)
    assert event[0] == "world.create"
    assert world.body["id"] in str(event[2])
    assert world.body["name"] not in str(event)


async def test_deletion_of_a_world_is_recorded(account: Account, world: World, conn: Any) -> None:
    await world.delete("")
    _, event = await actions(conn, account)
    assert event[0] == "world.delete"
    assert world.body["id"] in str(event[1])


async def test_import_of_a_world_is_recorded(account: Account, world: World, conn: Any) -> None:
    copy = await world.post(f"{world.path}/duplicate", {})
    _, event = await actions(conn, account)
    assert event[0] == "world.import"
    assert copy["id"] in str(event[2])
