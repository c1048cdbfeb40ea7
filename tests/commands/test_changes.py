"""``shinkei users create``, ``set-role``, ``reset-password`` and ``delete``."""

from pathlib import Path
from typing import Any

import pytest

from service.settings import Database, Settings
from tests.support.clients import Client
from tests.support.factories import PASSWORD, Account, register, register_as
from tests.support.factors import add_totp
from tests.support.mailbox import next_mail, token_of
from tests.support.shell import Shell
from tests.support.steps import (
    NEW_PASSWORD,
    RESET,
    is_signed_in,
    link_about,
    mails,
    reset,
    send,
    sign_in,
)

EMAIL = "ada@example.com"
VERIFY = "Confirm your email address"


@pytest.fixture
async def admin(client: Client) -> Account:
    return await register_as(client, "admin", email="root@example.com")


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path)


async def log_in(client: Client, password: str) -> int:
    body = {"email": EMAIL, "password": password}
    return (await send(client, "POST", "/auth/login", body)).status


async def show(client: Client, admin: Account, id_: str) -> Any:
    return await (await send(client, "GET", f"/users/{id_}", by=admin)).json()


async def test_created_account_signs_in_with_the_password_from_stdin(
    client: Client, shell: Shell
) -> None:
    (created,) = await shell(f"users create {EMAIL} --verified", read=[f"{PASSWORD}\n"])
    assert created == (0, f"created  {EMAIL}\n", "")
    assert await log_in(client, PASSWORD) == 200


async def test_created_account_is_printed_as_the_api_shows_it(
    client: Client, admin: Account, shell: Shell
) -> None:
    words = ["users", "create", EMAIL, "--name", "Ada Lovelace", "--role", "support", "--verified"]
    (created,) = await shell([*words, "--json"], read=[PASSWORD])
    account = created.json()
    assert account == await show(client, admin, account["id"])
    assert (account["name"], account["role"], account["email_verified"]) == (
        "Ada Lovelace",
        "support",
        True,
    )


async def test_owner_of_a_created_account_sets_the_password_by_link(
    client: Client, shell: Shell, settings: Settings
) -> None:
    (created,) = await shell(f"users create {EMAIL} --mail-link")
    assert created.code == 0
    token = await link_about(settings.data_dir, EMAIL, RESET)
    assert (await reset(client, token)).status == 204
    assert await log_in(client, NEW_PASSWORD) == 200


@pytest.mark.parametrize(
    ("options", "subjects"), [("", [VERIFY]), ("--verified", []), ("--mail-link", [RESET])]
)
async def test_created_account_gets_the_mail_it_needs(
    client: Client, shell: Shell, settings: Settings, conn: Any, options: str, subjects: list[str]
) -> None:
    (created,) = await shell(f"users create {EMAIL} {options}", read=[PASSWORD])
    assert created.code == 0
    assert await mails(settings.data_dir, conn) == [(EMAIL, subject) for subject in subjects]


async def test_create_rejects_what_the_api_rejects(client: Client, shell: Shell) -> None:
    await register(client, email="taken@example.com")
    expected = {
        "taken@example.com": (1, "An account with this email already exists."),
        "nonsense": (2, "EMAIL: Not a valid email."),
        f"{EMAIL} --role king": (2, "--role: Must be one of: user, support, admin."),
        f"{EMAIL} --operator \u200b": (
            2,
            "--operator: Must not contain control or invisible characters.",
        ),
    }
    results = await shell(
        *(f"users create {words}" for words in expected), read=[PASSWORD] * len(expected)
    )
    lines = [(code, "", f"shinkei: {line}\n") for code, line in expected.values()]
    assert results == lines


async def test_create_rejects_a_weak_password(client: Client, shell: Shell) -> None:
    (refused,) = await shell(f"users create {EMAIL}", read=["passwordpassword"])
    line = "shinkei: password: This password is too common or too easy to guess.\n"
    assert refused == (2, "", line)


async def test_role_takes_effect_on_the_next_request(
    client: Client, admin: Account, shell: Shell
) -> None:
    account = await register(client, email=EMAIL)
    once, again = await shell(*[f"users set-role {EMAIL} support"] * 2)
    assert once == again == (0, f"support  {EMAIL}\n", "")
    assert (await send(client, "GET", "/users", by=account)).status == 200
    assert (await show(client, admin, account.profile["id"]))["version"] == 2


async def test_set_role_rejects_an_unknown_role(client: Client, shell: Shell) -> None:
    await register(client, email=EMAIL)
    (refused,) = await shell(f"users set-role {EMAIL} king")
    assert refused == (2, "", "shinkei: ROLE: Must be one of: user, support, admin.\n")


@pytest.mark.parametrize("command", ["set-role {} user", "delete {}"])
async def test_last_administrator_is_kept(
    client: Client, admin: Account, shell: Shell, command: str
) -> None:
    (refused,) = await shell(f"users {command.format('root@example.com')}")
    assert (refused.code, refused.stdout) == (1, "")
    assert "This is the last active administrator." in refused.stderr
    assert await is_signed_in(client, admin)


async def test_reset_password_mails_a_link(
    client: Client, shell: Shell, settings: Settings
) -> None:
    account = await register(client, email=EMAIL)
    (mailed,) = await shell(f"users reset-password {EMAIL}")
    assert mailed == (0, f"mailed  {EMAIL}\n", "")
    assert (await sign_in(client, account)).status == 200, "the old password still works"
    token = await link_about(settings.data_dir, EMAIL, RESET)
    assert (await reset(client, token)).status == 204


