"""Walks through every account flow over HTTP, against a running service.

    make serve                                                          # in one terminal
    .venv/bin/shinkei create-admin --email root@example.com             # asks for a password
    ADMIN_PASSWORD='…' .venv/bin/python examples/walk.py                # in another

Links are read from the emails in DATA_DIR/mail, as development has no MAIL_URL. SHINKEI_URL,
DATA_DIR and ADMIN_EMAIL override the defaults. Without ADMIN_PASSWORD, administration is skipped.
"""

import asyncio
import email
import email.policy
import os
import re
import secrets
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp

URL = os.environ.get("SHINKEI_URL", "http://127.0.0.1:8080") + "/api/v1"
MAIL_DIR = Path(os.environ.get("DATA_DIR", ".data")) / "mail"
ADMIN_EMAIL = os.environ.get("ADMIN_EMAIL", "root@example.com")
ADMIN_PASSWORD = os.environ.get("ADMIN_PASSWORD", "")

# New emails for each run, so that it can be repeated.
EMAIL = f"ada-{secrets.token_hex(4)}@example.com"
NEW_EMAIL = f"countess-{secrets.token_hex(4)}@example.com"
PASSWORD = "the analytical engine weaves"
SECOND_PASSWORD = "algebraic patterns, as a loom"
THIRD_PASSWORD = "weaves flowers and leaves too"


