"""``shinkei create-admin``: the first administrator."""

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import migrate
from service.settings import Database
from tests.support.clients import Client
from tests.support.factories import PASSWORD, bearer, register, register_as
from tests.support.processes import call as call_url
from tests.support.processes import environment, serving, url_of

EMAIL = "admin@example.com"


def create_admin(
    *arguments: str, cwd: Path, stdin: str | bytes = f"{PASSWORD}\n", **variables: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "service", "create-admin", *arguments],
        cwd=cwd,
        env=environment(**variables),
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        timeout=50,
        check=False,
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


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
    """Exit code, stdout, and what the terminal showed while the password was typed twice."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "create-admin", "--email", EMAIL],
        cwd=cwd,
        env=environment(**variables),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        # Without a controlling terminal, getpass asks on the one that is stdin.
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    for expected in (b"Password: ", b"Repeat for confirmation: "):
        while expected not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, f"{PASSWORD}\n".encode())
    stdout, _ = process.communicate(timeout=30)
    os.close(ours)
    return process.returncode, stdout.decode(), shown.decode()


async def test_password_from_stdin(
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
        '{"role": "admin", "email": "admin@example.com"}',
    )


async def test_password_on_a_terminal_twice_and_never_echoed(
    client: Client, database: Database, tmp_path: Path
) -> None:
    code, stdout, shown = await asyncio.to_thread(type_password, tmp_path, url_of(database))
    assert (code, stdout) == (0, f"administrator  {EMAIL}\n")
    assert PASSWORD not in shown
    assert (await sign_in(client)).status == 200


async def test_an_existing_account_only_with_promote(
    client: Client, conn: Any, database: Database, tmp_path: Path
) -> None:
    account = await register(client, email=EMAIL, password="the owner's own passphrase")
    external = url_of(database)
    code, stdout, stderr = await asyncio.to_thread(
        create_admin, "--email", EMAIL.upper(), cwd=tmp_path, **external
    )
    assert (code, stdout) == (1, "")
    assert stderr == (
        "shinkei: There is an account with this address. --promote makes it an administrator.\n"
    )
    refused = await client.get("/api/v1/users", headers=account.headers)
    assert refused.status == 403

    for _ in range(2):
        arguments = ("--promote", "--email", EMAIL)
        code, _, stderr = await asyncio.to_thread(
            create_admin, *arguments, cwd=tmp_path, stdin="", **external
        )
        assert (code, stderr) == (0, "")
    listed = await client.get("/api/v1/users", headers=account.headers)
    assert (await listed.json())["items"][0]["version"] == 2
    assert (await sign_in(client, account.password)).status == 200, "the password stays"
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


async def test_only_an_active_account_is_promoted(
    client: Client, database: Database, tmp_path: Path
) -> None:
    admin, account = await register_as(client, "admin"), await register(client, email=EMAIL)
    url = f"/api/v1/users/{account.profile['id']}/suspend"
    await client.post(url, headers=admin.headers, json={"reason": "x"})
    for email in (EMAIL, "nobody@example.com"):
        result = await asyncio.to_thread(
            create_admin, "--promote", "--email", email, cwd=tmp_path, **url_of(database)
        )
        assert result == (1, "", "shinkei: There is no active account with this address.\n")


@pytest.mark.parametrize(
    ("email", "stdin", "line"),
    [
        ("nonsense", PASSWORD, "shinkei: --email: Not a valid e-mail address.\n"),
        (EMAIL, "", "shinkei: password: Must not be empty.\n"),
        (EMAIL, "too short\n", "shinkei: password: Must be at least 15 characters long.\n"),
        (EMAIL, "x" * 257, "shinkei: password: Must be at most 256 characters long.\n"),
        (EMAIL, b"\xff" * 20, "shinkei: password: Must not contain lone surrogates.\n"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    database: Database, tmp_path: Path, email: str, stdin: str | bytes, line: str
) -> None:
    result = create_admin("--email", email, cwd=tmp_path, stdin=stdin, **url_of(database))
    assert result == (2, "", line)


def test_a_database_that_is_not_migrated(empty_database: Database, tmp_path: Path) -> None:
    code, stdout, stderr = create_admin("--email", EMAIL, cwd=tmp_path, **url_of(empty_database))
    pending = len(migrate.known_migrations())
    assert (code, stdout) == (1, "")
    assert stderr == f"shinkei: {pending} migrations pending: run shinkei migrate\n"


def test_on_the_embedded_server_before_and_while_it_serves(tmp_path: Path) -> None:
    for email in (EMAIL, "second@example.com"):
        if email == EMAIL:
            code, _, stderr = create_admin("--email", email, cwd=tmp_path)
            assert (code, stderr) == (0, "")
            continue
        with serving(tmp_path) as (_, url, _):
            code, _, stderr = create_admin("--email", email, cwd=tmp_path)
            assert (code, stderr) == (0, "")
            for each in (EMAIL, email):
                credentials = {"email": each, "password": PASSWORD}
                status, tokens = call_url(f"{url}/api/v1/auth/login", credentials)
                assert status == 200
                status, page = call_url(f"{url}/api/v1/users", **bearer(tokens["access_token"]))
                assert (status, len(page["items"])) == (200, 2)
