"""Signing keys rotated and revoked while tokens are in use, by several processes' applications."""

import asyncio
import dataclasses
import secrets
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from service import purge
from service.auth import signing_keys
from service.auth.signing_keys import KEY_RING, revoke_keys, rotate_keys
from service.db.connection import DATABASE_TIMERS
from service.db.transactions import write
from service.exceptions import StartError
from service.settings import Settings, SettingsError
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, register
from tests.support.tokens import ask, parts, published
from tests.support.waiting import DEADLINE_S, eventually


async def sign_in(client: Client, account: Account) -> Account:
    """The account with tokens made now."""
    body = {"email": account.profile["email"], "password": account.password}
    response = await client.post("/api/v1/auth/login", json=body)
    assert response.status == 200
    return account._replace(tokens=await response.json())


def key_of(account: Account) -> Any:
    return parts(account)[0]["kid"]


async def rotate(client: Client, settings: Settings, *, now: bool = False) -> str:
    assert client.app is not None
    key = await write(client.app, rotate_keys, settings, now=now)
    return str(key["id"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes look for new keys many times a second."""
    monkeypatch.setattr(signing_keys, "RELOAD_EVERY_S", 0.02)
    monkeypatch.setattr(signing_keys, "LOOK_AGAIN_EVERY_S", 0.02)


@pytest.mark.usefixtures("quick")
async def test_rotation_while_tokens_are_in_use(
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
    assert key_of(account) == old, "published, but not yet signing"

    # Ten minutes later.
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

    # When the last token of the old key has expired.
    await conn.execute(
        "update signing_keys set signs_from = signs_from - make_interval(secs => $1)",
        signing_keys.verifies_s(settings) + 1,
    )
    await eventually(lambda: both_publish(new))
    for client in (one, two):
        assert await ask(client, account.tokens["access_token"]) == 401
        assert await ask(client, later.tokens["access_token"]) == 200
    assert one.app is not None
    await write(one.app, lambda conn: purge.forget_keys(one.app, conn))
    assert [row["id"] for row in await conn.fetch("select id from signing_keys")] == [new]


@pytest.mark.usefixtures("quick")
async def test_revoked_keys_verify_nothing_and_sessions_live(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    one, two = await start_app(), await start_app()
    account = await register(one)
    waiting = await rotate(one, settings)
    assert one.app is not None
    revoked = await write(one.app, revoke_keys, settings)
    new = revoked["id"]
    # No key is left that could sign meanwhile.
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


async def test_a_process_that_never_heard_of_a_key_asks_for_it(
    start_app: StartApp, settings: Settings
) -> None:
    """Whatever it last read, and however lately: no token that is good is refused."""
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
def only_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes look for new keys only where a token makes them."""
    monkeypatch.setattr(signing_keys, "RELOAD_EVERY_S", DEADLINE_S)
    monkeypatch.setattr(signing_keys, "LOOK_AGAIN_EVERY_S", 0.3)


def looks_of(client: Client) -> list[float]:
    """When each look at the keys in the database, from now on, ended."""
    assert client.app is not None
    loop = asyncio.get_running_loop()
    looks: list[float] = []

    def note(name: str, waited_s: float, held_s: float) -> None:
        if name == "auth.list_signing_keys":
            looks.append(loop.time())

    client.app[DATABASE_TIMERS].append(note)
    return looks


def with_key_id(account: Account, key_id: str) -> str:
    """A token like the account's own, of a key that is not there."""
    header, claims = parts(account)
    return jwt.encode({**header, "kid": key_id}, claims, ECKey.generate_key("P-256"))


@pytest.mark.usefixtures("only_asked")
async def test_tokens_of_unknown_keys_share_a_look(client: Client) -> None:
    account = await register(client)
    assert client.app is not None
    ring, looks = client.app[KEY_RING], looks_of(client)
    tokens = [
        with_key_id(account, secrets.token_urlsafe(32)) for _ in range(signing_keys.LOOKING_MAX)
    ]
    async with ring.loading:
        answers = [asyncio.create_task(ask(client, token)) for token in tokens]
        await eventually(lambda: ring.looking == len(tokens))
    assert set(await asyncio.gather(*answers)) == {401}
    assert len(looks) == 1


@pytest.mark.usefixtures("only_asked")
async def test_looks_for_unknown_keys_keep_a_distance(client: Client) -> None:
    account = await register(client)
    looks = looks_of(client)
    for _ in range(3):
        assert await ask(client, with_key_id(account, secrets.token_urlsafe(32))) == 401
    first, second, third = looks
    # Measured at the ends of looks, one of which may have taken a little longer.
    assert third - first > signing_keys.LOOK_AGAIN_EVERY_S
    assert first < second < third


@pytest.mark.usefixtures("only_asked")
async def test_a_key_id_that_is_no_thumbprint_is_not_looked_for(client: Client) -> None:
    account = await register(client)
    looks = looks_of(client)
    for number in range(20):
        assert await ask(client, with_key_id(account, f"no thumbprint {number}")) == 401
    assert looks == []


@pytest.mark.usefixtures("quick")
async def test_tokens_of_a_revoked_key_wait_for_nothing(client: Client, settings: Settings) -> None:
    account = await register(client)
    assert client.app is not None
    ring = client.app[KEY_RING]
    await write(client.app, revoke_keys, settings)

    async def forgotten() -> bool:
        return key_of(account) not in ring.keys

    await eventually(forgotten)
    # Whoever looks waits for this lock.
    async with ring.loading:
        assert await ask(client, account.tokens["access_token"]) == 401


async def test_what_no_key_could_make_good_waits_for_nothing(client: Client) -> None:
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


@pytest.mark.usefixtures("quick")
async def test_few_wait_for_a_look(client: Client) -> None:
    account = await register(client)
    header, claims = parts(account)
    stranger = ECKey.generate_key("P-256", auto_kid=True)
    unknown = jwt.encode({**header, "kid": stranger.kid}, claims, stranger)
    assert client.app is not None
    ring = client.app[KEY_RING]

    async def as_many_look_as_may() -> bool:
        return ring.looking == signing_keys.LOOKING_MAX

    async with ring.loading:
        waiting = [
            asyncio.create_task(ask(client, unknown)) for _ in range(signing_keys.LOOKING_MAX)
        ]
        await eventually(as_many_look_as_may)
        assert await ask(client, unknown) == 401
        assert not any(task.done() for task in waiting)
    assert set(await asyncio.gather(*waiting)) == {401}
    assert ring.looking == 0


async def test_two_rotations_at_once_make_one_key(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    one, two = await start_app(), await start_app()
    made = await asyncio.gather(
        rotate(one, settings), rotate(two, settings), return_exceptions=True
    )
    (refused,) = [result for result in made if isinstance(result, StartError)]
    (new,) = [result for result in made if isinstance(result, str)]
    assert str(refused).startswith(f"the key {new} waits already, until 20")
    assert await conn.fetchval("select count(*) from signing_keys") == 2
    assert await rotate(one, settings, now=True) == new, "the one that waits signs now"
    assert await conn.fetchval("select count(*) from signing_keys where signs_from > now()") == 0


async def test_before_the_first_start_the_key_signs_at_once(
    client: Client, settings: Settings, conn: Any
) -> None:
    await conn.execute("delete from signing_keys")
    new = await rotate(client, settings)
    assert await conn.fetchval("select signs_from <= now() from signing_keys where id = $1", new)


@pytest.mark.usefixtures("quick")
async def test_another_secret_key_rotates_nothing_and_may_revoke(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    other = dataclasses.replace(settings, secret_key="another secret key, also long enough")
    with pytest.raises(SettingsError, match="^SECRET_KEY: expected the one that"):
        await rotate(client, other)
    assert await conn.fetchval("select count(*) from signing_keys") == 1
    assert client.app is not None
    await write(client.app, revoke_keys, other)
    old = account.tokens["access_token"]

    async def status() -> int:
        headers = {"Authorization": f"Bearer {old}"}
        return (await client.get("/api/v1/users/me", headers=headers)).status

    async def refused() -> bool:
        return await status() == 503

    # It cannot open the new key, but has forgotten the old one: it is to be started again.
    await eventually(refused)


@pytest.mark.usefixtures("quick")
async def test_keys_that_cannot_be_read_anew_are_kept(
    client: Client, settings: Settings, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "RETRY_EVERY_S", 0.02)
    account = await register(client)
    assert client.app is not None
    tries: list[str] = []
    client.app[DATABASE_TIMERS].append(lambda name, waited_s, held_s: tries.append(name))
    await conn.execute("alter table signing_keys rename to hidden")

    async def tried_again() -> bool:
        return tries.count("auth.list_signing_keys") > 3

    await eventually(tried_again)
    assert await ask(client, account.tokens["access_token"]) == 200
    await conn.execute("alter table hidden rename to signing_keys")
    new = await rotate(client, settings)

    async def both_published() -> bool:
        return await published(client) == [key_of(account), new]

    await eventually(both_published)