class Client:
    """A client: an HTTP session and, once signed in, a pair of tokens."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.tokens: dict[str, Any] = {}

    async def call(
        self, expected: int, method: str, path: str, body: object = None, **headers: str
    ) -> Any:
        """Send a request and print the status. Exits if it is not the expected one."""
        if self.tokens:
            headers["Authorization"] = f"Bearer {self.tokens['access_token']}"
        async with self.http.request(method, URL + path, json=body, headers=headers) as response:
            text = await response.text()
            print(f"{response.status}  {method:6} {path}")
            if response.status != expected:
                sys.exit(f"expected {expected}: {text}")
            return await response.json(content_type=None) if text else None

    async def sign_in(self, email: str, password: str, expected: int = 200) -> None:
        self.tokens = {}
        credentials = {"email": email, "password": password}
        response = await self.call(expected, "POST", "/auth/login", credentials)
        self.tokens = response if expected == 200 else {}


async def token_from_mail(recipient: str, subject: str) -> str:
    """Take the token from the newest email to ``recipient`` with ``subject`` in its subject.

    Waits for the email and deletes it.
    """
    for _ in range(100):
        for path in sorted(MAIL_DIR.glob("*.eml"), reverse=True):
            mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            part = mail.get_body(("plain",))
            found = part and re.search(r"#token=([\w-]+)", part.get_content())
            if mail["To"] == recipient and subject in mail["Subject"].lower() and found:
                path.unlink()
                return found[1]
        await asyncio.sleep(0.1)
    sys.exit(f"no email about {subject} to {recipient} in {MAIL_DIR}")


async def walk_as_owner(ada: Client, other: Client) -> None:
    print("-- registration, sent twice with one idempotency key")
    body = {"email": EMAIL, "password": PASSWORD, "name": "Ada"}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = await ada.call(201, "POST", "/auth/register", body, **key)
    again = await ada.call(201, "POST", "/auth/register", body, **key)
    assert first == again
    ada.tokens = first
    await other.call(409, "POST", "/auth/register", body)

    print("-- email: verified with the emailed link")
    token = await token_from_mail(EMAIL, "confirm")
    await other.call(200, "POST", "/auth/links/inspect", {"token": token})
    await other.call(403, "POST", "/auth/email/verify", {"token": token})
    await other.call(200, "POST", "/auth/email/verify", {"token": token, "password": PASSWORD})

    print("-- profile, with optimistic concurrency")
    await ada.call(200, "GET", "/users/me")
    change = {"name": "Ada Lovelace", "settings": {"ui_theme": "dark", "language": "en"}}
    await ada.call(200, "PATCH", "/users/me", change, **{"If-Match": '"2"'})
    await ada.call(412, "PATCH", "/users/me", change, **{"If-Match": '"2"'})
    await ada.call(200, "PUT", "/users/me", {"settings": {"language": "fr"}})

    print("-- sessions: a second one, refreshed, listed and ended")
    await other.sign_in(EMAIL.upper(), PASSWORD)
    used = other.tokens["refresh_token"]
    other.tokens = await other.call(200, "POST", "/auth/refresh", {"refresh_token": used})
    sessions = (await ada.call(200, "GET", "/users/me/sessions"))["items"]
    (theirs,) = [session["id"] for session in sessions if not session["current"]]
    await ada.call(204, "DELETE", f"/users/me/sessions/{theirs}")
    await other.call(401, "GET", "/users/me")

    print("-- password: changed, then reset with the emailed link")
    change = {"current_password": PASSWORD, "password": SECOND_PASSWORD}
    await ada.call(204, "POST", "/users/me/password", change)
    other.tokens = {}
    await other.call(202, "POST", "/auth/password/forgot", {"email": EMAIL})
    token = await token_from_mail(EMAIL, "mot de passe")
    reset = {"token": token, "password": THIRD_PASSWORD}
    await other.call(204, "POST", "/auth/password/reset", reset)
    await other.call(400, "POST", "/auth/password/reset", reset)
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(EMAIL, SECOND_PASSWORD, 401)
    await ada.sign_in(EMAIL, THIRD_PASSWORD)

    print("-- email: changed, and confirmed from the new one")
    change = {"email": NEW_EMAIL, "password": THIRD_PASSWORD}
    await ada.call(202, "POST", "/users/me/email", change)
    token = await token_from_mail(NEW_EMAIL, "adresse")
    await ada.call(200, "POST", "/auth/email/verify", {"token": token})
    assert (await ada.call(200, "GET", "/users/me"))["email"] == NEW_EMAIL

    print("-- email: restored from the old one, which sets a new password")
    token = await token_from_mail(EMAIL, "changée")
    link = await other.call(200, "POST", "/auth/links/inspect", {"token": token})
    assert (link["purpose"], link["email"]) == ("email_revert", EMAIL)
    await other.call(200, "POST", "/auth/email/revert", {"token": token})
    await ada.call(401, "GET", "/users/me")
    token = await token_from_mail(EMAIL, "mot de passe")
    reset = {"token": token, "password": SECOND_PASSWORD}
    await other.call(204, "POST", "/auth/password/reset", reset)
    await ada.sign_in(EMAIL, SECOND_PASSWORD)


async def walk_as_administrator(root: Client, ada: Client) -> None:
    print("-- administration: an account found, changed, suspended, reinstated")
    await root.sign_in(ADMIN_EMAIL, ADMIN_PASSWORD)
    found = await root.call(200, "GET", f"/users?email={EMAIL}&status=active")
    (user,) = found["items"]
    path = f"/users/{user['id']}"
    await root.call(428, "PATCH", path, {"role": "support"})
    match = {"If-Match": f'"{user["version"]}"'}
    await root.call(200, "PATCH", path, {"role": "support"}, **match)
    await ada.call(200, "GET", "/users?limit=1")
    await ada.call(403, "GET", "/audit-events")
    await root.call(200, "POST", f"{path}/suspend", {"reason": "an example"})
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(EMAIL, SECOND_PASSWORD, 401)
    await root.call(200, "POST", f"{path}/reinstate")
    events = await root.call(200, "GET", f"/audit-events?subject_id={user['id']}&limit=200")
    print("   " + ", ".join(event["action"] for event in events["items"]))


async def leave(ada: Client) -> None:
    print("-- leaving: exported, deleted, restored by signing in")
    await ada.sign_in(EMAIL, SECOND_PASSWORD)
    export = await ada.call(200, "GET", "/users/me/export")
    print("   " + ", ".join(f"{len(part)} {name}" for name, part in export.items()))
    await ada.call(202, "DELETE", "/users/me", {"password": SECOND_PASSWORD})
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(EMAIL, SECOND_PASSWORD)
    await ada.call(204, "POST", "/auth/logout")
    await ada.call(401, "GET", "/users/me")

    print("-- signed out with the refresh token, as after the access token has expired")
    await ada.sign_in(EMAIL, SECOND_PASSWORD)
    refresh_token = {"refresh_token": ada.tokens["refresh_token"]}
    ada.tokens = {}
    await ada.call(204, "POST", "/auth/logout", refresh_token)
    await ada.call(401, "POST", "/auth/refresh", refresh_token)


async def main() -> None:
    async with aiohttp.ClientSession() as http:
        ada, other, root = Client(http), Client(http), Client(http)
        await walk_as_owner(ada, other)
        if ADMIN_PASSWORD:
            await walk_as_administrator(root, ada)
        else:
            print("-- administration skipped: ADMIN_PASSWORD is not set")
        await leave(ada)
    print("done")


if __name__ == "__main__":
    asyncio.run(main())
