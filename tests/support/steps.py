"""Actions of owners and administrators over HTTP, and the mail that they receive."""

import email
import email.policy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse

from tests.support.clients import Client
from tests.support.factories import PASSWORD, Account, bearer
from tests.support.mailbox import next_mail, token_of
from tests.support.waiting import eventually

API = "/api/v1"
WRONG = "not the password of it"
# The subject of mails whose link resets a password.
RESET = "Choose a new password"
NEW_PASSWORD = "quite another phrase than that"

Asking = Callable[[Client, Account, str], Awaitable[ClientResponse]]


async def send(
    client: Client,
    method: str,
    path: str,
    body: Any = None,
    *,
    by: Account | None = None,
    headers: dict[str, str] | None = None,
) -> ClientResponse:
    """Send a request, signed in as ``by`` if given, and return any response."""
    sent = {**(by.headers if by else {}), **(headers or {})}
    return await client.request(method, f"{API}{path}", json=body, headers=sent)


async def sign_in(client: Client, account: Account, password: str | None = None) -> ClientResponse:
    body = {"email": account.profile["email"], "password": password or account.password}
    return await send(client, "POST", "/auth/login", body)


async def sign_in_again(client: Client, account: Account) -> Account:
    """Return the account signed in to a new session."""
    response = await sign_in(client, account)
    assert response.status == 200, await response.text()
    tokens = await response.json()
    return account._replace(headers=bearer(tokens["access_token"]), tokens=tokens)


async def is_signed_in(client: Client, account: Account) -> bool:
    return (await send(client, "GET", "/users/me", by=account)).status == 200


async def change_password(client: Client, account: Account, password: str) -> ClientResponse:
    """Change the password to NEW_PASSWORD, giving ``password`` as the current one."""
    body = {"current_password": password, "password": NEW_PASSWORD}
    return await send(client, "POST", "/users/me/password", body, by=account)


async def change_email(
    client: Client, account: Account, password: str, to: str = "new@example.com"
) -> ClientResponse:
    return await send(
        client, "POST", "/users/me/email", {"email": to, "password": password}, by=account
    )


async def delete_account(client: Client, account: Account, password: str) -> ClientResponse:
    return await send(client, "DELETE", "/users/me", {"password": password}, by=account)


# Actions that ask for the current password.
ASKING: dict[str, Asking] = {
    "change of password": change_password,
    "change of email": change_email,
    "deletion": delete_account,
}


async def forgot(client: Client, email: str) -> ClientResponse:
    return await send(client, "POST", "/auth/password/forgot", {"email": email})


async def resend(client: Client, email: str) -> ClientResponse:
    return await send(client, "POST", "/auth/email/verify/resend", {"email": email})


async def reset(client: Client, token: str, password: str = NEW_PASSWORD) -> ClientResponse:
    body = {"token": token, "password": password}
    return await send(client, "POST", "/auth/password/reset", body)


async def verify(
    client: Client, token: str, *, by: Account | None = None, **proof: str
) -> ClientResponse:
    """Use a link that verifies or changes an email.

    Unless signed in as ``by`` or given another proof, send the password of ``register``.
    """
    if by is None and not proof:
        proof = {"password": PASSWORD}
    return await send(client, "POST", "/auth/email/verify", {"token": token, **proof}, by=by)


async def revert(client: Client, token: str) -> ClientResponse:
    return await send(client, "POST", "/auth/email/revert", {"token": token})


async def inspect_link(client: Client, token: str) -> ClientResponse:
    return await send(client, "POST", "/auth/links/inspect", {"token": token})


async def refresh(client: Client, token: str) -> ClientResponse:
    return await send(client, "POST", "/auth/refresh", {"refresh_token": token})


async def link_to(data_dir: Path, email: str) -> str:
    """Return the token in the next mail to this email."""
    return token_of(await next_mail(data_dir, email))


async def mail_reset(client: Client, data_dir: Path, account: Account) -> str:
    """Request a password reset and return the mailed token."""
    email = account.profile["email"]
    assert (await forgot(client, email)).status == 202
    return await link_about(data_dir, email, RESET)


async def link_about(data_dir: Path, email: str, subject: str) -> str:
    """Return the token in the next mail to this email with this subject."""
    while True:
        mail = await next_mail(data_dir, email)
        if str(mail["Subject"]) == subject:
            return token_of(mail)


async def mails(data_dir: Path, conn: Any) -> list[tuple[str, str]]:
    """Return recipient and subject of all unread mail, once the outbox is empty."""
    await eventually(lambda: _outbox_is_empty(conn))
    found = []
    for path in sorted((data_dir / "mail").glob("*.eml")):
        mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        found.append((str(mail["To"]), str(mail["Subject"])))
    return found


async def _outbox_is_empty(conn: Any) -> bool:
    return not await conn.fetchval("select exists (select from mail_outbox)")
