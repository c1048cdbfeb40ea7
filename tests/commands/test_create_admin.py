"""``shinkei create-admin``: the first administrator."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from service.db import migrations
from service.settings import Database
from tests.support.clients import Client
from tests.support.factories import PASSWORD, bearer, register, register_as
from tests.support.processes import (
    SHINKEI,
    Terminal,
    environment,
    run_command,
    serving,
    started,
    url_of,
)
from tests.support.processes import call as call_url
from tests.support.shell import Shell, run_all
from tests.support.waiting import DEADLINE_S

EMAIL = "admin@example.com"


def create_admin(*arguments: str, cwd: Path, **variables: str) -> tuple[int, str, str]:
    """Pipe the password to ``create-admin``; return its exit code, stdout and stderr."""
    command = (*SHINKEI, "create-admin", *arguments)
    result = run_command(*command, cwd=cwd, env=environment(**variables), text=f"{PASSWORD}\n")
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path)


async def sign_in(client: Client, password: str = PASSWORD) -> Any:
    credentials = {"email": EMAIL, "password": password}
    return await client.post("/api/v1/auth/login", json=credentials)


async def last_event(conn: Any) -> tuple[Any, ...]:
    row = await conn.fetchrow(
        "select action, actor_id, actor_role, subject_id::text, before::text, after::text"
        " from audit_events where action not in ('user.register', 'session.start')"
        " order by occurred_at desc limit 1"
    )
    return tuple(row)


def type_password(cwd: Path, variables: dict[str, str]) -> tuple[int, str, str]:
    """Type the password twice; return the exit code, stdout and the terminal's content."""
    command = (*SHINKEI, "create-admin", "--email", EMAIL)
    env = environment(**variables)
    with (
        contextlib.closing(Terminal()) as terminal,
        # Without a controlling terminal, getpass falls back to stdin and stderr.
        started(
            *command, cwd=cwd, env=env, stdin=terminal.theirs, stderr=terminal.theirs
        ) as process,
    ):
        terminal.hand_over()
        for prompt in ("Password: ", "Repeat for confirmation: "):
            terminal.read_until(prompt)
            terminal.type(PASSWORD)
        stdout, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, stdout, terminal.shown


async def test_password_is_read_from_stdin(
    client: Client, conn: Any, database: Database, tmp_path: Path
) -> None:
    result = await asyncio.to_thread(
        create_admin, "--email", EMAIL, cwd=tmp_path, **url_of(database)
    )
    assert result == (0, f"administrator  {EMAIL}\n", "")
    tokens = await (await sign_in(client)).json()
    me = await client.get("/api/v1/users/me", headers=bearer(tokens["access_token"]))
    profile = await me.json()
    assert (profile["role"], profile["email_verified"]) == ("admin", True)
    assert await last_event(conn) == (
        "user.create",
        None,
        None,
        profile["id"],
        None,
        '{"name": "", "role": "admin", "email": "admin@example.com", "settings": {},'
        ' "email_verified": true}',
    )


async def test_terminal_prompts_twice_and_never_echoes_the_password(
    client: Client, database: Database, tmp_path: Path
) -> None:
    code, stdout, shown = await asyncio.to_thread(type_password, tmp_path, url_of(database))
    assert (code, stdout) == (0, f"administrator  {EMAIL}\n")
    assert PASSWORD not in shown
    assert (await sign_in(client)).status == 200


async def test_existing_account_becomes_administrator_only_with_promote(
    client: Client, conn: Any, shell: Shell
) -> None:
    account = await register(client, email=EMAIL, password="the owner's own passphrase")
    (taken,) = await shell(f"create-admin --email {EMAIL.upper()}", read=(f"{PASSWORD}\n",))
    assert taken == (
        1,
        "",
        "shinkei: An account with this email already exists."
        " Use --promote to make it an administrator.\n",
    )
    refused = await client.get("/api/v1/users", headers=account.headers)
    assert refused.status == 403

    once, again = await shell(*[f"create-admin --promote --email {EMAIL}"] * 2)
    assert once == again == (0, f"administrator  {EMAIL}\n", "")
    listed = await client.get("/api/v1/users", headers=account.headers)
    assert (await listed.json())["items"][0]["version"] == 2
    assert (await sign_in(client, account.password)).status == 200, "the password is unchanged"
    assert await last_event(conn) == (
        "user.update",
        None,
        None,
        account.profile["id"],
        '{"role": "user"}',
        '{"role": "admin"}',
    )
    promotions = "select count(*) from audit_events where action ~ 'update|promote|create'"
    assert await conn.fetchval(promotions) == 1


async def test_only_active_accounts_can_be_promoted(client: Client, shell: Shell) -> None:
    admin, account = await register_as(client, "admin"), await register(client, email=EMAIL)
    url = f"/api/v1/users/{account.profile['id']}/suspend"
    await client.post(url, headers=admin.headers, json={"reason": "x"})
    suspended, nobody = await shell(
        f"create-admin --promote --email {EMAIL}",
        "create-admin --promote --email nobody@example.com",
    )
    line = "shinkei: There is no active account with this email.\n"
    assert suspended == nobody == (1, "", line)


def test_invalid_email_or_password_is_one_line_and_exit_code_2(
    database: Database, tmp_path: Path
) -> None:
    expected = [
        ("nonsense", PASSWORD, "--email: Not a valid email."),
        (EMAIL, "", "password: Must not be empty."),
        (EMAIL, "too short\n", "password: Must be at least 15 characters long."),
        (EMAIL, "x" * 257, "password: Must be at most 256 characters long."),
        # NFKC makes 18 characters of each.
        (EMAIL, "\ufdfa" * 15, "password: Must be at most 256 characters long."),
        # The byte order mark that some shells and editors write does not count.
        (EMAIL, "\ufeff14 characters.\n", "password: Must be at least 15 characters long."),
        # Bytes that are not UTF-8.
        (EMAIL, "\udcff" * 20, "password: Must not contain lone surrogates."),
    ]
    results = run_all(
        tmp_path,
        url_of(database),
        *(f"create-admin --email {email}" for email, _, _ in expected),
        read=[text for _, text, _ in expected],
    )
    for result, (_, _, line) in zip(results, expected, strict=True):
        assert result == (2, "", f"shinkei: {line}\n")


def test_pending_migrations_are_an_error(empty_database: Database, tmp_path: Path) -> None:
    command = f"create-admin --email {EMAIL}"
    (result,) = run_all(tmp_path, url_of(empty_database), command, read=[PASSWORD])
    pending = len(migrations.known_migrations())
    assert result == (1, "", f"shinkei: {pending} migrations pending: run shinkei migrate\n")


@pytest.mark.asvs("6.3.2")
@pytest.mark.slow
def test_create_admin_works_before_and_during_embedded_serving(tmp_path: Path) -> None:
    second = "second@example.com"
    assert create_admin("--email", EMAIL, cwd=tmp_path)[0] == 0
    with serving(tmp_path) as (_, url, _):
        assert create_admin("--email", second, cwd=tmp_path)[0] == 0
        for email in (EMAIL, second):
            credentials = {"email": email, "password": PASSWORD}
            status, tokens = call_url(f"{url}/api/v1/auth/login", credentials)
            assert status == 200
            status, page = call_url(f"{url}/api/v1/users", **bearer(tokens["access_token"]))
            assert (status, len(page["items"])) == (200, 2)
