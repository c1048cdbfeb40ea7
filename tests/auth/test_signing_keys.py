"""Signing keys rotated and revoked while several applications use their tokens."""

import asyncio
import dataclasses
import secrets
import time
from itertools import pairwise
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from service.audit.events import Operator
from service.auth import signing_keys
from service.auth.signing_keys import KEY_RING, revoke_keys, rotate_keys
from service.db.connection import DATABASE_TIMERS
from service.db.transactions import write
from service.exceptions import StartError
from service.settings import Settings, SettingsError
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, register
from tests.support.jobs import run_jobs
from tests.support.tokens import ask, parts, published
from tests.support.waiting import DEADLINE_S, eventually


async def sign_in(client: Client, account: Account) -> Account:
    """Return the account with new tokens."""
    body = {"email": account.profile["email"], "password": account.password}
    response = await client.post("/api/v1/auth/login", json=body)
    assert response.status == 200
    return account._replace(tokens=await response.json())


def key_of(account: Account) -> Any:
    return parts(account)[0]["kid"]


async def rotate(client: Client, settings: Settings, *, now: bool = False) -> str:
    assert client.app is not None
    key = await write(client.app, rotate_keys, settings, Operator("grace"), now=now)
    return str(key["id"])


@pytest.fixture
def fast_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make applications reload their keys many times a second."""
    monkeypatch.setattr(signing_keys, "RELOAD_EVERY_S", 0.02)
    monkeypatch.setattr(signing_keys, "RELOAD_MIN_INTERVAL_S", 0.02)


@pytest.mark.usefixtures("fast_reload")
async def test_rotation_keeps_issued_tokens_valid_until_they_expire(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    one, two = await start_app(), await start_app()
    account = await register(one)
    old, new = key_of(account), await rotate(one, settings)

    async def both_publish(*keys: str) -> bool:
        return [await published(one), await published(two)] == [list(keys)] * 2

    await eventually(lambda: both_publish(old, new))
    waits_s = await conn.fetchval(
        "select extract(epoch from signs_from - created_at)::float8 from signing_keys"
        " where id = $1",
        new,
    )
    assert waits_s == signing_keys.PUBLICATION_LEAD_S
    account = await sign_in(two, account)
    assert key_of(account) == old, "the new key is published but does not sign yet"

    # Skip the lead time between publication and signing.
    await conn.execute("update signing_keys set signs_from = now() where id = $1", new)
    later = account

    async def both_sign() -> bool:
        nonlocal later
        first, later = await sign_in(one, account), await sign_in(two, account)
        return {key_of(first), key_of(later)} == {new}

    await eventually(both_sign)
    for client in (one, two):
        assert await ask(client, account.tokens["access_token"]) == 200
        assert await ask(client, later.tokens["access_token"]) == 200
    assert await both_publish(old, new)

    # A replica that was slow to switch may have signed with the old key for a while longer, and
    # clocks differ.
    last_accepted_s = signing_keys.HANDOVER_S + settings.access_token_ttl_s + signing_keys.LEEWAY_S
    wait = "update signing_keys set signs_from = signs_from - make_interval(secs => $1)"
    await conn.execute(wait, last_accepted_s - 300)
    assert await published(await start_app()) == [old, new]

    # Skip to the time when the last token of the old key has expired.
    await conn.execute(wait, 301)
    await eventually(lambda: both_publish(new))
    for client in (one, two):
        assert await ask(client, account.tokens["access_token"]) == 401
        assert await ask(client, later.tokens["access_token"]) == 200
    await run_jobs(one, start_app, "select count(*) = 1 from signing_keys")
    assert await conn.fetchval("select id from signing_keys") == new


@pytest.mark.usefixtures("fast_reload")
async def test_revoked_keys_verify_nothing_and_sessions_survive(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    one, two = await start_app(), await start_app()
    account = await register(one)
    waiting = await rotate(one, settings)
    assert one.app is not None
    revoked = await write(one.app, revoke_keys, settings, Operator("grace"))
    new = revoked["id"]
    # No other key is left to sign in the meantime.
    assert revoked["signs_from"] <= await conn.fetchval("select now()")

    async def refused() -> bool:
        return [await ask(client, account.tokens["access_token"]) for client in (one, two)] == [
            401,
            401,
        ]

    await eventually(refused)
    body = {"refresh_token": account.tokens["refresh_token"]}
    refreshed = await one.post("/api/v1/auth/refresh", json=body)
    assert refreshed.status == 200
    again = account._replace(tokens=await refreshed.json())
    assert key_of(again) == new
    assert parts(again)[1]["sid"] == parts(account)[1]["sid"]
    assert await ask(two, again.tokens["access_token"]) == 200
    assert await published(one) == await published(two) == [new]
    event = await conn.fetchrow(
        "select actor_id, subject_id, before, after from audit_events where action = 'key.revoke'"
    )
    assert (event["actor_id"], event["subject_id"]) == (None, None)
    assert waiting in event["before"]
    assert new in event["after"]


async def test_application_loads_an_unknown_key_on_demand(
    start_app: StartApp, settings: Settings
) -> None:
    """A valid token is accepted however recently the keys were read."""
    one, two = await start_app(), await start_app()
    account = await register(one)
    new = await rotate(one, settings, now=True)
    stranger = ECKey.generate_key("P-256", auto_kid=True)
    header, claims = parts(account)
    unknown = jwt.encode({**header, "kid": stranger.kid}, claims, stranger)
    assert await ask(one, unknown) == 401
    later = await sign_in(one, account)
    assert key_of(later) == new
    assert await ask(two, later.tokens["access_token"]) == 200
    assert await ask(two, account.tokens["access_token"]) == 200


@pytest.fixture
def reload_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make applications reload their keys only for a token with an unknown key."""
    monkeypatch.setattr(signing_keys, "RELOAD_EVERY_S", DEADLINE_S)
    monkeypatch.setattr(signing_keys, "RELOAD_MIN_INTERVAL_S", 0.3)


