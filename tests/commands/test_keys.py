"""``shinkei keys`` while the service is running."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from service.auth import signing_keys
from service.resealing import SEALED
from service.settings import Database
from tests.support.clients import NEW_KEY, SECRET_KEY, Client, StartApp
from tests.support.factories import PASSWORD, register
from tests.support.manifests import code_blocks
from tests.support.processes import call, environment, run_command, serving
from tests.support.shell import Shell
from tests.support.tokens import ask, published
from tests.support.waiting import eventually

NO_FACTORS = "one-time code secrets\t0\t0\nrecovery codes\t0\t0\n"


async def test_keys_are_listed_rotated_and_revoked_while_serving(
    start_app: StartApp, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "RELOAD_EVERY_S", 0.02)
    monkeypatch.setattr(signing_keys, "RELOAD_MIN_INTERVAL_S", 0.02)
    client = await start_app()
    account = await register(client)
    (old,) = await published(client)
    shell = Shell(database, tmp_path)
    refused, rotated, again, listed, lines, now, signing = await shell(
        f"SECRET_KEY={'x' * 40} keys rotate",
        "keys rotate",
        "keys rotate",
        "keys list --json",
        "keys list",
        "keys rotate --now",
        "keys list --json",
    )
    assert refused == (
        2,
        "",
        "shinkei: SECRET_KEY: expected the value that sealed this database's signing keys\n",
    )
    assert rotated.code == 0
    new, _, signs_from = rotated.stdout.strip().replace("  signs", " signs").split(" ", 2)
    assert again.code == 1
    assert again.stderr.startswith(f"shinkei: key {new} is already scheduled to sign from 20")
    first, second = listed.json()["items"]
    assert [first["id"], first["state"]] == [old, "signing"]
    assert [second["id"], second["state"]] == [new, "waiting"]
    assert second["retires_at"] is None
    assert first["retires_at"] > second["signs_from"] > second["created_at"]
    assert signs_from == f"from {second['signs_from'][:19]}Z"
    assert lines.rows()[0][:3] == [old, "ES256", "signing"]
    assert (now.code, now.stdout.split()[0]) == (0, new)
    states = {key["id"]: key["state"] for key in signing.json()["items"]}
    assert states == {old: "verifying", new: "signing"}

    async def both_published() -> bool:
        return await published(client) == [old, new]

    await eventually(both_published)
    assert await ask(client, account.tokens["access_token"]) == 200

    (revoked,) = await shell("keys rotate --revoke")
    newest = revoked.stdout.split()[0]

    async def only_newest_published() -> bool:
        return await published(client) == [newest]

    await eventually(only_newest_published)
    assert await ask(client, account.tokens["access_token"]) == 401


REPLACING = [f"SECRET_KEY={NEW_KEY}", f"SECRET_KEY_PREVIOUS={SECRET_KEY}"]
RESEAL = [*REPLACING, "keys", "reseal"]
CAN_BE_REMOVED = (
    "SECRET_KEY_PREVIOUS can be removed, if all replicas have had this SECRET_KEY for 5 minutes.\n"
)


async def store_response(client: Client) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}
    headers = {"Idempotency-Key": "key"}
    response = await client.post("/api/v1/auth/register", json=body, headers=headers)
    assert response.status == 201


async def test_reseal_prints_what_it_moved_and_names_the_operator(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    await store_response(client)
    await conn.execute("delete from mail_outbox")
    shell = Shell(database, tmp_path)
    moved, again, listed = await shell(
        [*RESEAL, "--operator", "grace"],
        [*RESEAL, "--json"],
        [*REPLACING[:1], "audit", "list", "--action", "key.reseal", "--json"],
    )
    assert moved == (
        0,
        f"signing keys\t1\t0\nmail\t0\t0\n{NO_FACTORS}idempotent answers\t1\t0\n",
        CAN_BE_REMOVED,
    )
    kinds = [column.purpose for column in SEALED]
    items = [{"kind": kind, "moved": 0, "unopened": 0} for kind in kinds]
    assert again.json() == {"items": items}
    assert [(item["operator"], item["after"]) for item in listed.json()["items"]] == [
        ("grace", {"kind": "idempotent answers", "moved": 1}),
        ("grace", {"kind": "signing keys", "moved": 1}),
    ]


async def test_reseal_fails_if_neither_key_opens_something(
    client: Client, database: Database, conn: Any, tmp_path: Path
) -> None:
    await store_response(client)
    await conn.execute("delete from mail_outbox")
    await conn.execute("update idempotency_keys set key = 'another'")
    (result,) = await Shell(database, tmp_path)(RESEAL)
    assert result == (
        1,
        f"signing keys\t1\t0\nmail\t0\t0\n{NO_FACTORS}idempotent answers\t0\t1\n",
        "shinkei: neither SECRET_KEY nor SECRET_KEY_PREVIOUS opens 1 of idempotent answers; all"
        " else is sealed with SECRET_KEY\n",
    )


async def test_reseal_needs_the_previous_key(
    client: Client, database: Database, tmp_path: Path
) -> None:
    (refused,) = await Shell(database, tmp_path)("keys reseal")
    assert refused == (
        2,
        "",
        "shinkei: SECRET_KEY_PREVIOUS: required to reseal; expected the key that SECRET_KEY"
        " replaces\n",
    )


async def test_commands_that_send_mail_accept_either_key(
    client: Client, database: Database, tmp_path: Path
) -> None:
    account = await register(client)
    (done,) = await Shell(database, tmp_path)(
        [*REPLACING, "users", "reset-password", account.profile["email"]]
    )
    assert done.code == 0


@pytest.mark.slow
def test_generated_key_is_replaced_as_the_guide_says(tmp_path: Path) -> None:
    account = {"email": "ada@example.com", "password": PASSWORD}
    with serving(tmp_path) as served:
        status, tokens = call(f"{served.url}/api/v1/auth/register", account)
        assert status == 201
        assert served.ends_with(signal.SIGTERM) == 0
    old = (tmp_path / ".data/secret_key").read_text()
    (script,) = [one for one in code_blocks("sh", "Replacing SECRET_KEY") if "keys reseal" in one]
    shinkei = f'shinkei() {{ "{sys.executable}" -m service "$@"; }}'
    done = run_command("sh", "-ec", f"{shinkei}\n{script}", cwd=tmp_path, env=environment())
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "signing keys\t1\t0"), done
    assert (tmp_path / ".data/secret_key").read_text() != old
    with serving(tmp_path) as served:
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert call(f"{served.url}/api/v1/users/me", **headers)[0] == 200
        assert served.ends_with(signal.SIGTERM) == 0
