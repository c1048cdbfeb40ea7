"""``shinkei users``: account administration from the command line, as over HTTP."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from service.factors import totp
from service.settings import Database
from tests.support.clients import Client
from tests.support.factories import Account, register, register_as
from tests.support.factors import add_totp
from tests.support.processes import Terminal, environment, started
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE_S

USERS = "/api/v1/users"
# Text that would colour, clear or reverse a terminal, break its line, or pass for markup.
HOSTILE = "\x1b[31m[red]Eve[/red]\x9b2J\u202egnp\n:smile: Zoë 👩\u200d🚀\u3000山"


@pytest.fixture
async def admin(client: Client) -> Account:
    return await register_as(client, "admin", email="root@example.com")


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path)


async def get(client: Client, account: Account, path: str) -> Any:
    response = await client.get(path, headers=account.headers)
    assert response.status == 200
    return await response.json()


async def test_list_returns_the_same_accounts_as_the_api(
    client: Client, admin: Account, shell: Shell
) -> None:
    for name in ("Ada", "Bob", "Cyd"):
        account = await register(client, email=f"{name}@example.com", name=f"{name} Lovelace")
    await add_totp(client, account.headers)
    first = await get(client, admin, f"{USERS}?limit=3")
    results = await shell(
        "users list --json",
        "users list --limit 3 --json",
        f"users list --limit 3 --cursor {first['next_cursor']} --json",
        "users list --all --json --sort email",
        "users list --email ADA@example.com --json",
        "users list --q lovelace --role user --status active --json",
        "users list --created-after 2999-01-01T00:00:00Z --json",
        "users list --has-second-factor true --json",
        "users list --settings {} --all",
        "users list --limit 3",
        "users list --role support",
    )
    whole, page, rest, by_email, ada, lovelaces, none, secured, lines, cut, empty = results
    assert whole.json() == await get(client, admin, USERS)
    assert page.json() == first
    assert page.json()["items"] + rest.json()["items"] == whole.json()["items"]
    assert by_email.json() == await get(client, admin, f"{USERS}?sort=email")
    assert [item["name"] for item in ada.json()["items"]] == ["Ada Lovelace"]
    assert len(lovelaces.json()["items"]) == 3
    assert none.json() == {"items": [], "next_cursor": None, "has_more": False}
    assert [item["email"] for item in secured.json()["items"]] == ["Cyd@example.com"]
    items = whole.json()["items"]
    assert lines.rows() == [
        [
            *(item[name] for name in ("id", "email", "name", "role", "status")),
            f"{item['created_at'][:19]}Z",
        ]
        for item in items
    ]
    assert (cut.code, len(cut.stdout.splitlines())) == (0, 3)
    assert cut.stderr == f"There are more. Use --all, or --cursor {first['next_cursor']}\n"
    assert empty == (0, "", "")


async def test_list_all_fetches_every_page(
    client: Client, admin: Account, shell: Shell, conn: Any
) -> None:
    await conn.execute(
        """
        insert into users (id, email, email_folded, name)
        select gen_random_uuid(), n || '@example.com', n || '@example.com', '' from
        generate_series(1, 450) n
        """
    )
    document, lines = await shell("users list --all --json", "users list --all")
    ids = [item["id"] for item in document.json()["items"]]
    assert len(set(ids)) == 451
    assert document.json()["has_more"] is False
    assert [row[0] for row in lines.rows()] == ids


async def test_show_finds_an_account_by_id_or_email(
    client: Client, admin: Account, shell: Shell
) -> None:
    id_ = admin.profile["id"]
    by_id, by_email, lines, nobody, nonsense = await shell(
        f"users show {id_} --json",
        "users show ROOT@example.com --json",
        f"users show {id_}",
        "users show 01890000-0000-7000-8000-000000000000",
        "users show nonsense",
    )
    shown = await get(client, admin, f"{USERS}/{id_}")
    assert by_id.json() == by_email.json() == {**shown, "factors": [], "recovery_codes_left": 0}
    fields = dict(lines.rows())
    assert fields == {**fields, "id": id_, "role": "admin", "settings": "{}", "name": ""}
    assert nobody == (1, "", "shinkei: There is no such account.\n")
    assert nonsense == (2, "", "shinkei: ID or EMAIL: Not a valid email.\n")


async def test_show_lists_second_factors_without_their_secrets(
    client: Client, admin: Account, shell: Shell, conn: Any
) -> None:
    app = await add_totp(client, admin.headers)
    await conn.execute("update factors set name = $1, last_used_at = null", HOSTILE)
    as_json, lines = await shell(
        "users show ROOT@example.com --json", "users show ROOT@example.com"
    )
    listed = await get(client, admin, "/api/v1/users/me/factors")
    document = as_json.json()
    assert document["has_second_factor"]
    assert (document["factors"], document["recovery_codes_left"]) == (listed["items"], 10)
    fields = dict(lines.rows())
    assert fields["recovery_codes_left"] == "10"
    added = f"{listed['items'][0]['created_at'][:19]}Z"
    assert fields["factor"].startswith(f"totp, added {added}, last used never: \\x1b[31m[red]Eve")
    assert app.recovery_codes is not None
    for secret in (totp.to_base32(app.secret), app.secret.hex(), *app.recovery_codes):
        assert secret not in as_json.stdout + lines.stdout


async def test_invalid_arguments_exit_with_code_2(
    client: Client, admin: Account, shell: Shell
) -> None:
    await register(client)
    cursor = (await get(client, admin, f"{USERS}?limit=1"))["next_cursor"]
    wrong = {
        "--limit 0": "--limit: Expected a whole number from 1 to 200.",
        "--status gone": "--status: Must be one of: active, suspended, deleting.",
        "--has-second-factor yes": "--has-second-factor: Expected true or false.",
        "--created-after yesterday": "--created-after: Expected a time with its offset",
        "--settings [1]": "--settings: Expected an object.",
        '--settings {"a":[1e99]}': "--settings: Numbers must be 0, or between 1e-15 and 2^53",
        "--q ab": "--q: Must be at least 3 characters long.",
        "--cursor x": "This cursor is invalid. Use next_cursor from an earlier page.",
        f"--cursor {cursor} --sort email": "This cursor belongs to another list",
        "--all --limit 5": "--all and --limit cannot be combined. See shinkei users list --help.",
        "--nonsense": "No such option '--nonsense'.",
    }
    results = await shell(*(f"users list {words}" for words in wrong))
    for result, line in zip(results, wrong.values(), strict=True):
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"shinkei: {line}")


async def test_suspension_takes_effect_immediately_and_is_recorded(
    client: Client, admin: Account, shell: Shell, conn: Any
) -> None:
    account = await register(client, email="ada@example.com")
    (suspended,) = await shell(
        "users suspend ADA@example.com --reason spam --until 2999-01-01T00:00:00+01:00"
    )
    assert suspended == (0, "suspended  ada@example.com\n", "")
    assert (await client.get(f"{USERS}/me", headers=account.headers)).status == 401
    body = {"email": "ada@example.com", "password": account.password}
    assert (await client.post("/api/v1/auth/login", json=body)).status == 401
    shown = await get(client, admin, f"{USERS}/{account.profile['id']}")
    assert shown["suspended_until"] == "2998-12-31T23:00:00Z"
    events = await get(client, admin, "/api/v1/audit-events?action=user.suspend")
    (event,) = events["items"]
    assert (event["actor_id"], event["request_id"]) == (None, None)
    assert event["subject_id"] == account.profile["id"]
    assert event["after"]["suspension_reason"] == "spam"
    assert event["before"]["status"] == "active"

    again, twice = await shell(*[f"users reinstate {account.profile['id']}"] * 2)
    assert again == twice == (0, "active  ada@example.com\n", "")
    assert (await client.post("/api/v1/auth/login", json=body)).status == 200
    events = await get(client, admin, "/api/v1/audit-events?action=user.reinstate")
    assert len(events["items"]) == 1


async def test_suspend_reports_why_an_account_cannot_be_suspended(
    client: Client, admin: Account, shell: Shell, conn: Any
) -> None:
    leaving = await register(client, email="ada@example.com")
    url = f"{USERS}/{leaving.profile['id']}"
    response = await client.delete(url, headers={**admin.headers, "If-Match": "*"})
    assert response.status == 200
    last, deleting, nobody, no_reason, past, empty = await shell(
        "users suspend root@example.com --reason x",
        "users suspend ada@example.com --reason x",
        "users suspend nobody@example.com --reason x",
        "users suspend ada@example.com",
        "users suspend ada@example.com --reason x --until 2020-01-01T00:00:00Z",
        ["users", "suspend", "ada@example.com", "--reason", ""],
    )
    assert (last.code, deleting.code, nobody.code) == (1, 1, 1)
    assert "This is the last active administrator" in last.stderr
    assert "This account is being deleted. Reinstate it first." in deleting.stderr
    assert "There is no such account." in nobody.stderr
    assert (no_reason.code, past.code, empty.code) == (2, 2, 2)
    assert "Missing option '--reason'" in no_reason.stderr
    assert past.stderr == "shinkei: --until: Expected a time in the future.\n"
    assert empty.stderr == "shinkei: --reason: Must not be empty.\n"
    assert (await client.get(f"{USERS}/me", headers=admin.headers)).status == 200
    assert await conn.fetchval("select count(*) from audit_events where action ~ 'suspend'") == 0


async def test_hostile_names_cannot_control_the_terminal(
    client: Client, admin: Account, shell: Shell, conn: Any, database: Database
) -> None:
    account = await register(client, email="eve@example.com")
    await conn.execute("update users set name = $2 where id = $1", account.profile["id"], HOSTILE)
    line, document = await shell(
        "users list --email eve@example.com", "users show eve@example.com --json"
    )
    visible = "\\x1b[31m[red]Eve[/red]\\x9b2J\\u202egnp\\n:smile: Zoë 👩\u200d🚀\u3000山"
    ((_, _, name, *_),) = line.rows()
    assert name == visible
    assert document.stdout.isascii()
    assert document.json()["name"] == HOSTILE

    shown = await asyncio.to_thread(show_at_terminal, environment(**shell.variables), shell.cwd)
    assert shown.count(account.profile["id"]) == 2, "ids are never truncated"
    assert "\x1b[31m" not in shown
    # Long values wrap onto the next line.
    assert "".join(visible.split()) in "".join(shown.split())


def show_at_terminal(environ: dict[str, str], cwd: Path) -> str:
    """Return what ``users list`` and ``users show`` print on a terminal of 60 columns."""
    script = """
import contextlib, sys
from service.__main__ import main
for sys.argv in (["shinkei", "users", "list"], ["shinkei", "users", "show", "eve@example.com"]):
    with contextlib.suppress(SystemExit):
        main()
"""
    env = {**environ, "TERM": "xterm", "COLUMNS": "60"}
    command = (sys.executable, "-c", script)
    with (
        contextlib.closing(Terminal()) as terminal,
        started(
            *command, cwd=cwd, env=env, stdout=terminal.theirs, stderr=terminal.theirs
        ) as process,
    ):
        terminal.hand_over()
        while terminal.read():
            pass
        assert process.wait(DEADLINE_S) == 0
        return terminal.shown
