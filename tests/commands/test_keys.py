"""``shinkei keys`` while the service is running."""

from pathlib import Path

import pytest

from service.auth import signing_keys
from service.settings import Database
from tests.support.clients import StartApp
from tests.support.factories import register
from tests.support.shell import Shell
from tests.support.tokens import ask, published
from tests.support.waiting import eventually


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
