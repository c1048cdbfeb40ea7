"""Jobs that delete sessions and accounts, however much belongs to them."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service import purge
from service.db.transactions import write
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, register, register_as
from tests.support.growth import add_events, add_sessions
from tests.support.logbook import logged
from tests.support.steps import delete_account, is_signed_in, send, sign_in

# Counts the rows that each transaction writes.
COUNT_CHANGES = """
    create unlogged table if not exists changes (transaction xid8, kind text);
    create or replace function count_changes() returns trigger language plpgsql as $$
    begin
        insert into changes
        select pg_current_xact_id(), tg_table_name from changed_rows;
        return null;
    end
    $$;
    create trigger count_{event} after {event} on {table}
        referencing old table as changed_rows
        for each statement execute function count_changes();
"""


@pytest.fixture
async def most_changes(conn: Any) -> Callable[[str], Awaitable[int]]:
    """A function that returns how many rows of a table one transaction changed at most."""
    for table, event in (
        ("sessions", "delete"),
        ("refresh_tokens", "delete"),
        ("audit_events", "update"),
    ):
        await conn.execute(COUNT_CHANGES.format(table=table, event=event))

    async def most(table: str) -> int:
        count: int = await conn.fetchval(
            """
            select coalesce(max(count), 0) from (
                select count(*) from changes where kind = $1 group by transaction
            ) as counts
            """,
            table,
        )
        return count

    return most


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make slices small enough for a test to need several."""
    monkeypatch.setattr(purge, "SESSIONS_AT_ONCE", 10)
    monkeypatch.setattr(purge, "ROWS_AT_ONCE", 20)


async def make_due(client: Client, conn: Any, account: Account) -> None:
    """Delete the account, and let its grace period end."""
    assert (await delete_account(client, account, account.password)).status == 202
    await conn.execute(
        "update users set purge_at = now() - interval '1 hour' where id = $1", account.profile["id"]
    )


async def rows(conn: Any, table: str, account: Account) -> int:
    if table == "refresh_tokens":
        table += " join sessions on sessions.id = session_id"
    count: int = await conn.fetchval(
        f"select count(*) from {table} where user_id = $1", account.profile["id"]
    )
    return count


@pytest.mark.usefixtures("small_slices")
async def test_ended_sessions_are_deleted_in_slices(
    client: Client, conn: Any, most_changes: Any
) -> None:
    account, other = await register(client), await register(client)
    await add_sessions(conn, account, 30, tokens=5)
    assert (await send(client, "DELETE", "/users/me/sessions", by=account)).status == 204
    assert client.app is not None
    await purge.forget_sessions(client.app)
    assert await rows(conn, "sessions", account) == 1
    assert await most_changes("sessions") <= 10
    assert await most_changes("refresh_tokens") <= 20
    assert await is_signed_in(client, account)
    assert await is_signed_in(client, other)


@pytest.mark.usefixtures("small_slices")
async def test_expired_sessions_are_deleted_in_slices(
    client: Client, conn: Any, most_changes: Any
) -> None:
    account = await register(client)
    await add_sessions(conn, account, 30, tokens=5, state="expired")
    assert client.app is not None
    await purge.forget_sessions(client.app)
    assert await rows(conn, "sessions", account) == 1
    assert await most_changes("refresh_tokens") <= 20
    assert await is_signed_in(client, account)


async def test_swept_account_is_not_swept_again(client: Client, conn: Any) -> None:
    account = await register(client)
    assert (await send(client, "DELETE", "/users/me/sessions", by=account)).status == 204
    assert client.app is not None
    await purge.forget_sessions(client.app)
    left = "select count(*) from users where session_epoch <> swept_epoch"
    assert await conn.fetchval(left) == 0


