"""``shinkei audit list``, and the operator in the events of commands."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from service.settings import Database
from tests.support.clients import Client
from tests.support.factories import PASSWORD, Account, register, register_as
from tests.support.shell import Shell
from tests.support.steps import send

EMAIL = "ada@example.com"
try:
    ACCOUNT = pwd.getpwuid(os.getuid()).pw_name
except KeyError:
    ACCOUNT = f"uid {os.getuid()}"


@pytest.fixture
async def admin(client: Client) -> Account:
    return await register_as(client, "admin", email="root@example.com")


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path)


async def get(client: Client, admin: Account, query: str = "") -> Any:
    return await (await send(client, "GET", f"/audit-events{query}", by=admin)).json()


async def test_list_returns_the_same_events_as_the_api(
    client: Client, admin: Account, shell: Shell
) -> None:
    ada = await register(client, email=EMAIL)
    path = f"/users/{ada.profile['id']}/suspend"
    await send(client, "POST", path, {"reason": "spam"}, by=admin)
    first = await get(client, admin, "?limit=2")
    id_ = ada.profile["id"]
    queries = {
        "": "",
        "--limit 2": "?limit=2",
        f"--limit 2 --cursor {first['next_cursor']}": f"?limit=2&cursor={first['next_cursor']}",
        "--all": "?limit=200",
        f"--subject {id_}": f"?subject_id={id_}",
        f"--subject {EMAIL}": f"?subject_id={id_}",
        "--actor root@example.com": f"?actor_id={admin.profile['id']}",
        "--action user.suspend": "?action=user.suspend",
        "--occurred-after 2999-01-01T00:00:00Z": "?occurred_after=2999-01-01T00:00:00Z",
        "--occurred-before 2999-01-01T00:00:00Z": "?occurred_before=2999-01-01T00:00:00Z",
        "--action none.such": "?action=none.such",
    }
    results = await shell(*(f"audit list --json {words}" for words in queries))
    for result, query in zip(results, queries.values(), strict=True):
        assert result.json() == await get(client, admin, query), query


async def test_pipe_gets_one_line_for_each_event(
    client: Client, admin: Account, shell: Shell
) -> None:
    ada = await register(client, email=EMAIL)
    change, listed = await shell(
        f"users set-role {EMAIL} support --operator grace", "audit list --action user.update"
    )
    assert change.code == 0
    ((occurred_at, *row),) = listed.rows()
    (event,) = (await get(client, admin, "?action=user.update"))["items"]
    assert occurred_at == f"{event['occurred_at'][:19]}Z"
    before, after = json.dumps({"role": "user"}), json.dumps({"role": "support"})
    assert row == ["user.update", "", "grace", ada.profile["id"], "", before, after]


async def test_cut_list_says_how_to_continue(client: Client, admin: Account, shell: Shell) -> None:
    await register(client)
    (cut,) = await shell("audit list --limit 1")
    assert (cut.code, len(cut.stdout.splitlines())) == (0, 1)
    cursor = (await get(client, admin, "?limit=1"))["next_cursor"]
    assert cut.stderr == f"There are more. Use --all, or --cursor {cursor}\n"


async def test_invalid_filters_exit_with_code_2(client: Client, shell: Shell) -> None:
    wrong = {
        "--limit 0": "--limit: Expected a whole number from 1 to 200.",
        "--actor nonsense": "ID or EMAIL: Not a valid email.",
        "--occurred-after yesterday": "--occurred-after: Expected a time with its offset",
        "--cursor x": "This cursor is invalid. Use next_cursor from an earlier page.",
        "--all --limit 5": "--all and --limit cannot be combined. See shinkei audit list --help.",
    }
    results = await shell(*(f"audit list {words}" for words in wrong))
    for result, line in zip(results, wrong.values(), strict=True):
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"shinkei: {line}")


async def test_email_without_an_account_is_an_error(client: Client, shell: Shell) -> None:
    (result,) = await shell("audit list --subject nobody@example.com")
    assert result == (1, "", "shinkei: There is no such account.\n")


# Each command that changes something, with the action that it records.
CHANGES = {
    "users create new@example.com": "user.create",
    f"users set-role {EMAIL} support": "user.update",
    f"users reset-password {EMAIL}": "user.password_reset",
    f"users suspend {EMAIL} --reason x": "user.suspend",
    f"users reinstate {EMAIL}": "user.reinstate",
    f"users delete {EMAIL}": "user.delete",
    "create-admin --email root2@example.com": "user.create",
    "create-admin --promote --email root2@example.com": None,
    "create-admin --promote --email bob@example.com": "user.update",
    "keys rotate": "key.rotate",
    "keys rotate --revoke": "key.revoke",
}


async def test_every_change_by_a_command_names_the_operator(
    client: Client, shell: Shell, conn: Any
) -> None:
    await register(client, email=EMAIL)
    await register(client, email="bob@example.com")
    results = await shell(
        *(f"{words} --operator grace" for words in CHANGES), read=[PASSWORD] * len(CHANGES)
    )
    assert [result.code for result in results] == [0] * len(CHANGES), results
    # From the database: the keys of the access tokens have been revoked.
    events = await conn.fetch(
        "select action, actor_id from audit_events where operator = 'grace' order by id"
    )
    assert [event["action"] for event in events] == [each for each in CHANGES.values() if each]
    assert {event["actor_id"] for event in events} == {None}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("SUDO_USER= {}", ACCOUNT),
        ("SUDO_USER=alice {}", "alice"),
        ("SUDO_USER=alice {} --operator grace", "grace"),
    ],
    ids=["account", "sudo", "option"],
)
async def test_operator_is_the_os_account_unless_named(
    client: Client, admin: Account, shell: Shell, words: str, name: str
) -> None:
    await register(client, email=EMAIL)
    await shell(words.format(f"users set-role {EMAIL} support"))
    (event,) = (await get(client, admin, "?action=user.update"))["items"]
    assert event["operator"] == name


async def test_change_over_http_has_no_operator(client: Client, admin: Account) -> None:
    await send(client, "POST", "/users", {"email": EMAIL}, by=admin)
    (event,) = (await get(client, admin, "?action=user.create"))["items"]
    assert (event["actor_id"], event["operator"]) == (admin.profile["id"], None)
