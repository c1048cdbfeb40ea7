"""Sealed data is bound to its row and purpose, and fails to open anywhere else."""

import hashlib
import uuid
from typing import Any

import pytest
from aiohttp import web

from service.app import create_app
from service.audit.events import Operator
from service.auth.signing_keys import rotate_keys
from service.db.transactions import write
from service.settings import Settings, SettingsError
from tests.support.clients import Client
from tests.support.factories import PASSWORD, assert_problem, register
from tests.support.logbook import logged
from tests.support.steps import forgot, send
from tests.support.waiting import eventually

BODY = {"email": "ada@example.com", "password": PASSWORD}
LATER = "alter table mail_outbox alter next_attempt_at set default now() + interval '1 hour'"


async def register_once(client: Client, key: str, email: str = "ada@example.com") -> Any:
    body = {"email": email, "password": PASSWORD}
    headers = {"Idempotency-Key": key}
    return await send(client, "POST", "/auth/register", body, headers=headers)


async def test_stored_response_moved_to_another_key_is_rejected(client: Client, conn: Any) -> None:
    assert (await register_once(client, "one")).status == 201
    await conn.execute("update idempotency_keys set key = 'two'")
    await assert_problem(await register_once(client, "two"), 422, "idempotent_answer_lost")


async def test_stored_response_moved_to_another_caller_is_rejected(
    client: Client, conn: Any
) -> None:
    """The response may hold tokens, which write access to the table must not expose over HTTP."""
    ada, eve = await register(client), await register(client)
    body = {"password": "a passphrase nobody has guessed", "current_password": PASSWORD}
    key = {"Idempotency-Key": "one"}
    changed = await send(client, "POST", "/users/me/password", body, headers={**ada.headers, **key})
    assert changed.status == 204
    ours, theirs = (
        f"\\x{hashlib.sha256(a.profile['id'].encode()).hexdigest()}" for a in (eve, ada)
    )
    moved = await conn.execute(
        "update idempotency_keys set caller = $1::text::bytea where caller = $2::text::bytea",
        ours,
        theirs,
    )
    assert moved == "UPDATE 1"
    response = await send(
        client, "POST", "/users/me/password", body, headers={**eve.headers, **key}
    )
    await assert_problem(response, 422, "idempotent_answer_lost")


async def test_mail_moved_to_another_row_is_not_sent(
    client: Client, settings: Settings, conn: Any
) -> None:
    await conn.execute(LATER)
    await register(client, email="ada@example.com")
    await register(client, email="eve@example.com")
    with logged() as logs:
        await conn.execute(
            "update mail_outbox set message = other.message, next_attempt_at = now()"
            " from mail_outbox as other where other.id <> mail_outbox.id"
        )
        await eventually(lambda: len(outcomes(logs)) >= 2)
    assert {entry.get("reason") for entry in outcomes(logs)} == {"SealError"}
    assert not (settings.data_dir / "mail").exists()


async def test_stored_response_cannot_be_sent_as_mail(client: Client, conn: Any) -> None:
    await conn.execute(LATER)
    assert (await register_once(client, str(uuid.uuid4()))).status == 201
    with logged() as logs:
        await conn.execute(
            "insert into mail_outbox (id, message, expires_at, next_attempt_at)"
            " select key::uuid, answer, now() + interval '1 hour', now() from idempotency_keys"
        )
        await eventually(lambda: outcomes(logs))
    assert [entry.get("reason") for entry in outcomes(logs)] == ["SealError"]


async def test_mail_cannot_be_replayed_as_a_response(client: Client, conn: Any) -> None:
    await conn.execute(LATER)
    await register(client, email="eve@example.com")
    mail_id = str(await conn.fetchval("select id from mail_outbox"))
    assert (await register_once(client, mail_id)).status == 201
    await conn.execute(
        "update idempotency_keys set answer = message"
        " from mail_outbox where mail_outbox.id::text = key"
    )
    await assert_problem(await register_once(client, mail_id), 422, "idempotent_answer_lost")


async def test_signing_key_moved_to_another_row_prevents_startup(
    client: Client, settings: Settings, conn: Any
) -> None:
    assert client.app is not None
    await write(client.app, rotate_keys, settings, Operator("grace"), now=False)
    await conn.execute(
        "update signing_keys set encrypted_key = other.encrypted_key"
        " from signing_keys as other where other.id <> signing_keys.id"
    )
    runner = web.AppRunner(create_app(settings))
    try:
        with pytest.raises(SettingsError, match="^SECRET_KEY"):
            await runner.setup()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ["mail", "response"])
async def test_sealed_data_with_a_flipped_bit_is_rejected(
    client: Client, conn: Any, name: str
) -> None:
    await conn.execute(LATER)
    assert (await register_once(client, "one")).status == 201
    if name == "response":
        await conn.execute(
            "update idempotency_keys set answer = set_bit(answer, 100, 1 - get_bit(answer, 100))"
        )
        await assert_problem(await register_once(client, "one"), 422, "idempotent_answer_lost")
        return
    with logged() as logs:
        await conn.execute(
            "update mail_outbox set message = set_bit(message, 100, 1 - get_bit(message, 100)),"
            " next_attempt_at = now()"
        )
        await eventually(lambda: outcomes(logs))
    assert [entry.get("reason") for entry in outcomes(logs)] == ["SealError"]


async def test_same_idempotency_key_of_another_caller_is_a_different_request(
    client: Client, conn: Any
) -> None:
    """Replaying the first caller's response would leave the second request undone."""
    body, headers = {"email": "new@example.com", "password": PASSWORD}, {"Idempotency-Key": "one"}
    for account in (await register(client), await register(client)):
        response = await send(client, "POST", "/users/me/email", body, by=account, headers=headers)
        assert response.status == 202
    asked = "select count(distinct user_id) from action_tokens where purpose = 'email_change'"
    assert await conn.fetchval(asked) == 2


async def test_idempotency_key_cannot_be_reused_on_another_path(client: Client) -> None:
    account = await register(client)
    body, headers = {"email": account.profile["email"]}, {"Idempotency-Key": "one"}
    response = await send(client, "POST", "/auth/password/forgot", body, headers=headers)
    assert response.status == 202
    response = await send(client, "POST", "/auth/email/verify/resend", body, headers=headers)
    await assert_problem(response, 422, "idempotency_key_reused")


async def test_request_without_a_key_runs_each_time(client: Client, conn: Any) -> None:
    account = await register(client)
    tokens = "select token_hash from action_tokens where purpose = 'password_reset'"
    seen = set()
    for _ in range(2):
        await forgot(client, account.profile["email"])
        seen.add(await conn.fetchval(tokens))
    assert len(seen) == 2


def outcomes(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in logs if entry["event"] in ("mail not sent", "mail written")]
