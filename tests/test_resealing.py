"""SECRET_KEY is replaced while replicas serve, and nothing that it has sealed is lost."""

import ast
import asyncio
import importlib
import uuid
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service import resealing
from service.audit.events import Operator
from service.resealing import SEALED, Resealed, reseal
from service.settings import Settings
from tests.support.clients import NEW_KEY, ROOT, SECRET_KEY, Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, register
from tests.support.factors import add_totp, sign_in_with
from tests.support.holding import holding
from tests.support.mailbox import next_mail
from tests.support.steps import refresh, send, sign_in_again
from tests.support.tokens import ask

LATER = "alter table mail_outbox alter next_attempt_at set default now() + interval '1 hour'"
NOW = "update mail_outbox set next_attempt_at = now()"
# Purposes of ``seal`` whose values no table holds.
NOT_STORED = {"passkey challenges"}
# Purposes of ``derive_key``. docs/deployment.md says what becomes of each when the key is replaced.
DERIVED = {"cursors", "refresh tokens", "throttles"}


class Keys(NamedTuple):
    """The two variables of a replica."""

    secret_key: str
    secret_key_previous: str = ""


# The steps in docs/deployment.md.
STEPS = (
    Keys(SECRET_KEY),
    Keys(SECRET_KEY, NEW_KEY),
    Keys(NEW_KEY, SECRET_KEY),
    Keys(NEW_KEY),
)
BEFORE, _, REPLACING, AFTER = (keys._asdict() for keys in STEPS)
SIDE_BY_SIDE = [order for pair in pairwise(range(4)) for order in permutations(pair)]


async def reseal_all(client: Client) -> list[Resealed]:
    assert client.app is not None
    return [await reseal(client.app, Operator("grace"), column) for column in SEALED]


@pytest.fixture(params=SIDE_BY_SIDE, ids=lambda order: f"{order[0]} then {order[1]}")
async def replicas(request: pytest.FixtureRequest, start_app: StartApp) -> list[Client]:
    """Two replicas that serve side by side during a step, in either order.

    The database has a signing key from before the first step.
    """
    await (await start_app(**BEFORE)).close()
    steps = sorted(request.param)
    started = {steps[0]: await start_app(**STEPS[steps[0]]._asdict())}
    if steps[1] == 3:
        await reseal_all(started[2])
    started[steps[1]] = await start_app(**STEPS[steps[1]]._asdict())
    return [started[step] for step in request.param]


async def register_once(client: Client, key: str, email: str = "ada@example.com") -> Any:
    body = {"email": email, "password": PASSWORD}
    response = await send(client, "POST", "/auth/register", body, headers={"Idempotency-Key": key})
    assert response.status == 201, await response.text()
    return await response.json()


async def test_replica_accepts_the_tokens_of_another(replicas: list[Client]) -> None:
    one, other = replicas
    tokens = (await register(one)).tokens
    assert await ask(other, tokens["access_token"]) == 200
    refreshed = await refresh(other, tokens["refresh_token"])
    assert refreshed.status == 200
    assert await ask(one, (await refreshed.json())["access_token"]) == 200


@pytest.mark.asvs("10.4.5")
async def test_retry_of_a_refresh_gets_the_successor_from_another_replica(
    replicas: list[Client],
) -> None:
    """Otherwise the session would end, as after a replay."""
    one, other = replicas
    token = (await register(one)).tokens["refresh_token"]
    lost = await (await refresh(one, token)).json()
    retried = await refresh(other, token)
    assert retried.status == 200
    successor = (await retried.json())["refresh_token"]
    assert successor == lost["refresh_token"]
    assert (await refresh(one, successor)).status == 200


async def test_response_is_repeated_by_another_replica(replicas: list[Client]) -> None:
    one, other = replicas
    assert await register_once(other, "key") == await register_once(one, "key")


async def test_mail_is_sent_by_another_replica(
    replicas: list[Client], settings: Settings, conn: Any
) -> None:
    await conn.execute(LATER)
    await register(replicas[0], email="ada@example.com")
    await replicas[0].close()
    await conn.execute(NOW)
    assert await next_mail(settings.data_dir, "ada@example.com")


async def test_list_goes_on_at_another_replica(replicas: list[Client]) -> None:
    one, other = replicas
    account = await sign_in_again(one, await register(one))
    page = await (await send(one, "GET", "/users/me/sessions?limit=1", by=account)).json()
    rest = await send(
        other, "GET", f"/users/me/sessions?limit=1&cursor={page['next_cursor']}", by=account
    )
    assert (rest.status, (await rest.json())["has_more"]) == (200, False)