def record_key_reads(client: Client) -> list[float]:
    """Record when each read of the keys from the database ends, from now on."""
    assert client.app is not None
    loop = asyncio.get_running_loop()
    reads: list[float] = []

    def note(name: str, waited_s: float, held_s: float) -> None:
        if name == "auth.list_signing_keys":
            reads.append(loop.time())

    client.app[DATABASE_TIMERS].append(note)
    return reads


def with_key_id(account: Account, key_id: str) -> str:
    """Sign the account's claims with a stranger's key under this key id."""
    header, claims = parts(account)
    return jwt.encode({**header, "kid": key_id}, claims, ECKey.generate_key("P-256"))


@pytest.mark.usefixtures("reload_on_demand")
async def test_tokens_with_unknown_keys_share_one_lookup(client: Client) -> None:
    account = await register(client)
    assert client.app is not None
    ring, reads = client.app[KEY_RING], record_key_reads(client)
    tokens = [
        with_key_id(account, secrets.token_urlsafe(32))
        for _ in range(signing_keys.RELOAD_WAITERS_MAX)
    ]
    async with ring.loading:
        requests = [asyncio.create_task(ask(client, token)) for token in tokens]
        await eventually(lambda: ring.waiting == len(tokens))
    assert set(await asyncio.gather(*requests)) == {401}
    assert len(reads) == 1


@pytest.mark.usefixtures("reload_on_demand")
async def test_lookups_for_unknown_keys_are_spaced_out(client: Client) -> None:
    account = await register(client)
    assert client.app is not None
    ring, reads, began = client.app[KEY_RING], record_key_reads(client), []
    for _ in range(3):
        assert await ask(client, with_key_id(account, secrets.token_urlsafe(32))) == 401
        began.append(ring.loaded_at)
    assert len(reads) == 3
    # Timers have a resolution of a millisecond.
    least_s = signing_keys.RELOAD_MIN_INTERVAL_S - 0.002
    assert all(later - earlier > least_s for earlier, later in pairwise(began))


@pytest.mark.usefixtures("reload_on_demand")
async def test_key_id_that_is_not_a_thumbprint_is_not_looked_up(client: Client) -> None:
    account = await register(client)
    reads = record_key_reads(client)
    for number in range(20):
        assert await ask(client, with_key_id(account, f"not a thumbprint {number}")) == 401
    assert reads == []


