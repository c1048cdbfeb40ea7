"""The audit log: what it records, in the same transaction, and that nothing changes it."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from service.audit.queries import list_events, select_events
from service.db.pool import _set_codecs
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, pointers, register, register_as
from tests.support.plans import blocks_of, count_generic_plans, explain_both

USERS = "/api/v1/users"
AUDIT = "/api/v1/audit-events"

# Recorded by the tests' own registrations and sign-ins.
OWN_ACTIONS = {"user.register", "session.start"}


async def events(client: Client, admin: Account, **params: Any) -> list[dict[str, Any]]:
    """Return the events of all pages, oldest first, without those in OWN_ACTIONS."""
    found: list[dict[str, Any]] = []
    while True:
        response = await client.get(AUDIT, headers=admin.headers, params=params)
        assert response.status == 200, await response.text()
        page = await response.json()
        found += page["items"]
        if not page["has_more"]:
            return [event for event in found[::-1] if event["action"] not in OWN_ACTIONS]
        params["cursor"] = page["next_cursor"]


async def suspend(client: Client, admin: Account, account: Account, **headers: str) -> None:
    response = await client.post(
        f"{USERS}/{account.profile['id']}/suspend",
        headers={**admin.headers, **headers},
        json={"reason": "spam"},
    )
    assert response.status == 200


async def test_event_holds_actor_subject_client_and_change(client: Client) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    named = {"User-Agent": "tester/1", "X-Request-ID": "mine", "X-Forwarded-For": "203.0.113.1"}
    await suspend(client, admin, account, **named)
    (event,) = await events(client, admin)
    assert uuid.UUID(event["id"]).version == 7
    assert event == {
        "id": event["id"],
        "occurred_at": event["occurred_at"],
        "action": "user.suspend",
        "actor_id": admin.profile["id"],
        "actor_role": "admin",
        "operator": None,
        "subject_id": account.profile["id"],
        "ip": "127.0.0.1",
        "user_agent": "tester/1",
        "request_id": "mine",
        "before": {"status": "active", "suspension_reason": None},
        "after": {"status": "suspended", "suspension_reason": "spam"},
    }


async def test_every_administrative_action_is_recorded(client: Client) -> None:
    admin = await register_as(client, "admin")
    body = {"email": "new@example.com", "name": "New", "role": "user", "settings": {"a": 1}}
    created = await client.post(USERS, headers=admin.headers, json=body)
    id_ = (await created.json())["id"]
    url = f"{USERS}/{id_}"
    change = {"name": "Newer", "role": "support", "settings": {"b": 2}}
    versioned = {**admin.headers, "If-Match": '"1"'}
    assert (await client.patch(url, headers=versioned, json=change)).status == 200
    versioned["If-Match"] = '"2"'
    assert (await client.patch(url, headers=versioned, json=change)).status == 200
    await client.post(f"{url}/suspend", headers=admin.headers, json={"reason": "x"})
    for _ in range(2):
        await client.post(f"{url}/reinstate", headers=admin.headers)
    await client.post(f"{url}/password-reset", headers=admin.headers)
    await client.delete(f"{url}/sessions", headers=admin.headers)
    deleted = await (await client.delete(url, headers=admin.headers)).json()

    other = await register(client)
    sessions = f"{USERS}/{other.profile['id']}/sessions"
    listed = await (await client.get(sessions, headers=admin.headers)).json()
    session_id = listed["items"][0]["id"]
    await client.delete(f"{sessions}/{session_id}", headers=admin.headers)

    recorded = [
        (event["action"], event["before"], event["after"])
        for event in await events(client, admin, limit=3)
    ]
    suspension = [
        {"status": "active", "suspension_reason": None},
        {"status": "suspended", "suspension_reason": "x"},
    ]
    assert recorded == [
        ("user.create", None, body),
        (
            "user.update",
            {"name": "New", "role": "user", "settings": {"a": 1}},
            {"name": "Newer", "role": "support", "settings": {"a": 1, "b": 2}},
        ),
        ("user.suspend", *suspension),
        ("user.reinstate", *suspension[::-1]),
        ("user.password_reset", None, None),
        ("session.end_all", None, None),
        (
            "user.delete",
            {"status": "active", "purge_at": None, "deleted_by_admin": False},
            {"status": "deleting", "purge_at": deleted["purge_at"], "deleted_by_admin": True},
        ),
        ("session.end", {"session_id": session_id}, None),
    ]


async def test_list_filters_events(client: Client) -> None:
    one, two = await register_as(client, "admin"), await register_as(client, "admin")
    users = [await register(client) for _ in range(3)]
    for admin, user in ((one, users[0]), (one, users[1]), (two, users[2]), (two, users[0])):
        await suspend(client, admin, user)
    await client.post(f"{USERS}/{users[1].profile['id']}/reinstate", headers=two.headers)
    everything = await events(client, one)
    assert len(everything) == 5
    assert everything == sorted(everything, key=lambda event: event["occurred_at"])

    async def found(**params: str) -> list[int]:
        return [everything.index(event) for event in await events(client, one, **params, limit=1)]

    first, last = everything[0]["occurred_at"], everything[4]["occurred_at"]
    assert await found(actor_id=one.profile["id"]) == [0, 1]
    assert await found(subject_id=users[0].profile["id"]) == [0, 3]
    assert await found(action="user.reinstate") == [4]
    assert await found(action="user.suspend", actor_id=two.profile["id"]) == [2, 3]
    assert await found(occurred_after=last) == [4]
    assert await found(occurred_before=last) == [0, 1, 2, 3]
    assert await found(occurred_after=first, occurred_before=last, action="user.suspend") == [
        0,
        1,
        2,
        3,
    ]
    assert await found(actor_id=users[0].profile["id"]) == []


INVALID_PARAMETERS: list[tuple[dict[str, str], str]] = [
    ({"actor_id": "me"}, "?/actor_id"),
    ({"actor_id": "0x000000000000000000000000000001"}, "?/actor_id"),
    ({"subject_id": "{01234567-89ab-cdef-0123-456789abcdef}"}, "?/subject_id"),
    ({"subject_id": ""}, "?/subject_id"),
    ({"action": "nul\0"}, "?/action"),
    ({"action": ""}, "?/action"),
    ({"occurred_after": "0000-01-01T00:00:00Z"}, "?/occurred_after"),
    ({"occurred_before": "now"}, "?/occurred_before"),
    ({"limit": "201"}, "?/limit"),
    ({"sort": "action"}, "?/sort"),
]


async def test_invalid_parameters_are_a_422(client: Client) -> None:
    admin = await register_as(client, "admin")
    for params, pointer in INVALID_PARAMETERS:
        response = await client.get(AUDIT, headers=admin.headers, params=params)
        problem = await assert_problem(response, 422, "invalid_fields")
        assert pointers(problem) == {pointer}


async def test_action_is_rolled_back_if_its_event_cannot_be_stored(
    client: Client, conn: Any
) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    await conn.execute("alter table audit_events add constraint full_disk check (false) not valid")
    headers = {**admin.headers, "If-Match": '"1"'}
    url = f"{USERS}/{account.profile['id']}"
    responses = [
        await client.post(USERS, headers=headers, json={"email": "new@example.com"}),
        await client.patch(url, headers=headers, json={"name": "x"}),
        await client.post(f"{url}/suspend", headers=headers, json={"reason": "x"}),
        await client.post(f"{url}/password-reset", headers=headers),
        await client.delete(f"{url}/sessions", headers=headers),
        await client.delete(url, headers=headers),
    ]
    assert {response.status for response in responses} == {500}
    await conn.execute("alter table audit_events drop constraint full_disk")
    assert (await client.get("/api/v1/users/me", headers=account.headers)).status == 200
    shown = await (await client.get(url, headers=headers)).json()
    assert (shown["version"], shown["status"]) == (1, "active")
    assert await conn.fetchval("select count(*) from users") == 2
    resets = "select count(*) from action_tokens where purpose = 'password_reset'"
    assert await conn.fetchval(resets) == 0


async def test_refused_requests_leave_no_event(client: Client) -> None:
    admin = await register_as(client, "admin")
    url = f"{USERS}/{admin.profile['id']}"
    responses = await asyncio.gather(
        client.post(USERS, headers=admin.headers, json={"email": admin.profile["email"]}),
        client.delete(url, headers=admin.headers),
        client.patch(url, headers=admin.headers, json={"name": "x"}),
    )
    assert [response.status for response in responses] == [409, 409, 428]
    assert await events(client, admin) == []


@pytest.mark.parametrize(
    "statement",
    [
        "update {} set action = 'nothing'",
        "update {} set before = null",
        "delete from {}",
        "truncate {}",
        "truncate {} cascade",
    ],
)
@pytest.mark.parametrize("where", ["the audit", "the month", "the default"])
async def test_events_cannot_be_changed_even_by_the_table_owner(
    client: Client, conn: Any, statement: str, where: str
) -> None:
    admin, account = await register_as(client, "admin"), await register(client)
    if where == "the default":
        # No monthly partition covers this time.
        await conn.execute(
            "insert into audit_events (id, occurred_at, action, before)"
            " values (gen_random_uuid(), '2000-01-01', 'old', '{}')"
        )
        table = "audit_events_default"
    else:
        await suspend(client, admin, account)
        table = await conn.fetchval("select tableoid::regclass::text from audit_events limit 1")
    if where == "the audit":
        table = "audit_events"
    before = await conn.fetch("select id, action, before from audit_events")
    assert before
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await conn.execute(statement.format(table))
    assert await conn.fetch("select id, action, before from audit_events") == before


ERASURES = ["before = null", "after = null", "ip = null", "user_agent = null"]


@pytest.fixture
async def event_of(client: Client, conn: Any) -> tuple[Any, str, str]:
    """Return the id of a suspension, with those of the administrator and the account."""
    admin, account = await register_as(client, "admin"), await register(client)
    await suspend(client, admin, account)
    id_ = await conn.fetchval("select id from audit_events where action = 'user.suspend'")
    return id_, admin.profile["id"], account.profile["id"]


async def erase(conn: Any, event_id: Any, change: str) -> None:
    await conn.execute(f"update audit_events set {change} where id = $1", event_id)


@pytest.mark.parametrize("change", ERASURES)
async def test_no_setting_lets_sql_erase_an_event_of_existing_accounts(
    conn: Any, event_of: tuple[Any, str, str], change: str
) -> None:
    await conn.execute("set shinkei.pseudonymise = 'on'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await erase(conn, event_of[0], change)


async def test_temporary_table_does_not_make_existing_accounts_look_purged(
    conn: Any, event_of: tuple[Any, str, str]
) -> None:
    await conn.execute("create temporary table users (id uuid, purge_at timestamptz)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await erase(conn, event_of[0], "before = null")


async def test_event_of_an_account_in_its_grace_period_cannot_be_erased(
    conn: Any, event_of: tuple[Any, str, str]
) -> None:
    await conn.execute(
        "update users set status = 'deleting', suspension_reason = null,"
        " purge_at = now() + interval '1 minute' where id = $1",
        event_of[2],
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await erase(conn, event_of[0], "before = null")


DUE = """
    update users set status = 'deleting', suspension_reason = null, purge_at = now() where id = $1