async def test_all_that_the_old_key_sealed_is_there_without_it(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    await conn.execute(LATER)
    before = await start_app(**BEFORE)
    response = await register_once(before, "key")
    owner = await register(before)
    app = await add_totp(before, owner.headers)
    await conn.execute(
        "delete from mail_outbox where id <> (select min(id::text)::uuid from mail_outbox)"
    )
    await before.close()
    during = await start_app(**REPLACING)
    moved = {found.kind: (found.moved, found.unopened) for found in await reseal_all(during)}
    assert moved == dict.fromkeys((column.purpose for column in SEALED), (1, 0))
    await during.close()
    after = await start_app(**AFTER)
    assert await register_once(after, "key") == response
    await sign_in_with(after, owner, code=app.code(1))
    assert app.recovery_codes is not None
    await sign_in_with(after, owner, recovery_code=app.recovery_codes[0])
    assert await ask(after, response["access_token"]) == 200
    assert (await refresh(after, response["refresh_token"])).status == 200
    await conn.execute(NOW)
    assert await next_mail(settings.data_dir, "ada@example.com")


async def test_what_the_old_key_sealed_is_lost_without_the_new_setting(
    start_app: StartApp, conn: Any
) -> None:
    """The other tests would show nothing if any key opened everything."""
    before = await start_app(**BEFORE)
    await register_once(before, "key")
    # Otherwise, it might create a key that the next one cannot read.
    await before.close()
    await conn.execute("delete from signing_keys")
    after = await start_app(**AFTER)
    body = {"email": "ada@example.com", "password": PASSWORD}
    headers = {"Idempotency-Key": "key"}
    response = await send(after, "POST", "/auth/register", body, headers=headers)
    await assert_problem(response, 422, "idempotent_answer_lost")


@pytest.mark.asvs("10.4.5")
async def test_replay_ends_the_session_while_there_are_two_keys(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(**REPLACING)
    stolen = (await register(client)).tokens["refresh_token"]
    refreshed = await (await refresh(client, stolen)).json()
    await conn.execute("update refresh_tokens set used_at = used_at - interval '6 minutes'")
    assert (await refresh(client, stolen)).status == 401
    assert await ask(client, refreshed["access_token"]) == 401


async def store_responses(start_app: StartApp, number: int) -> Client:
    """Store responses under the old key, and return a replica that replaces it."""
    before = await start_app(**BEFORE)
    for one in range(number):
        await register_once(before, f"key-{one}", f"ada{one}@example.com")
    await before.close()
    return await start_app(**REPLACING)


async def test_each_slice_leaves_an_event_and_a_second_run_none(
    start_app: StartApp, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resealing, "ROWS_AT_ONCE", 2)
    client = await store_responses(start_app, 4)
    assert (await reseal_all(client))[-1] == ("idempotent answers", 4, 0)
    events = await conn.fetch(
        """
        select operator, "after" ->> 'kind' as kind, "after" ->> 'moved' as moved
        from audit_events where action = 'key.reseal'
        """
    )
    slices = [(row["operator"], row["moved"]) for row in events if row["kind"] != "mail"]
    assert sorted(slices) == [("grace", "1"), ("grace", "2"), ("grace", "2")]
    assert [found.moved for found in await reseal_all(client)] == [0] * len(SEALED)
    again = await conn.fetchval("select count(*) from audit_events where action = 'key.reseal'")
    assert again == len(events)


async def test_value_that_neither_key_opens_is_counted_and_left_alone(
    start_app: StartApp, conn: Any
) -> None:
    client = await store_responses(start_app, 3)
    broken = await conn.fetchval(
        """
        update idempotency_keys set answer = set_bit(answer, 100, 1 - get_bit(answer, 100))
        where key = 'key-1' returning answer
        """
    )
    assert (await reseal_all(client))[-1] == ("idempotent answers", 2, 1)
    found = await conn.fetchval("select answer from idempotency_keys where key = 'key-1'")
    assert found == broken


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("update idempotency_keys set answer = 'changed'", [b"changed"]),
        ("delete from idempotency_keys", []),
    ],
    ids=["changed", "gone"],
)
async def test_value_that_changes_meanwhile_is_left_alone(
    start_app: StartApp, conn: Any, change: str, left: list[bytes]
) -> None:
    client = await store_responses(start_app, 1)
    async with holding(conn, change) as start:
        task = await start(reseal_all(client))
    assert task.result()[-1] == ("idempotent answers", 0, 0)
    found = await conn.fetch("select answer from idempotency_keys")
    assert [row["answer"] for row in found] == left


async def test_resealing_beside_writers_loses_nothing(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the writers has not been restarted with the new key yet."""
    monkeypatch.setattr(resealing, "ROWS_AT_ONCE", 3)
    old, new = [await start_app(**keys._asdict()) for keys in STEPS[1:3]]
    written: dict[str, Any] = {}

    async def keep_writing(client: Client) -> None:
        for _ in range(15):
            key = str(uuid.uuid4())
            written[key] = await register_once(client, key, f"{key}@example.com")

    async def keep_resealing() -> None:
        while not all(task.done() for task in writers):
            for _, _, unopened in await reseal_all(new):
                assert unopened == 0

    writers = [asyncio.create_task(keep_writing(client)) for client in (old, new, old)]
    await asyncio.gather(keep_resealing(), keep_resealing(), *writers)
    await old.close()
    await reseal_all(new)
    await new.close()
    after = await start_app(**AFTER)
    for key, response in written.items():
        assert await register_once(after, key, f"{key}@example.com") == response
        me = await after.get("/api/v1/users/me", headers=bearer(response["access_token"]))
        assert me.status == 200


async def test_key_of_each_sealed_column_is_the_primary_key(conn: Any) -> None:
    for column in SEALED:
        rows = await conn.fetch(
            """
            select attname as name, format_type(atttypid, null) as type
            from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey)
            where indrelid = $1::text::regclass and indisprimary
            order by array_position(indkey::int[], attnum)
            """,
            column.table,
        )
        assert list(column.key.items()) == [(row["name"], row["type"]) for row in rows]


def purposes(function: str) -> set[str]:
    """Return the second argument of all calls of the function, but those with a variable."""
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        if path.name in ("sealing.py", "resealing.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
                found.add(_value(path, node.args[1]))
    return found


def _value(path: Path, argument: ast.expr) -> str:
    """Return the text, or the value of the module's constant."""
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return str(getattr(module, ast.unparse(argument)))


def test_each_sealed_column_is_moved_to_the_new_key() -> None:
    """A purpose that is missing here belongs into SEALED, or into NOT_STORED."""
    listed = [column.purpose for column in SEALED]
    assert sorted(listed) == sorted(purposes("seal") - NOT_STORED)


def test_each_derived_key_is_known() -> None:
    """If a table holds what a key makes, replacing SECRET_KEY would make it worthless."""
    assert purposes("derive_key") == DERIVED
