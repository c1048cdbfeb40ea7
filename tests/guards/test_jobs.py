"""Background jobs delete expired rows and keep the rest."""

from ipaddress import ip_network
from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import assert_problem, register
from tests.support.jobs import run_jobs
from tests.support.steps import (
    WRONG,
    change_email,
    delete_account,
    is_signed_in,
    mail_reset,
    reset,
    send,
    sign_in,
)

GONE = "select not exists (select from {} where user_id = $1)"


@pytest.mark.parametrize("column", ["expires_at", "idle_expires_at"])
async def test_expired_session_is_deleted(
    client: Client, start_app: StartApp, conn: Any, column: str
) -> None:
    account, other = await register(client), await register(client)
    await conn.execute(
        f"update sessions set {column} = now() - interval '1 second' where user_id = $1",
        other.profile["id"],
    )
    await run_jobs(client, start_app, GONE.format("sessions"), other.profile["id"])
    assert await is_signed_in(client, account)


async def test_expired_link_is_deleted(
    client: Client, start_app: StartApp, settings: Settings, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    token = await mail_reset(client, settings.data_dir, account)
    await conn.execute(
        "update action_tokens set expires_at = now() - interval '1 second' where user_id = $1",
        other.profile["id"],
    )
    await run_jobs(client, start_app, GONE.format("action_tokens"), other.profile["id"])
    assert (await reset(client, token)).status == 204


async def test_stored_response_is_deleted_after_a_day(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account = await register(client)
    for key in ("old", "new"):
        keyed = account._replace(headers={**account.headers, "Idempotency-Key": key})
        await change_email(client, keyed, account.password)
    await conn.execute(
        "update idempotency_keys set created_at = now() - interval '25 hours' where key = 'old'"
    )
    await run_jobs(
        client,
        start_app,
        "select not exists (select from idempotency_keys where key = $1)",
        "old",
    )
    response = await change_email(client, keyed, account.password, to="another@example.com")
    await assert_problem(response, 422, "idempotency_key_reused")


async def test_account_is_purged_after_the_grace_period(
    client: Client, start_app: StartApp, conn: Any
) -> None:
    account, other = await register(client), await register(client)
    for each in (account, other):
        await delete_account(client, each, each.password)
    await conn.execute("update users set purge_at = now() where id = $1", other.profile["id"])
    await run_jobs(
        client,
        start_app,
        "select not exists (select from users where id = $1)",
        other.profile["id"],
    )
    assert (await sign_in(client, account)).status == 200


async def test_suspension_ends_when_due(client: Client, start_app: StartApp, conn: Any) -> None:
    account, other = await register(client), await register(client)
    suspend = "update users set status = 'suspended', suspended_until = now() + $2 where id = $1"
    for each, hours in ((account, 1), (other, 0)):
        await conn.execute(suspend.replace("$2", f"interval '{hours} hours'"), each.profile["id"])
    await run_jobs(
        client,
        start_app,
        "select status = 'active' from users where id = $1",
        other.profile["id"],
    )
    assert (await sign_in(client, account)).status == 401


async def test_throttle_row_is_deleted_once_its_quota_is_full(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(1, 3600))
    account = await register(client)
    await sign_in(client, account, WRONG)
    await conn.execute("insert into throttles values ('other', now() - interval '1 second')")
    await run_jobs(
        client, start_app, "select not exists (select from throttles where key = 'other')"
    )
    await assert_problem(await sign_in(client, account), 429, "too_many_requests")


async def test_known_network_is_deleted_after_half_a_year(start_app: StartApp, conn: Any) -> None:
    """The remaining network still has its own counter."""
    client = await start_app(
        throttle_sign_in_per_account=Rate(1, 3600), trusted_proxies=(ip_network("127.0.0.0/8"),)
    )
    account, other = await register(client), await register(client)
    old = "update known_networks set last_seen_at = now() - interval '181 days' where user_id = $1"
    await conn.execute(old, other.profile["id"])
    await run_jobs(client, start_app, GONE.format("known_networks"), other.profile["id"])
    for attacked in (account, other):
        guess = {"email": attacked.profile["email"], "password": WRONG}
        await send(client, "POST", "/auth/login", guess, headers={"X-Forwarded-For": "203.0.113.1"})
    assert (await sign_in(client, other)).status == 429
    assert (await sign_in(client, account)).status == 200


async def test_owner_can_sign_in_before_the_job_lifts_an_expired_suspension(
    client: Client, conn: Any
) -> None:
    account = await register(client)
    await conn.execute(
        "update users set status = 'suspended', suspended_until = now() where id = $1",
        account.profile["id"],
    )
    assert (await sign_in(client, account)).status == 200