@pytest.mark.usefixtures("fast_reload")
async def test_tokens_of_a_revoked_key_are_refused_without_a_lookup(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    assert client.app is not None
    ring = client.app[KEY_RING]
    await write(client.app, revoke_keys, settings, Operator("grace"))

    async def forgotten() -> bool:
        return key_of(account) not in ring.keys

    await eventually(forgotten)
    # A lookup would wait for this lock.
    async with ring.loading:
        assert await ask(client, account.tokens["access_token"]) == 401


async def test_tokens_no_key_could_validate_are_refused_without_a_lookup(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    stranger = ECKey.generate_key("P-256", auto_kid=True)
    header = {**header, "kid": stranger.kid}
    assert client.app is not None
    async with client.app[KEY_RING].loading:
        for change in ({"exp": int(time.time()) - 11}, {"exp": None}, {"iss": "x"}, {"sid": "x"}):
            assert await ask(client, jwt.encode(header, {**claims, **change}, stranger)) == 401
        assert await ask(client, jwt.encode({**header, "typ": "JWT"}, claims, stranger)) == 401
        head, _, signature = jwt.encode(header, claims, stranger).split(".")
        assert await ask(client, f"{head}.W10.{signature}") == 401


@pytest.mark.usefixtures("fast_reload")
async def test_number_of_waiting_lookups_is_bounded(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    stranger = ECKey.generate_key("P-256", auto_kid=True)
    unknown = jwt.encode({**header, "kid": stranger.kid}, claims, stranger)
    assert client.app is not None
    ring = client.app[KEY_RING]

    async def limit_is_reached() -> bool:
        return ring.waiting == signing_keys.RELOAD_WAITERS_MAX

    async with ring.loading:
        waiting = [
            asyncio.create_task(ask(client, unknown))
            for _ in range(signing_keys.RELOAD_WAITERS_MAX)
        ]
        await eventually(limit_is_reached)
        assert await ask(client, unknown) == 401
        assert not any(task.done() for task in waiting)
    assert set(await asyncio.gather(*waiting)) == {401}
    assert ring.waiting == 0


async def test_concurrent_rotations_create_one_key(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    one, two = await start_app(), await start_app()
    made = await asyncio.gather(
        rotate(one, settings), rotate(two, settings), return_exceptions=True
    )
    (refused,) = [result for result in made if isinstance(result, StartError)]
    (new,) = [result for result in made if isinstance(result, str)]
    assert str(refused).startswith(f"key {new} is already scheduled to sign from 20")
    assert await conn.fetchval("select count(*) from signing_keys") == 2
    assert await rotate(one, settings, now=True) == new, "the waiting key signs now"
    assert await conn.fetchval("select count(*) from signing_keys where signs_from > now()") == 0


@pytest.mark.usefixtures("reload_on_demand")
async def test_first_key_signs_immediately(client: Client, settings: Settings, conn: Any) -> None:
    await conn.execute("delete from signing_keys")
    new = await rotate(client, settings)
    assert await conn.fetchval("select signs_from <= now() from signing_keys where id = $1", new)


@pytest.mark.usefixtures("fast_reload")
async def test_different_secret_key_can_revoke_but_not_rotate(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    other = dataclasses.replace(settings, secret_key="another secret key, also long enough")
    with pytest.raises(SettingsError, match="^SECRET_KEY: expected the value that"):
        await rotate(client, other)
    assert await conn.fetchval("select count(*) from signing_keys") == 1
    assert client.app is not None
    await write(client.app, revoke_keys, other, Operator("grace"))
    old = account.tokens["access_token"]

    async def status() -> int:
        headers = {"Authorization": f"Bearer {old}"}
        return (await client.get("/api/v1/users/me", headers=headers)).status

    async def refused() -> bool:
        return await status() == 503

    # The application dropped the old key and cannot open the new one without a restart.
    await eventually(refused)


@pytest.mark.usefixtures("fast_reload")
async def test_failed_reload_keeps_the_known_keys(
    client: Client, settings: Settings, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "RETRY_EVERY_S", 0.02)
    account = await register(client)
    assert client.app is not None
    tries: list[str] = []
    client.app[DATABASE_TIMERS].append(lambda name, waited_s, held_s: tries.append(name))
    await conn.execute("alter table signing_keys rename to hidden")
    tries.clear()

    async def tried_again() -> bool:
        return tries.count("auth.list_signing_keys") > 3

    await eventually(tried_again)
    assert await ask(client, account.tokens["access_token"]) == 200
    await conn.execute("alter table hidden rename to signing_keys")
    new = await rotate(client, settings)

    async def both_published() -> bool:
        return await published(client) == [key_of(account), new]

    await eventually(both_published)
