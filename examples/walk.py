"""Every flow of accounts over HTTP, one after the other, against a running service.

    make serve                                                          # in one terminal
    .venv/bin/shinkei create-admin --email root@example.com             # asks for a password
    ADMIN_PASSWORD='…' .venv/bin/python examples/walk.py                # in another

Links are read from the mails in DATA_DIR/mail, as there is no MAIL_URL in development.
SHINKEI_URL, DATA_DIR, ADMIN_EMAIL and ADMIN_PASSWORD say otherwise.
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

# A new email at each run, so that the walk can be repeated.
ADDRESS = f"ada-{secrets.token_hex(4)}@example.com"
NEW_ADDRESS = f"countess-{secrets.token_hex(4)}@example.com"
PASSWORD = "the analytical engine weaves"
SECOND_PASSWORD = "algebraic patterns, as a loom"
THIRD_PASSWORD = "weaves flowers and leaves too"


class Client:
    """One signed-in client: a session of HTTP, and a pair of tokens."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.tokens: dict[str, Any] = {}

    async def call(
        self, expected: int, method: str, path: str, body: object = None, **headers: str
    ) -> Any:
        """Send a request, say what came back, and stop where it is not what was expected."""
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
        answer = await self.call(expected, "POST", "/auth/login", credentials)
        self.tokens = answer if expected == 200 else {}


async def token_from_mail(recipient: str, subject: str) -> str:
    """The token in the newest mail to ``recipient`` with this word in its subject; deletes it."""
    for _ in range(100):
        for path in sorted(MAIL_DIR.glob("*.eml"), reverse=True):
            mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            part = mail.get_body(("plain",))
            found = part and re.search(r"#token=([\w-]+)", part.get_content())
            if mail["To"] == recipient and subject in mail["Subject"].lower() and found:
                path.unlink()
                return found[1]
        await asyncio.sleep(0.1)
    sys.exit(f"no mail about {subject} to {recipient} in {MAIL_DIR}")


async def walk_as_owner(ada: Client, other: Client) -> None:
    print("-- registration, asked for twice under one key")
    body = {"email": ADDRESS, "password": PASSWORD, "name": "Ada"}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = await ada.call(201, "POST", "/auth/register", body, **key)
    again = await ada.call(201, "POST", "/auth/register", body, **key)
    assert first == again
    ada.tokens = first
    await other.call(409, "POST", "/auth/register", body)

    print("-- the email: verified by the link in the mail")
    token = await token_from_mail(ADDRESS, "confirm")
    await other.call(204, "POST", "/auth/email/verify", {"token": token})

    print("-- the profile, with optimistic concurrency")
    await ada.call(200, "GET", "/users/me")
    change = {"name": "Ada Lovelace", "settings": {"ui_theme": "dark", "language": "en"}}
    await ada.call(200, "PATCH", "/users/me", change, **{"If-Match": '"2"'})
    await ada.call(412, "PATCH", "/users/me", change, **{"If-Match": '"2"'})
    await ada.call(200, "PUT", "/users/me", {"settings": {"language": "fr"}})

    print("-- sessions: a second one, refreshed, listed, ended")
    await other.sign_in(ADDRESS.upper(), PASSWORD)
    used = other.tokens["refresh_token"]
    other.tokens = await other.call(200, "POST", "/auth/refresh", {"refresh_token": used})
    sessions = (await ada.call(200, "GET", "/users/me/sessions"))["items"]
    (theirs,) = [session["id"] for session in sessions if not session["current"]]
    await ada.call(204, "DELETE", f"/users/me/sessions/{theirs}")
    await other.call(401, "GET", "/users/me")

    print("-- the password: changed, forgotten, set anew by the link in the mail")
    change = {"current_password": PASSWORD, "password": SECOND_PASSWORD}
    await ada.call(204, "POST", "/users/me/password", change)
    other.tokens = {}
    await other.call(202, "POST", "/auth/password/forgot", {"email": ADDRESS})
    token = await token_from_mail(ADDRESS, "mot de passe")
    reset = {"token": token, "password": THIRD_PASSWORD}
    await other.call(204, "POST", "/auth/password/reset", reset)
    await other.call(400, "POST", "/auth/password/reset", reset)
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(ADDRESS, SECOND_PASSWORD, 401)
    await ada.sign_in(ADDRESS, THIRD_PASSWORD)

    print("-- the email: changed, confirmed at the new one")
    change = {"email": NEW_ADDRESS, "password": THIRD_PASSWORD}
    await ada.call(202, "POST", "/users/me/email", change)
    token = await token_from_mail(NEW_ADDRESS, "adresse")
    await ada.call(204, "POST", "/auth/email/verify", {"token": token})
    assert (await ada.call(200, "GET", "/users/me"))["email"] == NEW_ADDRESS


async def walk_as_administrator(root: Client, ada: Client) -> None:
    print("-- administration: found, changed, suspended, reinstated")
    await root.sign_in(ADMIN_EMAIL, ADMIN_PASSWORD)
    found = await root.call(200, "GET", f"/users?email={NEW_ADDRESS}&status=active")
    (user,) = found["items"]
    path = f"/users/{user['id']}"
    await root.call(428, "PATCH", path, {"role": "support"})
    match = {"If-Match": f'"{user["version"]}"'}
    await root.call(200, "PATCH", path, {"role": "support"}, **match)
    await ada.call(200, "GET", "/users?limit=1")
    await ada.call(403, "GET", "/audit-events")
    await root.call(200, "POST", f"{path}/suspend", {"reason": "an example"})
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(NEW_ADDRESS, THIRD_PASSWORD, 401)
    await root.call(200, "POST", f"{path}/reinstate")
    events = await root.call(200, "GET", f"/audit-events?subject_id={user['id']}&limit=200")
    print("   " + ", ".join(event["action"] for event in events["items"]))


async def leave(ada: Client) -> None:
    print("-- leaving: exported, deleted, taken back, deleted")
    await ada.sign_in(NEW_ADDRESS, THIRD_PASSWORD)
    export = await ada.call(200, "GET", "/users/me/export")
    print("   " + ", ".join(f"{len(part)} {name}" for name, part in export.items()))
    await ada.call(202, "DELETE", "/users/me", {"password": THIRD_PASSWORD})
    await ada.call(401, "GET", "/users/me")
    await ada.sign_in(NEW_ADDRESS, THIRD_PASSWORD)
    await ada.call(204, "POST", "/auth/logout")
    await ada.call(401, "GET", "/users/me")


async def main() -> None:
    async with aiohttp.ClientSession() as http:
        ada, other, root = Client(http), Client(http), Client(http)
        await walk_as_owner(ada, other)
        if ADMIN_PASSWORD:
            await walk_as_administrator(root, ada)
        else:
            print("-- no ADMIN_PASSWORD: administration left out")
        await leave(ada)
    print("done")


if __name__ == "__main__":
    asyncio.run(main())
