"""Attempts that the service itself failed (5xx) use up no quota."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse

from service.auth.passwords import HASHER
from service.settings import Rate, Settings
from service.throttle import refunds
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, assert_problem, register
from tests.support.hashing import busy
from tests.support.logbook import logged
from tests.support.proxy import proxy_to
from tests.support.steps import (
    change_email,
    change_password,
    delete_account,
    forgot,
    link_about,
    resend,
    send,
    sign_in,
    verify,
)
from tests.support.waiting import eventually

TWICE = Rate(2, 3600)


async def sign_up(client: Client, account: Account) -> ClientResponse:
    body = {"email": "new@example.com", "password": PASSWORD}
    return await send(client, "POST", "/auth/register", body)


Attempt = Callable[[Client, Account], Awaitable[ClientResponse]]
HASHING: dict[str, Attempt] = {
    "sign-in": sign_in,
    "registration": sign_up,
    "change of email": lambda client, account: change_email(client, account, PASSWORD),
    "change of password": lambda client, account: change_password(client, account, PASSWORD),
    "deletion": lambda client, account: delete_account(client, account, PASSWORD),
}
# Each with a table that it writes to after it was counted.
COUNTED: dict[str, tuple[Attempt, str]] = {
    **{name: (attempt, "mail_outbox") for name, attempt in HASHING.items()},
    "sign-in": (sign_in, "sessions"),
    "forgot": (lambda client, account: forgot(client, account.profile["email"]), "mail_outbox"),
    "resend": (lambda client, account: resend(client, account.profile["email"]), "mail_outbox"),
}


@pytest.mark.parametrize("name", HASHING)
async def test_attempt_is_not_counted_if_the_hash_queue_is_full(client: Client, name: str) -> None:
    account = await register(client)
    assert client.app is not None
    client.app[HASHER].queue_limit = 0
    response = await HASHING[name](client, account)
    await assert_problem(response, 503, "too_many_sign_ins")
    assert "RateLimit" not in response.headers


async def test_verification_is_not_counted_if_the_hash_queue_is_full(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await link_about(
        settings.data_dir, account.profile["email"], "Confirm your email address"
    )
    assert client.app is not None
    client.app[HASHER].queue_limit = 0
    response = await verify(client, token, password=PASSWORD)
    await assert_problem(response, 503, "too_many_sign_ins")
    assert "RateLimit" not in response.headers


async def test_full_hash_queue_does_not_lock_the_owner_out(start_app: StartApp) -> None:
    client = await start_app(password_hash_queue=1, throttle_sign_in_per_account=TWICE)
    account = await register(client)
    assert client.app is not None
    hasher = client.app[HASHER]
    with busy(hasher):
        waiting = asyncio.create_task(sign_up(client, account))
        await eventually(lambda: hasher.queued == 1)
        for _ in range(11):
            await assert_problem(await sign_in(client, account), 503, "too_many_sign_ins")
    await waiting
    assert (await sign_in(client, account)).status == 200


@pytest.mark.parametrize("name", COUNTED)
async def test_attempt_is_refunded_if_the_database_fails_after_the_count(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    account = await register(await start_app())
    client = await start_app(
        db_lock_timeout_s=0.1,
        throttle_sign_in_per_account=TWICE,
        throttle_registration_per_ip=TWICE,
        throttle_mail_per_account=TWICE,
    )
    # The refund always arrives before the next attempt, on a slow machine too.
    monkeypatch.setattr(refunds, "WAIT_S", 60)
    attempt, table = COUNTED[name]
    async with conn.transaction():
        await conn.execute(f"lock table {table} in exclusive mode")
        for _ in range(4):
            await assert_problem(await attempt(client, account), 503, "database_unavailable")
    assert (await attempt(client, account)).status < 300


async def test_attempt_is_refunded_once_a_silent_database_is_back(
    start_app: StartApp, settings: Settings
) -> None:
    assert settings.database is not None
    account = await register(await start_app())
    async with proxy_to(settings.database) as (proxied, flowing):
        client = await start_app(
            database=proxied,
            db_command_timeout_s=1,
            throttle_sign_in_per_account=Rate(1, 3600),
        )
        assert client.app is not None
        hasher = client.app[HASHER]
        with busy(hasher):
            signing_in = asyncio.create_task(sign_in(client, account))
            await eventually(lambda: hasher.queued == 1)
            flowing.clear()
        await assert_problem(await signing_in, 503, "database_unavailable")
        flowing.set()

        async def right_password_works() -> bool:
            return (await sign_in(client, account)).status == 200

        await eventually(right_password_works)


async def test_refund_that_fails_does_not_stop_the_next(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_app(db_lock_timeout_s=0.1, throttle_sign_in_per_account=TWICE)
    account = await register(client)
    await conn.execute("""
        create function refuse() returns trigger language plpgsql
        as $$ begin raise insufficient_privilege; end $$;
        create trigger refuse before update on throttles
        for each row execute function refuse();
    """)

    async def fail() -> None:
        async with conn.transaction():
            await conn.execute("lock table sessions in exclusive mode")
            await assert_problem(await sign_in(client, account), 503, "database_unavailable")

    with logged() as events:
        await fail()
        await eventually(lambda: any(one["event"] == "attempt not refunded" for one in events))
    await conn.execute("drop trigger refuse on throttles")
    monkeypatch.setattr(refunds, "WAIT_S", 60)
    await fail()
    assert (await sign_in(client, account)).status == 200
