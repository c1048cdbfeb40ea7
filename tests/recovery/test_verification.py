"""``/auth/email/verify``: a link needs a second proof, of who owns the account."""

from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.clients import Client, StartApp
from tests.support.factories import Account, assert_problem, pointers, register
from tests.support.holding import holding
from tests.support.steps import (
    NEW_PASSWORD,
    WRONG,
    change_email,
    is_signed_in,
    link_about,
    mail_reset,
    mails,
    reset,
    send,
    sign_in,
    sign_in_again,
    verify,
)

VERIFY = "Confirm your email address"
CHANGE = "Confirm your new email address"
NEW = "new@example.com"
KINDS = ["verification", "change"]


async def link(client: Client, settings: Settings, account: Account, kind: str) -> str:
    """Return the token of a link that verifies or changes the account's email."""
    if kind == "verification":
        return await link_about(settings.data_dir, account.profile["email"], VERIFY)
    assert (await change_email(client, account, account.password, to=NEW)).status == 202
    return await link_about(settings.data_dir, NEW, CHANGE)


async def is_done(client: Client, account: Account, kind: str) -> bool:
    """Return whether the link has been used, as its owner sees it."""
    me = await (await send(client, "GET", "/users/me", by=account)).json()
    return bool(me["email_verified"] if kind == "verification" else me["email"] == NEW)