async def test_reset_password_prints_a_link_and_mails_nothing(
    client: Client, shell: Shell, settings: Settings, conn: Any
) -> None:
    await register(client, email=EMAIL)
    (printed,) = await shell(f"users reset-password {EMAIL} --print")
    link, _, token = printed.stdout.strip().partition("#token=")
    assert link.endswith("/password/reset")
    assert (await reset(client, token)).status == 204
    assert (EMAIL, RESET) not in await mails(settings.data_dir, conn)


async def test_newer_printed_link_ends_the_older_one(client: Client, shell: Shell) -> None:
    await register(client, email=EMAIL)
    printed = await shell(*[f"users reset-password {EMAIL} --print"] * 2)
    tokens = [result.stdout.strip().partition("#token=")[2] for result in printed]
    assert [(await reset(client, token)).status for token in tokens] == [400, 204]


async def test_reset_password_prints_json(client: Client, shell: Shell) -> None:
    await register(client, email=EMAIL)
    mailed, printed = await shell(
        f"users reset-password {EMAIL} --json", f"users reset-password {EMAIL} --print --json"
    )
    assert mailed.json() == {"email": EMAIL, "link": None}
    assert "#token=" in printed.json()["link"]


async def test_reset_factors_lets_the_owner_in_with_the_password_alone(
    client: Client, admin: Account, shell: Shell, settings: Settings, conn: Any
) -> None:
    account = await register(client, email=EMAIL)
    await add_totp(client, account.headers)
    (done,) = await shell(f"users reset-factors {EMAIL} --operator grace")
    assert done == (0, f"removed 1  {EMAIL}\n", "")
    assert not await is_signed_in(client, account)
    assert (await sign_in(client, account)).status == 200
    assert not (await show(client, admin, account.profile["id"]))["has_second_factor"]
    assert (EMAIL, "A second factor was removed from your account") in await mails(
        settings.data_dir, conn
    )
    events = await (await send(client, "GET", "/audit-events?limit=2", by=admin)).json()
    event = next(event for event in events["items"] if event["action"] == "factor.remove")
    assert (event["operator"], event["actor_id"]) == ("grace", None)
    assert event["subject_id"] == account.profile["id"]


async def test_reset_factors_of_an_account_without_any_changes_nothing(
    client: Client, shell: Shell, settings: Settings, conn: Any
) -> None:
    account = await register(client, email=EMAIL)
    plain, as_json = await shell(
        f"users reset-factors {EMAIL}", f"users reset-factors {EMAIL} --json"
    )
    assert plain == (0, f"removed 0  {EMAIL}\n", "")
    assert as_json.json() == {"email": EMAIL, "removed": 0}
    assert await is_signed_in(client, account)
    assert not await conn.fetchval("select count(*) from audit_events where operator is not null")


async def test_mail_that_the_service_could_not_open_is_never_enqueued(
    client: Client, shell: Shell, conn: Any
) -> None:
    await register(client, email=EMAIL)
    commands = [
        *(f"reset-password {EMAIL}", f"reset-factors {EMAIL}", f"delete {EMAIL}"),
        "create new@example.com --mail-link",
    ]
    results = await shell(*(f"SECRET_KEY={'x' * 40} users {words}" for words in commands))
    line = "shinkei: SECRET_KEY: expected the value that sealed this database's signing keys\n"
    assert results == [(2, "", line)] * 4


async def test_deletion_ends_sessions_and_only_an_operator_cancels_it(
    client: Client, shell: Shell
) -> None:
    account = await register(client, email=EMAIL)
    (deleted,) = await shell(f"users delete {EMAIL}")
    assert deleted == (0, f"deleting  {EMAIL}\n", "")
    assert not await is_signed_in(client, account)
    assert (await sign_in(client, account)).status == 401
    await shell(f"users reinstate {EMAIL}")
    assert (await sign_in(client, account)).status == 200


async def test_deletion_is_printed_as_the_api_shows_it(
    client: Client, admin: Account, shell: Shell
) -> None:
    account = await register(client, email=EMAIL)
    once, again = await shell(*[f"users delete {EMAIL} --json"] * 2)
    assert once.json() == again.json() == await show(client, admin, account.profile["id"])
    assert once.json()["status"] == "deleting"


async def test_owner_is_notified_of_a_deletion(
    client: Client, shell: Shell, settings: Settings
) -> None:
    await register(client, email=EMAIL)
    token_of(await next_mail(settings.data_dir, EMAIL))
    await shell(f"users delete {EMAIL}")
    mail = await next_mail(settings.data_dir, EMAIL)
    assert mail["Subject"] == "An administrator is deleting your account"


async def test_suspension_and_reinstatement_are_printed_as_json(
    client: Client, admin: Account, shell: Shell
) -> None:
    account = await register(client, email=EMAIL)
    suspended, reinstated = await shell(
        f"users suspend {EMAIL} --reason spam --json", f"users reinstate {EMAIL} --json"
    )
    assert suspended.json()["suspension_reason"] == "spam"
    assert reinstated.json() == await show(client, admin, account.profile["id"])


async def test_unknown_account_is_an_error(client: Client, shell: Shell) -> None:
    results = await shell(
        "users set-role nobody@example.com user",
        "users reset-password nobody@example.com",
        "users reset-factors nobody@example.com",
        "users delete nobody@example.com",
    )
    assert results == [(1, "", "shinkei: There is no such account.\n")] * 4
