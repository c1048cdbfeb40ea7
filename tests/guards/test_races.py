"""Concurrent requests are serialized: each race runs in its worst order."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.settings import Database, Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import (
    PASSWORD,
    Account,
    assert_problem,
    bearer,
    register,
    register_as,
)
from tests.support.holding import holding
from tests.support.jobs import run_jobs
from tests.support.logbook import logged
from tests.support.processes import url_of
from tests.support.shell import Result, run_all
from tests.support.steps import (
    ASKING,
    NEW_PASSWORD,
    RESET,
    WRONG,
    Asking,
    change_email,
    change_password,
    delete_account,
    forgot,
    is_signed_in,
    link_about,
    mail_reset,
    mails,
    refresh,
    resend,
    reset,
    send,
    sign_in,
    sign_in_again,
    verify,
)
from tests.support.tokens import published

ROW = "select from users where id = $1 for update"
ALL_ROWS = "select from users for update"
FRESH = {"If-Match": '"1"'}
# Commands wait for a lock while others start.
PATIENT = {"DB_LOCK_TIMEOUT_S": "60", "DB_COMMAND_TIMEOUT_S": "60"}


async def test_concurrent_merges_lose_nothing(client: Client, conn: Any) -> None:
    account = await register(client)
    async with holding(conn, ROW, account.profile["id"]) as start:
        for name in ("one", "two"):
            body = {"settings": {name: True}}
            last = await start(send(client, "PATCH", "/users/me", body, by=account))
    merged = await (await last).json()
    assert merged["settings"] == {"one": True, "two": True}


async def test_second_change_to_the_same_version_is_rejected(client: Client, conn: Any) -> None:
    account = await register(client)
    async with holding(conn, ROW, account.profile["id"]) as start:
        changes = [
            await start(send(client, "PUT", "/users/me", {"name": name}, by=account, headers=FRESH))
            for name in ("Ada", "Eve")
        ]
    assert [(await change).status for change in changes] == [200, 412]


async def test_second_admin_change_to_the_same_version_is_rejected(
    client: Client, conn: Any
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    path = f"/users/{account.profile['id']}"
    async with holding(conn, ROW, account.profile["id"]) as start:
        changes = [
            await start(send(client, "PATCH", path, {"name": name}, by=admin, headers=FRESH))
            for name in ("Ada", "Eve")
        ]
    assert [(await change).status for change in changes] == [200, 412]


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_password_that_was_just_replaced_is_rejected(
    client: Client, conn: Any, ask: Asking
) -> None:
    account = await register(client)
    async with holding(conn, ROW, account.profile["id"]) as start:
        await start(change_password(client, account, account.password))
        second = await start(ask(client, account, account.password))
    await assert_problem(await second, 403, "wrong_password")


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
async def test_session_that_was_just_ended_is_rejected(
    client: Client, conn: Any, ask: Asking
) -> None:
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    listed = await (await send(client, "GET", "/users/me/sessions", by=elsewhere)).json()
    (first,) = [item["id"] for item in listed["items"] if not item["current"]]
    async with holding(conn, ROW, account.profile["id"]) as start:
        asked = await start(ask(client, account, account.password))
        await send(client, "DELETE", f"/users/me/sessions/{first}", by=elsewhere)
    await assert_problem(await asked, 401, "invalid_token")


@pytest.mark.parametrize("act", ["refresh", "logout"])
async def test_kept_session_can_be_refreshed_and_ended_while_the_others_end(
    client: Client, conn: Any, act: str
) -> None:
    """The session moves to another epoch while the request waits for its row."""
    account = await register(client)
    token = {"refresh_token": account.tokens["refresh_token"]}
    async with holding(conn, "select from sessions for update") as start:
        ending = await start(send(client, "DELETE", "/users/me/sessions", by=account))
        acting = await start(send(client, "POST", f"/auth/{act}", token))
    assert (await ending).status == 204
    assert (await acting).status == (200 if act == "refresh" else 204)
    assert await is_signed_in(client, account) == (act == "refresh")


async def test_session_that_ended_with_all_others_cannot_be_kept(client: Client, conn: Any) -> None:
    """Ending all others must not revive a session that has just ended with all others itself."""
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    async with holding(conn, ROW, account.profile["id"]) as start:
        ended = [
            await start(send(client, "DELETE", "/users/me/sessions", by=each))
            for each in (elsewhere, account)
        ]
    assert [(await each).status for each in ended] == [204, 401]
    assert not await is_signed_in(client, account)


async def test_account_suspended_during_sign_in_is_rejected(client: Client, conn: Any) -> None:
    account = await register(client)
    suspend = "update users set status = 'suspended' where id = $1"
    async with holding(conn, suspend, account.profile["id"]) as start:
        signing_in = await start(sign_in(client, account))
    await assert_problem(await signing_in, 401, "invalid_credentials")


async def test_password_changed_during_sign_in_is_rejected(client: Client, conn: Any) -> None:
    account = await register(client)
    change = "update users set password_hash = 'another' where id = $1"
    async with holding(conn, change, account.profile["id"]) as start:
        signing_in = await start(sign_in(client, account))
    await assert_problem(await signing_in, 401, "invalid_credentials")


async def test_suspension_ends_a_session_opened_just_before_it(client: Client, conn: Any) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    path = f"/users/{account.profile['id']}/suspend"
    # The sign-in has inserted the session but not committed.
    network = "select from known_networks where user_id = $1 for update"
    async with holding(conn, network, account.profile["id"]) as start:
        signing_in = await start(sign_in(client, account))
        await start(send(client, "POST", path, {"reason": "spam"}, by=admin))
    tokens = await (await signing_in).json()
    opened = account._replace(headers=bearer(tokens["access_token"]))
    assert not await is_signed_in(client, opened)


async def wait_for(*asked: "asyncio.Task[ClientResponse]") -> list[int]:
    return sorted([(await each).status for each in asked])


@pytest.mark.parametrize("how", ["forgot", "administrator"])
async def test_only_one_of_two_concurrent_reset_links_works(
    client: Client, settings: Settings, conn: Any, how: str
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    email, id_ = account.profile["email"], account.profile["id"]

    def ask() -> Awaitable[ClientResponse]:
        if how == "forgot":
            return forgot(client, email)
        return send(client, "POST", f"/users/{id_}/password-reset", by=admin)

    async with holding(conn, ROW, id_) as start:
        asked = [await start(ask()) for _ in range(2)]
    assert await wait_for(*asked) == [202, 202]
    tokens = [await link_about(settings.data_dir, email, RESET) for _ in range(2)]
    assert sorted([(await reset(client, token)).status for token in tokens]) == [204, 400]


@pytest.mark.parametrize("how", ["resend", "change of email"])
async def test_only_one_of_two_concurrent_verification_links_works(
    client: Client, settings: Settings, conn: Any, how: str
) -> None:
    account = await register(client)
    email = account.profile["email"]
    subject = "Confirm your email address"
    await link_about(settings.data_dir, email, subject)

    def ask() -> Awaitable[ClientResponse]:
        if how == "resend":
            return resend(client, email)
        return change_email(client, account, account.password)

    async with holding(conn, ROW, account.profile["id"]) as start:
        asked = [await start(ask()) for _ in range(2)]
    assert await wait_for(*asked) == [202, 202]
    if how != "resend":
        email, subject = "new@example.com", "Confirm your new email address"
    tokens = [await link_about(settings.data_dir, email, subject) for _ in range(2)]
    assert sorted([(await verify(client, token)).status for token in tokens]) == [200, 400]


async def test_reset_link_used_twice_at_once_works_once(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    async with holding(conn, ROW, account.profile["id"]) as start:
        uses = [await start(reset(client, token)) for _ in range(2)]
    assert await wait_for(*uses) == [204, 400]


async def test_verification_link_used_twice_at_once_works_once(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    async with holding(conn, ROW, account.profile["id"]) as start:
        uses = [await start(verify(client, token)) for _ in range(2)]
    assert await wait_for(*uses) == [200, 200]
    verified = "select count(*) from audit_events where action = 'email.verify'"
    assert await conn.fetchval(verified) == 1


async def test_retry_after_its_successor_was_used_is_a_replay(client: Client, conn: Any) -> None:
    account = await register(client)
    first = account.tokens["refresh_token"]
    second = (await (await refresh(client, first)).json())["refresh_token"]
    async with holding(conn, "select from sessions for update") as start:
        used = await start(refresh(client, second))
        retried = await start(refresh(client, first))
    assert [(await used).status, (await retried).status] == [200, 401]


async def test_concurrent_refreshes_get_the_same_successor(client: Client, conn: Any) -> None:
    token = (await register(client)).tokens["refresh_token"]
    async with holding(conn, "select from sessions for update") as start:
        asked = [await start(refresh(client, token)) for _ in range(2)]
    successors = {(await (await each).json())["refresh_token"] for each in asked}
    assert len(successors) == 1


async def demote(client: Client, caller: Account, account: Account) -> ClientResponse:
    path = f"/users/{account.profile['id']}"
    return await send(client, "PATCH", path, {"role": "user"}, by=caller, headers=FRESH)


async def suspend(client: Client, caller: Account, account: Account) -> ClientResponse:
    path = f"/users/{account.profile['id']}/suspend"
    return await send(client, "POST", path, {"reason": "spam"}, by=caller)


async def delete(client: Client, caller: Account, account: Account) -> ClientResponse:
    return await send(client, "DELETE", f"/users/{account.profile['id']}", by=caller)


async def leave(client: Client, caller: Account, account: Account) -> ClientResponse:
    return await delete_account(client, account, account.password)


Removing = Callable[[Client, Account, Account], Awaitable[ClientResponse]]


@pytest.mark.parametrize("remove", [demote, suspend, delete, leave])
async def test_one_of_two_admins_removed_at_once_stays(
    client: Client, conn: Any, remove: Removing
) -> None:
    one, two = await register_as(client, "admin"), await register_as(client, "admin")
    async with holding(conn, ALL_ROWS) as start:
        first = await start(remove(client, one, two))
        second = await start(remove(client, two, one))
    assert (await first).status < 300
    await assert_problem(await second, 409, "last_administrator")


@pytest.mark.parametrize("remove", [demote, suspend, delete, leave])
async def test_last_admin_cannot_be_removed(client: Client, remove: Removing) -> None:
    admin = await register_as(client, "admin")
    response = await remove(client, admin, admin)
    await assert_problem(response, 409, "last_administrator")


async def test_repeated_request_is_rejected_while_the_first_is_running(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    account = account._replace(headers={**account.headers, "Idempotency-Key": "one"})
    async with holding(conn, ROW, account.profile["id"]) as start:
        first = await start(change_email(client, account, account.password))
        second = await start(change_email(client, account, account.password))
    assert (await first).status == 202
    await assert_problem(await second, 409, "idempotency_key_in_use")


async def test_replicas_starting_at_once_create_one_signing_key(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    await conn.execute("delete from signing_keys")
    async with holding(conn, "lock table signing_keys in share mode") as start:
        starting = [await start(start_app()) for _ in range(2)]
    replicas = [await each for each in starting]
    keys = [await published(replica) for replica in replicas]
    assert len(keys[0]) == 1
    assert keys[0] == keys[1]


async def test_second_of_two_concurrent_key_rotations_is_rejected(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    def rotate() -> Awaitable[list[Result]]:
        return asyncio.to_thread(run_all, tmp_path, url_of(database) | PATIENT, "keys rotate")

    async with holding(conn, "lock table signing_keys in share mode") as start:
        rotations = [await start(rotate()) for _ in range(2)]
    assert [(await each)[0].code for each in rotations] == [0, 1]


async def test_two_concurrent_key_revocations_leave_one_key(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    def revoke() -> Awaitable[list[Result]]:
        return asyncio.to_thread(
            run_all, tmp_path, url_of(database) | PATIENT, "keys rotate --revoke"
        )

    async with holding(conn, "select from signing_keys for update") as start:
        revocations = [await start(revoke()) for _ in range(2)]
    assert [(await each)[0].code for each in revocations] == [0, 0]
    assert await conn.fetchval("select count(*) from signing_keys") == 1


async def test_promotion_keeps_a_change_it_waited_for(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    account = await register(client)
    command = ["create-admin", "--email", account.profile["email"], "--promote"]
    change = "update users set name = 'Ada' where id = $1"
    async with holding(conn, change, account.profile["id"]) as start:
        promoting = await start(
            asyncio.to_thread(run_all, tmp_path, url_of(database) | PATIENT, command)
        )
    (result,) = await promoting
    assert (result.code, result.stderr) == (0, "")
    me = await (await send(client, "GET", "/users/me", by=account)).json()
    assert (me["role"], me["name"]) == ("admin", "Ada")


async def test_account_suspended_meanwhile_is_not_promoted(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    account = await register(client)
    command = ["create-admin", "--email", account.profile["email"], "--promote"]
    suspend = "update users set status = 'suspended' where id = $1"
    async with holding(conn, suspend, account.profile["id"]) as start:
        promoting = await start(
            asyncio.to_thread(run_all, tmp_path, url_of(database) | PATIENT, command)
        )
    (result,) = await promoting
    assert result.code == 1, result
    assert await conn.fetchval("select count(*) from users where role = 'admin'") == 0


@pytest.mark.parametrize("ask", [forgot, resend], ids=["forgot", "resend"])
async def test_email_that_was_just_replaced_gets_no_link(
    client: Client, conn: Any, ask: Callable[[Client, str], Awaitable[ClientResponse]]
) -> None:
    """The request finds the account by its old email and waits for the change of it."""
    account = await register(client)
    await conn.execute("delete from action_tokens")
    change = """
        update users set email = 'new@example.com', email_folded = 'new@example.com' where id = $1
    """
    async with holding(conn, change, account.profile["id"]) as start:
        asked = await start(ask(client, account.profile["email"]))
    assert (await asked).status == 202
    assert await conn.fetchval("select count(*) from action_tokens") == 0


async def test_suspension_extended_while_expiring_continues(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    await conn.execute("update users set status = 'suspended', suspended_until = now()")
    prolong = "update users set suspended_until = now() + interval '1 hour' where id = $1"
    async with holding(conn, prolong, account.profile["id"]) as start:
        done = await start(
            run_jobs(
                client,
                start_app,
                "select status = 'active' from users where id = $1",
                other.profile["id"],
            )
        )
    await done
    assert (await sign_in(client, account)).status == 401


async def test_account_reactivated_during_its_purge_survives(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    await conn.execute("update users set status = 'deleting', purge_at = now()")
    come_back = "update users set status = 'active', purge_at = null where id = $1"
    async with holding(conn, come_back, account.profile["id"]) as start:
        done = await start(
            run_jobs(
                client,
                start_app,
                "select not exists (select from users where id = $1)",
                other.profile["id"],
            )
        )
    await done
    assert (await sign_in(client, account)).status == 200


async def test_locked_session_does_not_hold_up_the_removal_of_others(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    await conn.execute("update users set session_epoch = session_epoch + 1")
    lock = "select from sessions where user_id = $1 for update"
    with logged() as events:
        async with holding(conn, lock, account.profile["id"]):
            await run_jobs(
                client,
                start_app,
                "select not exists (select from sessions where user_id = $1)",
                other.profile["id"],
            )
            assert await conn.fetchval("select count(*) from sessions") == 1
    assert "account skipped" not in {event["event"] for event in events}


async def test_session_refreshed_while_expiring_survives(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    await conn.execute("update sessions set idle_expires_at = now() - interval '1 second'")
    extend = "update sessions set idle_expires_at = now() + interval '1 hour' where user_id = $1"
    async with holding(conn, extend, account.profile["id"]) as start:
        done = await start(
            run_jobs(
                client,
                start_app,
                "select not exists (select from sessions where user_id = $1)",
                other.profile["id"],
            )
        )
    await done
    assert await is_signed_in(client, account)


async def test_attempt_counted_during_throttle_cleanup_is_kept(
    start_app: StartApp, conn: Any
) -> None:
    once = Rate(1, 3600)
    client = await start_app(throttle_sign_in_per_account=once)
    account = await register(client)
    await sign_in(client, account, WRONG)
    await conn.execute("update throttles set arrival_at = now() - interval '1 second'")
    await conn.execute("insert into throttles values ('other', now() - interval '1 second')")
    attempt = "update throttles set arrival_at = now() + interval '1 hour' where key <> 'other'"
    async with holding(conn, attempt) as start:
        done = await start(
            run_jobs(
                client, start_app, "select not exists (select from throttles where key = 'other')"
            )
        )
    await done
    await assert_problem(await sign_in(client, account), 429, "too_many_requests")


@pytest.mark.parametrize("path", ["password", "email"])
async def test_mail_is_sent_only_for_changes_that_succeeded(
    client: Client, settings: Settings, conn: Any, path: str
) -> None:
    account = await register(client)
    ask = change_password if path == "password" else change_email
    async with holding(conn, ROW, account.profile["id"]) as start:
        await start(change_password(client, account, account.password))
        refused = await start(ask(client, account, account.password))
    assert (await refused).status == 403
    subjects = [subject for _, subject in await mails(settings.data_dir, conn)]
    assert subjects.count("Your password was changed") == 1
    assert "Confirm your new email address" not in subjects


async def test_sign_in_with_the_new_password_succeeds(client: Client, conn: Any) -> None:
    """The new password works once the change has committed."""
    account = await register(client, password=PASSWORD)
    async with holding(conn, ROW, account.profile["id"]) as start:
        changing = await start(change_password(client, account, account.password))
    assert (await changing).status == 204
    assert (await sign_in(client, account, NEW_PASSWORD)).status == 200