"""
GONE = "delete from users where id = $1"


@pytest.mark.parametrize("end", [DUE, GONE], ids=["due", "gone"])
async def test_purge_of_the_subject_may_erase_only_what_changed(
    conn: Any, event_of: tuple[Any, str, str], end: str
) -> None:
    event_id, _, subject = event_of
    await conn.execute(end, subject)
    await erase(conn, event_id, "before = null, after = null")
    for change in ("ip = null", "user_agent = null"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await erase(conn, event_id, change)


@pytest.mark.parametrize("end", [DUE, GONE], ids=["due", "gone"])
async def test_purge_of_the_actor_may_erase_only_the_client(
    conn: Any, event_of: tuple[Any, str, str], end: str
) -> None:
    event_id, actor, _ = event_of
    await conn.execute(end, actor)
    await erase(conn, event_id, "ip = null, user_agent = null")
    for change in ("before = null", "after = null"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await erase(conn, event_id, change)


@pytest.mark.parametrize(
    "change",
    [
        "id = gen_random_uuid()",
        "occurred_at = occurred_at + interval '1 microsecond'",
        "action = 'nothing'",
        "actor_id = null",
        "actor_role = null",
        "subject_id = null",
        "request_id = null",
        "operator = null",
        "before = '{}'",
        "after = '{}'",
        "ip = '192.0.2.1'",
        "user_agent = 'another'",
    ],
)
async def test_purge_of_both_accounts_leaves_the_rest_of_an_event_as_it_was(
    conn: Any, event_of: tuple[Any, str, str], change: str
) -> None:
    event_id, *accounts = event_of
    for account in accounts:
        await conn.execute(GONE, account)
    await conn.execute("alter table audit_events disable trigger audit_events_append_only")
    await conn.execute("update audit_events set operator = 'grace' where id = $1", event_id)
    await conn.execute("alter table audit_events enable trigger audit_events_append_only")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await erase(conn, event_id, change)


async def test_event_about_no_account_can_never_be_erased(conn: Any) -> None:
    await conn.execute(
        "insert into audit_events (id, action, after) values ($1, 'key.rotate', '{}')",
        uuid.UUID(int=1),
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await erase(conn, uuid.UUID(int=1), "after = null")


async def test_page_reads_only_from_its_cursor_onwards(conn: Any) -> None:
    """Reading from the end of the requested time range would cost more with every page."""
    await _set_codecs(conn)
    start = datetime(2020, 1, 1, tzinfo=UTC)
    end = start + timedelta(minutes=60_000)
    busy, idle = uuid.UUID(int=1), uuid.UUID(int=2)
    await conn.execute(
        "create table audit_events_202001 partition of audit_events"
        " for values from ('2020-01-01') to ('2020-02-01')"
    )
    await conn.execute(
        """
        insert into audit_events (id, occurred_at, action, actor_id, subject_id)
        select gen_random_uuid(), $1::timestamptz + n * interval '2 minutes', 'action ' || n % 10,
               case when n % 3 = 0 then $2::uuid else $3 end, $2
        from generate_series(1, 30000) n
        """,
        start,
        busy,
        idle,
    )
    await conn.execute("vacuum analyze audit_events")
    times = {"occurred_after": start, "occurred_before": end - timedelta(minutes=1_000)}
    for place in (start + timedelta(minutes=2_000), end - timedelta(minutes=2_000)):
        for filters in ({}, {"action": "action 3"}, {"actor_id": busy}, {"subject_id": busy}):
            page = select_events(times | filters, [place, uuid.UUID(int=0)], 51)
            for plan in await explain_both(conn, page):
                assert plan["Actual Rows"] == 51
                assert blocks_of(plan) < 150, (filters, place, plan)


async def test_page_by_actor_and_action_never_uses_a_generic_plan(conn: Any) -> None:
    """The values decide which of two indexes leads to fewer events."""
    for _ in range(10):
        await list_events(conn, {"actor_id": uuid.UUID(int=1), "action": "user.update"}, None, 51)
    assert await count_generic_plans(conn) == 0