@pytest.mark.usefixtures("small_slices")
async def test_account_with_a_long_history_is_purged_in_slices(
    client: Client, conn: Any, most_changes: Any
) -> None:
    account = await register(client)
    await make_due(client, conn, account)
    await add_sessions(conn, account, 30, tokens=5)
    await add_events(conn, account, 100)
    assert client.app is not None
    await purge.purge_accounts(client.app)
    assert await conn.fetchval("select count(*) from users") == 0
    assert await most_changes("refresh_tokens") <= 20
    assert await most_changes("sessions") <= 10
    assert 0 < await most_changes("audit_events") <= 2 * 20
    left = "select count(*) from audit_events where num_nonnulls(ip, user_agent, after) > 0"
    assert await conn.fetchval(left) == 0


@pytest.mark.usefixtures("small_slices")
async def test_purge_that_was_stopped_goes_on_where_it_stopped(client: Client, conn: Any) -> None:
    account = await register(client)
    await make_due(client, conn, account)
    await add_events(conn, account, 100)
    await fail_for(conn, "update", "audit_events", "new.occurred_at > now() - interval '90 s'")
    assert client.app is not None
    await purge.purge_accounts(client.app)
    assert await conn.fetchval("select count(*) from users") == 1
    done = await conn.fetchval("select count(*) from audit_events where ip is null")
    assert done > 0
    await conn.execute("drop trigger aa_fail on audit_events")
    await purge.purge_accounts(client.app)
    assert await conn.fetchval("select count(*) from users") == 0


async def fail_for(conn: Any, event: str, table: str, condition: str) -> None:
    """Make changes of rows fail that meet the condition."""
    await conn.execute(
        f"""
        create or replace function fail() returns trigger language plpgsql as $$
        begin raise exception 'failed' using errcode = 'query_canceled'; end $$;
        create trigger aa_fail before {event} on {table}
            for each row when ({condition}) execute function fail();
        """
    )


async def test_account_that_cannot_be_purged_does_not_hold_up_others(
    client: Client, conn: Any
) -> None:
    stuck, other = await register(client), await register(client)
    for account in (stuck, other):
        await make_due(client, conn, account)
    await fail_for(conn, "delete", "users", f"old.id = '{stuck.profile['id']}'")
    assert client.app is not None
    with logged() as events:
        await purge.purge_accounts(client.app)
    left = await conn.fetch("select id::text from users")
    assert [row["id"] for row in left] == [stuck.profile["id"]]
    (skipped,) = [event for event in events if event["event"] == "account skipped"]
    assert skipped["account_id"] == stuck.profile["id"]
    assert skipped["cause"] == "QueryCanceledError"


async def test_owner_cannot_sign_in_once_the_purge_is_due(client: Client, conn: Any) -> None:
    account = await register(client)
    await make_due(client, conn, account)
    await assert_problem(await sign_in(client, account), 401, "invalid_credentials")


async def test_admin_cannot_reinstate_an_account_once_its_purge_is_due(
    client: Client, conn: Any
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    await make_due(client, conn, account)
    path = f"/users/{account.profile['id']}/reinstate"
    response = await send(client, "POST", path, by=admin)
    await assert_problem(response, 409, "account_purge_due")


async def test_one_run_deletes_a_bounded_number_of_links_and_stored_responses(
    client: Client, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "EXPIRED_AT_ONCE", 1)
    for _ in range(2):
        await register(client)
    await conn.execute("update action_tokens set expires_at = now() - interval '1 second'")
    await conn.execute(
        """
        insert into idempotency_keys (caller, key, fingerprint, answer, created_at)
        select '', n::text, '', '', now() - interval '2 days' from generate_series(1, 2) n
        """
    )
    assert client.app is not None
    await write(client.app, lambda conn: purge.forget_links(client.app, conn))
    await write(client.app, lambda conn: purge.forget_stored_responses(client.app, conn))
    assert await conn.fetchval("select count(*) from action_tokens") == 1
    assert await conn.fetchval("select count(*) from idempotency_keys") == 1
