"""Each action records one audit event with its actor, subject and changes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.settings import Database, Settings
from tests.support.clients import WITH_JOBS, Client, StartApp
from tests.support.factories import Account, register, register_as
from tests.support.factors import prove
from tests.support.processes import url_of
from tests.support.shell import run_all
from tests.support.steps import (
    NEW_PASSWORD,
    change_email,
    change_password,
    delete_account,
    forgot,
    link_about,
    mail_reset,
    refresh,
    reset,
    revert,
    send,
    sign_in,
    sign_in_again,
    verify,
)
from tests.support.tokens import published
from tests.support.waiting import eventually

OWN = "ada@example.com"
NEW = "ada.new@example.com"
VERIFY = "Confirm your email address"
CHANGE = "Confirm your new email address"
CHANGED = "The email address of your account was changed"

Act = Callable[[Client, Settings, Account, Account], Awaitable[Any]]


async def registering(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    """Do nothing: the account is already registered."""


async def signing_in(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    await sign_in_again(client, account)


async def verifying(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    await verify(client, await link_about(settings.data_dir, OWN, VERIFY))


async def forgetting(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    await forgot(client, OWN)


async def resetting(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    await reset(client, await mail_reset(client, settings.data_dir, account))


async def taking_over(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    token = await link_about(settings.data_dir, OWN, VERIFY)
    assert (await verify(client, token, new_password=NEW_PASSWORD)).status == 200


async def changing_the_password(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await change_password(client, account, account.password)


async def requesting_an_email_change(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await change_email(client, account, account.password, to=NEW)


async def changing_the_email(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await verifying(client, settings, account, admin)
    await requesting_an_email_change(client, settings, account, admin)
    await verify(client, await link_about(settings.data_dir, NEW, CHANGE))


async def reverting_the_email(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await changing_the_email(client, settings, account, admin)
    await revert(client, await link_about(settings.data_dir, OWN, CHANGED))


async def leaving(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    await delete_account(client, account, account.password)


async def reactivating(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await leaving(client, settings, account, admin)
    await sign_in(client, account)


async def ending_other_sessions(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    await sign_in_again(client, account)
    await send(client, "DELETE", "/users/me/sessions", by=account)


async def proving_again(
    client: Client, settings: Settings, account: Account, admin: Account
) -> None:
    assert (await prove(client, account.headers, password=account.password)).status == 200


async def replaying(client: Client, settings: Settings, account: Account, admin: Account) -> None:
    token = account.tokens["refresh_token"]
    second = (await (await refresh(client, token)).json())["refresh_token"]
    await refresh(client, second)
    await refresh(client, token)


OWNERS: list[tuple[Act, str, bool, Any, Any]] = [
    (registering, "user.register", True, None, None),
    (signing_in, "session.start", True, None, {"amr": ["pwd"]}),
    (
        verifying,
        "email.verify",
        True,
        {"email": OWN, "email_verified": False},
        {"email": OWN, "email_verified": True},
    ),
    (forgetting, "password.forgot", False, None, None),
    (resetting, "password.reset", True, None, None),
    (
        resetting,
        "email.verify",
        True,
        {"email": OWN, "email_verified": False},
        {"email": OWN, "email_verified": True},
    ),
    (taking_over, "password.reset", True, None, None),
    (
        taking_over,
        "email.verify",
        True,
        {"email": OWN, "email_verified": False},
        {"email": OWN, "email_verified": True},
    ),
    (changing_the_password, "password.change", True, None, None),
    (requesting_an_email_change, "email.change_request", True, None, {"email": NEW}),
    (
        changing_the_email,
        "email.change",
        True,
        {"email": OWN, "email_verified": True},
        {"email": NEW, "email_verified": True},
    ),
    (
        reverting_the_email,
        "email.revert",
        True,
        {"email": NEW, "email_verified": True},
        {"email": OWN, "email_verified": True},
    ),
    (leaving, "user.delete", True, None, None),
    (reactivating, "user.reactivate", True, {"status": "deleting"}, None),
    (ending_other_sessions, "session.end_others", True, None, None),
    (proving_again, "session.prove", True, None, {"method": "pwd"}),
    (replaying, "session.replay", False, None, None),
]


async def events_of(client: Client, admin: Account, subject: str, action: str) -> Any:
    path = f"/audit-events?subject_id={subject}&action={action}"
    response = await send(client, "GET", path, by=admin)
    assert response.status == 200
    return [
        (event["actor_id"], event["before"], event["after"])
        for event in (await response.json())["items"]
    ]


@pytest.mark.parametrize(
    ("act", "action", "by_owner", "before", "after"),
    OWNERS,
    ids=[f"{row[0].__name__}-{row[1]}" for row in OWNERS],
)
async def test_owner_action_is_recorded(
    client: Client,
    settings: Settings,
    act: Act,
    action: str,
    by_owner: bool,
    before: Any,
    after: Any,
) -> None:
    account, admin = await register(client, email=OWN), await register_as(client, "admin")
    await act(client, settings, account, admin)
    id_ = account.profile["id"]
    expected = (id_ if by_owner else None, before, after)
    assert await events_of(client, admin, id_, action) == [expected]


async def session_of(client: Client, account: Account) -> str:
    listed = await (await send(client, "GET", "/users/me/sessions", by=account)).json()
    return str(next(item["id"] for item in listed["items"] if item["current"]))


@pytest.mark.parametrize("how", ["logout", "by its id"])
async def test_owner_ending_a_session_is_recorded(client: Client, how: str) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    session_id = await session_of(client, account)
    if how == "logout":
        await send(client, "POST", "/auth/logout", by=account)
    else:
        await send(client, "DELETE", f"/users/me/sessions/{session_id}", by=account)
    id_ = account.profile["id"]
    assert await events_of(client, admin, id_, "session.end") == [
        (id_, {"session_id": session_id}, None)
    ]


async def test_admin_ending_a_session_is_recorded(client: Client) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    session_id, id_ = await session_of(client, account), account.profile["id"]
    await send(client, "DELETE", f"/users/{id_}/sessions/{session_id}", by=admin)
    expected = (admin.profile["id"], {"session_id": session_id}, None)
    assert await events_of(client, admin, id_, "session.end") == [expected]


ADMINISTRATORS: list[tuple[str, str, Any, str, Any, Any]] = [
    ("PATCH", "", {"name": "Ada"}, "user.update", {"name": ""}, {"name": "Ada"}),
    (
        "POST",
        "/suspend",
        {"reason": "spam"},
        "user.suspend",
        {"status": "active", "suspension_reason": None},
        {"status": "suspended", "suspension_reason": "spam"},
    ),
    ("POST", "/password-reset", None, "user.password_reset", None, None),
    ("DELETE", "/sessions", None, "session.end_all", None, None),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "action", "before", "after"),
    ADMINISTRATORS,
    ids=[row[3] for row in ADMINISTRATORS],
)
async def test_admin_action_is_recorded(
    client: Client, method: str, path: str, body: Any, action: str, before: Any, after: Any
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    id_, fresh = account.profile["id"], {"If-Match": '"1"'}
    response = await send(client, method, f"/users/{id_}{path}", body, by=admin, headers=fresh)
    assert response.status < 300
    expected = (admin.profile["id"], before, after)
    assert await events_of(client, admin, id_, action) == [expected]


async def test_reinstatement_is_recorded(client: Client) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    id_ = account.profile["id"]
    await send(client, "POST", f"/users/{id_}/suspend", {"reason": "spam"}, by=admin)
    await send(client, "POST", f"/users/{id_}/reinstate", by=admin)
    expected = (
        admin.profile["id"],
        {"status": "suspended", "suspension_reason": "spam"},
        {"status": "active", "suspension_reason": None},
    )
    assert await events_of(client, admin, id_, "user.reinstate") == [expected]


async def test_deletion_by_an_admin_is_recorded(client: Client) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    id_ = account.profile["id"]
    deleted = await (await send(client, "DELETE", f"/users/{id_}", by=admin)).json()
    expected = (
        admin.profile["id"],
        {"status": "active", "purge_at": None, "deleted_by_admin": False},
        {"status": "deleting", "purge_at": deleted["purge_at"], "deleted_by_admin": True},
    )
    assert await events_of(client, admin, id_, "user.delete") == [expected]


async def test_account_creation_by_an_admin_is_recorded(client: Client) -> None:
    admin = await register_as(client, "admin")
    body = {"email": NEW, "name": "Ada", "role": "support", "settings": {}}
    created = await (await send(client, "POST", "/users", body, by=admin)).json()
    expected = (admin.profile["id"], None, body)
    assert await events_of(client, admin, created["id"], "user.create") == [expected]


@pytest.mark.parametrize(
    ("due", "action", "before", "after"),
    [
        (
            "status = 'suspended', suspended_until = now()",
            "user.reinstate",
            {"status": "suspended"},
            {"status": "active"},
        ),
        ("status = 'deleting', purge_at = now()", "user.purge", None, None),
    ],
)
async def test_job_action_is_recorded_without_an_actor(
    client: Client,
    start_app: StartApp,
    conn: Any,
    due: str,
    action: str,
    before: Any,
    after: Any,
) -> None:
    """The job runs on a replica that starts later."""
    account, admin = await register(client), await register_as(client, "admin")
    id_ = account.profile["id"]
    await conn.execute(f"update users set {due} where id = $1", id_)
    await start_app(**WITH_JOBS)
    found = await eventually(lambda: events_of(client, admin, id_, action))
    assert found == [(None, before, after)]


@pytest.mark.parametrize(
    ("option", "action"), [("--now", "key.rotate"), ("--revoke", "key.revoke")]
)
async def test_signing_key_change_by_an_operator_is_recorded(
    client: Client, database: Database, tmp_path: Path, option: str, action: str
) -> None:
    admin = await register_as(client, "admin")
    before = await published(client)
    command = f"keys rotate {option}"
    (result,) = await asyncio.to_thread(run_all, tmp_path, url_of(database), command)
    assert result.code == 0
    response = await send(client, "GET", f"/audit-events?action={action}", by=admin)
    (event,) = (await response.json())["items"]
    assert (event["actor_id"], event["before"]) == (None, {"keys": before})
    assert event["after"]["key"] == result.stdout.split()[0]


@pytest.mark.parametrize("act", ["suspend", "reinstate"])
async def test_account_change_by_an_operator_is_recorded(
    client: Client, database: Database, tmp_path: Path, act: str
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    email, id_ = account.profile["email"], account.profile["id"]
    commands = [f"users suspend {email} --reason spam", f"users reinstate {email}"]
    results = await asyncio.to_thread(run_all, tmp_path, url_of(database), *commands)
    assert [result.code for result in results] == [0, 0]
    active = {"status": "active", "suspension_reason": None}
    suspended = {"status": "suspended", "suspension_reason": "spam"}
    changed = (active, suspended) if act == "suspend" else (suspended, active)
    assert await events_of(client, admin, id_, f"user.{act}") == [(None, *changed)]


async def test_promotion_by_an_operator_is_recorded(
    client: Client, database: Database, tmp_path: Path
) -> None:
    account, admin = await register(client), await register_as(client, "admin")
    command = ["create-admin", "--email", account.profile["email"], "--promote"]
    (result,) = await asyncio.to_thread(run_all, tmp_path, url_of(database), command)
    assert result.code == 0
    expected = (None, {"role": "user"}, {"role": "admin"})
    assert await events_of(client, admin, account.profile["id"], "user.update") == [expected]