@pytest.mark.parametrize("kind", KINDS)
async def test_link_alone_is_not_enough(client: Client, settings: Settings, kind: str) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    response = await send(client, "POST", "/auth/email/verify", {"token": token})
    await assert_problem(response, 403, "proof_required")
    assert not await is_done(client, account, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_refused_link_still_works(client: Client, settings: Settings, kind: str) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    await send(client, "POST", "/auth/email/verify", {"token": token})
    assert (await verify(client, token, by=account)).status == 200


@pytest.mark.parametrize(
    ("kind", "done"), [("verification", "verified"), ("change", "email_changed")]
)
@pytest.mark.parametrize("proof", ["session", "password"])
async def test_link_with_a_proof_is_used_and_says_what_was_done(
    client: Client, settings: Settings, kind: str, done: str, proof: str
) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    response = await verify(client, token, by=account if proof == "session" else None)
    assert (response.status, await response.json()) == (200, {"done": done})
    assert await is_done(client, account, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_session_of_another_account_is_no_proof(
    client: Client, settings: Settings, kind: str
) -> None:
    account, other = await register(client), await register(client)
    token = await link(client, settings, account, kind)
    await assert_problem(await verify(client, token, by=other), 403, "proof_required")


@pytest.mark.parametrize("kind", KINDS)
async def test_password_of_another_account_is_no_proof(
    client: Client, settings: Settings, kind: str
) -> None:
    account = await register(client)
    other = await register(client, password=NEW_PASSWORD)
    token = await link(client, settings, account, kind)
    response = await verify(client, token, by=other, password=NEW_PASSWORD)
    await assert_problem(response, 403, "wrong_password")


@pytest.mark.parametrize("kind", KINDS)
async def test_ended_session_is_no_proof(client: Client, settings: Settings, kind: str) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    assert (await send(client, "POST", "/auth/logout", by=account)).status == 204
    await assert_problem(await verify(client, token, by=account), 401, "invalid_token")


@pytest.mark.parametrize("kind", KINDS)
async def test_session_that_ends_at_the_same_moment_is_no_proof(
    client: Client, settings: Settings, conn: Any, kind: str
) -> None:
    account = await register(client)
    elsewhere = await sign_in_again(client, account)
    token = await link(client, settings, account, kind)
    listed = await (await send(client, "GET", "/users/me/sessions", by=elsewhere)).json()
    (first,) = [item["id"] for item in listed["items"] if not item["current"]]
    async with holding(conn, "select from users for update") as start:
        verifying = await start(verify(client, token, by=account))
        await send(client, "DELETE", f"/users/me/sessions/{first}", by=elsewhere)
    await assert_problem(await verifying, 401, "invalid_token")


@pytest.mark.parametrize("kind", KINDS)
async def test_password_that_is_replaced_at_the_same_moment_is_no_proof(
    client: Client, settings: Settings, conn: Any, kind: str
) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    async with holding(conn, "update users set password_hash = 'another'") as start:
        verifying = await start(verify(client, token, password=account.password))
    await assert_problem(await verifying, 403, "wrong_password")


async def test_email_verified_at_the_same_moment_is_not_taken_over(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    async with holding(conn, "update users set email_verified_at = now()") as start:
        verifying = await start(verify(client, token, new_password=NEW_PASSWORD))
    await assert_problem(await verifying, 400, "invalid_token")


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_password_leaves_the_link_usable(
    client: Client, settings: Settings, kind: str
) -> None:
    account = await register(client)
    token = await link(client, settings, account, kind)
    await assert_problem(await verify(client, token, password=WRONG), 403, "wrong_password")
    assert (await verify(client, token, password=account.password)).status == 200


async def test_new_password_does_not_confirm_a_change_of_email(
    client: Client, settings: Settings
) -> None:
    """The new email may be mistyped, and its mailbox somebody else's."""
    account = await register(client)
    token = await link(client, settings, account, "change")
    response = await verify(client, token, new_password=NEW_PASSWORD)
    await assert_problem(response, 403, "proof_required")
    assert (await sign_in(client, account)).status == 200


async def test_new_password_replaces_the_old_one(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    response = await verify(client, token, new_password=NEW_PASSWORD)
    assert (response.status, await response.json()) == (200, {"done": "verified"})
    assert (await sign_in(client, account)).status == 401
    assert (await sign_in(client, account, NEW_PASSWORD)).status == 200


async def test_new_password_ends_even_the_callers_session(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    assert (await verify(client, token, by=account, new_password=NEW_PASSWORD)).status == 200
    assert not await is_signed_in(client, account)


async def test_password_keeps_all_sessions(client: Client, settings: Settings) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    assert (await verify(client, token, password=account.password)).status == 200
    assert await is_signed_in(client, account)


@pytest.mark.asvs("6.2.11")
@pytest.mark.parametrize("password", ["short", "123456789012345", "Ada Lovelace Ada"])
async def test_weak_new_password_is_refused_and_leaves_the_link_usable(
    client: Client, settings: Settings, password: str
) -> None:
    account = await register(client, name="Ada Lovelace")
    token = await link(client, settings, account, "verification")
    response = await verify(client, token, new_password=password)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/new_password"}
    assert (await verify(client, token, new_password=NEW_PASSWORD)).status == 200


async def test_password_and_new_password_together_are_refused(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    response = await verify(client, token, password=account.password, new_password=NEW_PASSWORD)
    problem = await assert_problem(response, 422, "invalid_fields")
    assert pointers(problem) == {"#/new_password"}


async def test_new_password_is_not_set_on_a_verified_account(
    client: Client, settings: Settings, conn: Any
) -> None:
    """An administrator may verify an email while a link is on its way."""
    account = await register(client)
    token = await link(client, settings, account, "verification")
    await conn.execute("update users set email_verified_at = now()")
    response = await verify(client, token, new_password=NEW_PASSWORD)
    await assert_problem(response, 400, "invalid_token")
    assert (await sign_in(client, account)).status == 200


async def test_verifying_a_verified_email_changes_nothing(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    await conn.execute("update users set email_verified_at = now()")
    assert (await verify(client, token, by=account)).status == 200
    me = await send(client, "GET", "/users/me", by=account)
    assert me.headers["ETag"] == '"1"'


@pytest.mark.parametrize("proof", [{"password": WRONG}, {"new_password": "short"}])
async def test_invalid_link_is_refused_before_the_password_is_checked(
    client: Client, proof: dict[str, str]
) -> None:
    await assert_problem(await verify(client, "made-up", by=None, **proof), 400, "invalid_token")


@pytest.mark.asvs("6.3.1")
@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_passwords_count_toward_the_sign_in_limit(
    start_app: StartApp, settings: Settings, kind: str
) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    account = await register(client)
    token = await link(client, settings, account, kind)
    for _ in range(3):
        await verify(client, token, password=WRONG)
    response = await verify(client, token, password=account.password)
    await assert_problem(response, 429, "too_many_requests")
    await assert_problem(await sign_in(client, account), 429, "too_many_requests")


async def test_right_password_is_refunded(start_app: StartApp, settings: Settings) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(1, 3600))
    account = await register(client)
    token = await link(client, settings, account, "verification")
    assert (await verify(client, token, password=account.password)).status == 200
    assert (await sign_in(client, account)).status == 200


@pytest.mark.parametrize("proof", ["session", "password", "new_password"])
async def test_lost_response_is_replayed(client: Client, settings: Settings, proof: str) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    proofs = {"password": account.password, "new_password": NEW_PASSWORD}
    body = {"token": token, **({proof: proofs[proof]} if proof in proofs else {})}
    by, key = account if proof == "session" else None, {"Idempotency-Key": "once"}
    for _ in range(2):
        response = await send(client, "POST", "/auth/email/verify", body, by=by, headers=key)
        assert (response.status, await response.json()) == (200, {"done": "verified"})


@pytest.mark.parametrize("proof", ["session", "password", "new_password"])
async def test_verified_email_has_no_verification_link(
    client: Client, settings: Settings, conn: Any, proof: str
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    # Left behind by two requests for a link.
    await conn.execute(
        "insert into action_tokens (token_hash, purpose, user_id, email, expires_at)"
        " select 'other', purpose, user_id, email, expires_at from action_tokens"
    )
    proofs = {"password": account.password, "new_password": NEW_PASSWORD}
    given = {proof: proofs[proof]} if proof in proofs else {}
    by = account if proof == "session" else None
    assert (await verify(client, token, by=by, **given)).status == 200
    left = "select count(*) from action_tokens where purpose = 'email_verify'"
    assert await conn.fetchval(left) == 0


async def test_new_password_is_notified(client: Client, settings: Settings, conn: Any) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    await verify(client, token, new_password=NEW_PASSWORD)
    sent = await mails(settings.data_dir, conn)
    assert sent == [(account.profile["email"], "Your password was changed")]


async def test_new_password_makes_the_clients_network_known(
    client: Client, settings: Settings, conn: Any
) -> None:
    account = await register(client)
    token = await link(client, settings, account, "verification")
    await conn.execute("delete from known_networks")
    await verify(client, token, new_password=NEW_PASSWORD)
    assert await conn.fetchval("select count(*) from known_networks") == 1


async def test_pending_change_of_email_survives_a_verification_with_the_password(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    changing = await link(client, settings, account, "change")
    verifying = await link(client, settings, account, "verification")
    assert (await verify(client, verifying, password=account.password)).status == 200
    assert (await verify(client, changing, by=account)).status == 200


async def test_change_of_email_with_a_password_that_was_reset_is_refused(
    client: Client, settings: Settings
) -> None:
    account = await register(client)
    changing = await link(client, settings, account, "change")
    token = await mail_reset(client, settings.data_dir, account)
    assert (await reset(client, token)).status == 204
    assert (await verify(client, changing, password=NEW_PASSWORD)).status == 400
    elsewhere = await sign_in_again(client, account._replace(password=NEW_PASSWORD))
    assert not await is_done(client, elsewhere, "change")
