"""Walks through every route of the API against a running service, and explains each request.

    make serve                                                  # in one terminal
    .venv/bin/shinkei create-admin --email root@example.com     # in another; asks for a password
    ADMIN_PASSWORD='…' .venv/bin/python examples/walk.py

Each line has a request, the status of its response, and what it shows. An unexpected status ends
the walk with exit code 1. The API itself cannot create the first administrator, so the command line
does. Without ADMIN_PASSWORD, the steps of administration are left out.

Links come by email. Without MAIL_URL, the service writes emails to DATA_DIR/mail, where this script
reads them. SHINKEI_URL, DATA_DIR and ADMIN_EMAIL override the defaults. The accounts have new
emails each time, so that the walk can be repeated, and are deleted at the end.

Apps and passkeys are played by a few functions below. Passkeys belong to the origin of a web site,
which is PUBLIC_ORIGIN, so this does not work if that is an IP address.
"""

import asyncio
import base64
import email
import email.policy
import hashlib
import hmac
import os
import re
import secrets
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.cose import CoseKey
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    Aaguid,
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

FIRST_PASSWORD = "the analytical engine weaves"
SECOND_PASSWORD = "algebraic patterns, as a loom"
THIRD_PASSWORD = "weaves flowers and leaves too"

# A passkey's algorithm (COSE), and what it says of its user, who was there and has been recognized.
ES256 = -7
VERIFIED = AuthenticatorData.FLAG.UP | AuthenticatorData.FLAG.UV

# Routes for other programs, and for people with a browser.
PUBLIC = {
    "/": "A page that says what runs here.",
    "/health/startup": "The service has been ready once.",
    "/health/live": "The process runs.",
    "/health/ready": "It can serve: the database responds.",
    "/health": "The same, under a shorter name.",
    "/.well-known/jwks.json": "The public keys with which other services verify access tokens.",
    "/.well-known/webauthn": "The origins whose pages may use the same passkeys.",
    "/openapi.json": "The description of every route, for programs.",
    "/docs": "The same for people, who can try every request in a browser.",
    "/docs/page.js": "A part of that page.",
    "/docs/session.js": "A part of that page.",
    "/docs/factors.js": "A part of that page.",
    "/docs/page.css": "A part of that page.",
    "/docs/swagger-ui.js": "A part of that page.",
    "/docs/swagger-ui.css": "A part of that page.",
}


class UnexpectedError(Exception):
    """A response or an email is not as expected."""


class Client:
    """A client: a browser or a program, with a pair of tokens once it has signed in."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.tokens: dict[str, Any] = {}
        # The version of the account that this client has read last.
        self.etag = ""

    async def send(
        self,
        method: str,
        path: str,
        expected: int,
        sentence: str,
        body: object = None,
        **headers: str,
    ) -> Any:
        """Send a request, print the step, and return the response's JSON, or text, or None."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.tokens:
            headers["Authorization"] = f"Bearer {self.tokens['access_token']}"
        async with self.http.request(method, path, json=body, headers=headers) as response:
            text = await response.text()
            shown = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{id}", path)
            print(f"{method:6} {shown:33} {response.status}  {sentence}")
            if response.status != expected:
                raise UnexpectedError(f"expected {expected}: {text}")
            self.etag = response.headers.get("ETag", self.etag)
            return await response.json() if response.content_type.endswith("json") else text

    async def sign_in(
        self, email: str, password: str, sentence: str = "Signs in.", expected: int = 200
    ) -> Any:
        """Sign in, and return the response."""
        self.tokens = {}
        credentials = {"email": email, "password": password}
        response = await self.send("POST", "/api/v1/auth/login", expected, sentence, credentials)
        self.tokens = response if expected == 200 else {}
        return response


def code_of(secret: str, steps: int = 0) -> str:
    """Return the code that an app with this key shows now, or so many steps of 30 s later.

    RFC 6238 says how it is made.
    """
    step = int(time.time()) // 30 + steps
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    start = mac[-1] & 15
    number = int.from_bytes(mac[start : start + 4], "big") & 0x7FFFFFFF
    return f"{number % 1_000_000:06}"


class Passkey:
    """A passkey, and the browser that takes it to a page of ``origin``.

    In a page, ``navigator.credentials`` does all this, and ``toJSON()`` returns the result.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.id = secrets.token_bytes(16)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.user_handle = ""

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        """Make the credential that is stored."""
        self.user_handle = options["user"]["id"]
        public_key = CoseKey.for_alg(ES256).from_cryptography_key(self.key.public_key())
        stored = AttestedCredentialData.create(Aaguid.NONE, self.id, public_key)
        data = self._data(options["rp"]["id"], VERIFIED | AuthenticatorData.FLAG.AT, stored)
        client_data = self._client_data("webauthn.create", options)
        attestation = AttestationObject.create("none", data, {})
        return self._credential(client_data, attestationObject=attestation)

    def get(self, options: dict[str, Any]) -> dict[str, Any]:
        """Sign the challenge."""
        data = self._data(options["rpId"], VERIFIED)
        client_data = self._client_data("webauthn.get", options)
        signature = self.key.sign(data + client_data.hash, ec.ECDSA(hashes.SHA256()))
        return self._credential(
            client_data,
            authenticatorData=data,
            signature=signature,
            userHandle=websafe_decode(self.user_handle),
        )

    def _data(
        self, site: str, flags: AuthenticatorData.FLAG, stored: bytes = b""
    ) -> AuthenticatorData:
        site_hash, count = hashlib.sha256(site.encode()).digest(), 0
        return AuthenticatorData(AuthenticatorData.create(site_hash, flags, count, stored))

    def _client_data(self, type_: str, options: dict[str, Any]) -> CollectedClientData:
        return CollectedClientData.create(type_, options["challenge"], self.origin)

    def _credential(self, client_data: bytes, **response: bytes) -> dict[str, Any]:
        response["clientDataJSON"] = client_data
        encoded = {name: websafe_encode(value) for name, value in response.items()}
        credential_id = websafe_encode(self.id)
        return {
            "id": credential_id,
            "rawId": credential_id,
            "type": "public-key",
            "response": encoded,
        }


class Mailbox:
    """The emails that the service has written to files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def take_token(self, recipient: str, page: str) -> str:
        """Wait for an email to ``recipient`` with a link to ``page`` of the front end.

        Deletes the email and returns the link's token. The front end's page would send it as the
        steps below do.
        """
        for _ in range(600):
            for path in sorted(self.directory.glob("*.eml")):
                mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
                part = mail.get_body(("plain",))
                found = part and re.search(rf"{page}#token=([\w-]+)", part.get_content())
                if mail["To"] == recipient and found:
                    path.unlink()
                    return found[1]
            await asyncio.sleep(0.1)
        raise UnexpectedError(f"no email to {recipient} with a link to {page} in {self.directory}")


def headline(text: str) -> None:
    print(f"\n{text}")


async def look_around(anyone: Client) -> None:
    headline("For programs and browsers, without signing in")
    for path, sentence in PUBLIC.items():
        await anyone.send("GET", path, 200, sentence)


async def register(ada: Client, other: Client, mailbox: Mailbox, ada_email: str) -> None:
    headline("Ada registers and verifies her email")
    body = {"email": ada_email, "password": FIRST_PASSWORD, "name": "Ada"}
    path, key = "/api/v1/auth/register", str(uuid.uuid4())
    first = await ada.send(
        "POST", path, 201, "The account is created and signed in.", body, Idempotency_Key=key
    )
    again = await ada.send(
        "POST", path, 201, "The same key gets the same response.", body, Idempotency_Key=key
    )
    if again != first:
        raise UnexpectedError("the response to the repeated request is another one")
    await other.send("POST", path, 409, "Without a key, the email is taken.", body)

    first_link = await mailbox.take_token(ada_email, "/email/verify")
    await other.send(
        "POST",
        "/api/v1/auth/links/inspect",
        200,
        "Says what the emailed link does, without using it.",
        {"token": first_link},
    )
    await other.send(
        "POST",
        "/api/v1/auth/email/verify/resend",
        202,
        "Another link is sent.",
        {"email": ada_email},
    )
    token = await mailbox.take_token(ada_email, "/email/verify")
    path = "/api/v1/auth/email/verify"
    await other.send("POST", path, 400, "It replaces the first link.", {"token": first_link})
    await other.send("POST", path, 403, "A link alone proves too little.", {"token": token})
    body = {"token": token, "password": FIRST_PASSWORD}
    await other.send("POST", path, 200, "With the password, it verifies the email.", body)
    ada.tokens = first


async def change_profile(ada: Client) -> None:
    headline("Ada changes her profile, and overwrites nobody's change")
    path = "/api/v1/users/me"
    await ada.send("GET", path, 200, "Her profile. The ETag names its version.")
    read = ada.etag
    change = {"name": "Ada Lovelace", "settings": {"ui_theme": "dark", "language": "en"}}
    await ada.send("PATCH", path, 200, "Changes only what is sent.", change, If_Match=read)
    await ada.send("PATCH", path, 412, "The ETag is an old one by now.", change, If_Match=read)
    change = {"settings": {"language": "fr"}}
    await ada.send("PUT", path, 200, "Replaces all settings.", change, If_Match=ada.etag)


async def use_sessions(ada: Client, laptop: Client, ada_email: str) -> None:
    headline("Ada signs in on a laptop, and ends that session from her first device")
    await laptop.sign_in(ada_email.upper(), FIRST_PASSWORD, "Capitals make no difference.")
    used = {"refresh_token": laptop.tokens["refresh_token"]}
    path = "/api/v1/auth/refresh"
    laptop.tokens = await laptop.send("POST", path, 200, "A refresh token gets new tokens.", used)
    path = "/api/v1/users/me/sessions"
    sessions = (await ada.send("GET", path, 200, "Both sessions."))["items"]
    (laptops,) = [session["id"] for session in sessions if not session["current"]]
    await ada.send("DELETE", f"{path}/{laptops}", 204, "Ends the laptop's.")
    await laptop.send("GET", "/api/v1/users/me", 401, "It is signed out from the next request on.")
    await laptop.sign_in(ada_email, FIRST_PASSWORD, "The laptop signs in again.")
    await ada.send("DELETE", path, 204, "Ends all sessions but this one.")
    await laptop.send("GET", "/api/v1/users/me", 401, "The laptop is signed out again.")
    await laptop.sign_in(ada_email, FIRST_PASSWORD, "The laptop signs in once more.")
    await laptop.send("POST", "/api/v1/auth/logout", 204, "The laptop signs out by itself.")
    laptop.tokens = {}


async def change_password(ada: Client, other: Client, mailbox: Mailbox, ada_email: str) -> None:
    headline("Ada changes her password, forgets it, and resets it with an emailed link")
    change = {"current_password": FIRST_PASSWORD, "password": SECOND_PASSWORD}
    await ada.send("POST", "/api/v1/users/me/password", 204, "Needs the current one.", change)
    await other.send(
        "POST",
        "/api/v1/auth/password/forgot",
        202,
        "Sends a link, if there is such an account.",
        {"email": ada_email},
    )
    token = await mailbox.take_token(ada_email, "/password/reset")
    reset = {"token": token, "password": THIRD_PASSWORD}
    path = "/api/v1/auth/password/reset"
    await other.send("POST", path, 204, "The link sets a new password.", reset)
    await other.send("POST", path, 400, "It works only once.", reset)
    await ada.send("GET", "/api/v1/users/me", 401, "All sessions have ended.")
    await ada.sign_in(ada_email, SECOND_PASSWORD, "The old password is refused.", 401)
    await ada.sign_in(ada_email, THIRD_PASSWORD, "The new one signs in.")


async def change_email(ada: Client, other: Client, mailbox: Mailbox, ada_email: str) -> None:
    headline("Ada changes her email, and restores the old one")
    new_email = f"countess-{ada_email}"
    change = {"email": new_email, "password": THIRD_PASSWORD}
    await ada.send("POST", "/api/v1/users/me/email", 202, "Sends a link to the new one.", change)
    link = {"token": await mailbox.take_token(new_email, "/email/verify")}
    await ada.send("POST", "/api/v1/auth/email/verify", 200, "The link changes it.", link)
    profile = await ada.send("GET", "/api/v1/users/me", 200, "Her profile has the new one.")
    if profile["email"] != new_email:
        raise UnexpectedError(f"her email is {profile['email']}")
    link = {"token": await mailbox.take_token(ada_email, "/email/revert")}
    await other.send(
        "POST", "/api/v1/auth/email/revert", 200, "A link to the old one restores it.", link
    )
    await ada.send("GET", "/api/v1/users/me", 401, "All sessions have ended, for safety.")
    token = await mailbox.take_token(ada_email, "/password/reset")
    reset = {"token": token, "password": SECOND_PASSWORD}
    await other.send(
        "POST", "/api/v1/auth/password/reset", 204, "The old mailbox sets a new password.", reset
    )
    await ada.sign_in(ada_email, SECOND_PASSWORD, "Ada signs in with it.")


async def use_an_app(ada: Client, ada_email: str) -> None:
    headline("Ada adds an app that makes one-time codes")
    factors, name = "/api/v1/users/me/factors", {"name": "Phone"}
    app = await ada.send("POST", f"{factors}/totp", 201, "A key for the app.", name)
    key, path = app["secret"], f"{factors}/{app['id']}"
    confirmed = await ada.send(
        "POST", f"{path}/confirm", 200, "A code confirms it.", {"code": code_of(key)}
    )
    left = len(confirmed["recovery_codes"])
    await ada.send("GET", factors, 200, f"Her factors. With the first came {left} recovery codes.")
    problem = await ada.sign_in(ada_email, SECOND_PASSWORD, "Her password is not enough now.", 401)
    second = {"challenge": problem["challenge"], "code": code_of(key, 1)}
    ada.tokens = await ada.send(
        "POST", "/api/v1/auth/second-factor", 200, "A code completes it. Each is good once.", second
    )
    await ada.send("POST", "/api/v1/users/me/recovery-codes", 201, "New recovery codes.")
    await ada.send("PATCH", path, 200, "Renames the app.", {"name": "Old phone"})


async def use_a_passkey(ada: Client, ada_email: str) -> None:
    headline("Ada adds a passkey, and signs in with it")
    auth, me = "/api/v1/auth", "/api/v1/users/me"
    public = "/.well-known/webauthn"
    sites = await ada.send("GET", public, 200, "Where her passkey will work.")
    passkey = Passkey(sites["origins"][0])
    asked = await ada.send("POST", f"{me}/passkeys/options", 200, "What her browser is to make.")
    made = {"challenge_id": asked["challenge_id"], "credential": passkey.create(asked["options"])}
    await ada.send("POST", f"{me}/passkeys", 201, "Stores the passkey.", made)

    problem = await ada.sign_in(ada_email, SECOND_PASSWORD, "The password, as before.", 401)
    second = {"challenge": problem["challenge"]}
    path = f"{auth}/second-factor"
    asked = await ada.send("POST", f"{path}/options", 200, "What is to be signed.", second)
    second["credential"] = passkey.get(asked["options"])
    await ada.send("POST", path, 200, "The passkey is a second factor.", second)

    signed = await sign_challenge(ada, passkey)
    ada.tokens = await ada.send("POST", f"{auth}/passkey", 200, "Or it signs in by itself.", signed)
    signed = await sign_challenge(ada, passkey)
    proved = await ada.send(
        "POST", f"{auth}/reauthenticate", 200, "Proves again that it is Ada.", signed
    )
    ada.tokens |= proved
    own = {"current_password": SECOND_PASSWORD}
    await ada.send("DELETE", f"{me}/password", 204, "From now on, only passkeys sign in.", own)
    again = {"password": SECOND_PASSWORD}
    await ada.send("POST", f"{me}/password", 204, "Or a password, after all.", again)
    factors = (await ada.send("GET", f"{me}/factors", 200, "The app and the passkey."))["items"]
    for factor in factors:
        await ada.send("DELETE", f"{me}/factors/{factor['id']}", 204, "Removes one.")


async def sign_challenge(client: Client, passkey: Passkey) -> dict[str, Any]:
    path = "/api/v1/auth/passkey/options"
    asked = await client.send("POST", path, 200, "What is to be signed, by anybody.")
    return {"challenge_id": asked["challenge_id"], "credential": passkey.get(asked["options"])}


async def write_a_world(ada: Client) -> None:
    headline("Ada creates a world, with events on its timeline")
    api = "/api/v1"
    world = {"name": "Orrery", "laws": {"physics": "Light is slow."}}
    world = await ada.send("POST", f"{api}/worlds", 201, "A world of her own.", world)
    path = f"{api}/worlds/{world['id']}"
    await ada.send("GET", f"{api}/worlds", 200, "Her worlds, newest first.")
    await ada.send("GET", path, 200, "The world, with its version.")
    change = {"chronology_mode": "fragmented"}
    await ada.send("PUT", path, 200, "Changes only what is sent.", change, If_Match=ada.etag)
    event = {"t": 2145, "label_time": "Year 2145", "type": "major", "summary": "The sun sets."}
    sunset = await ada.send("POST", f"{path}/events", 201, "An event.", event)
    later = {"t": 2146, "type": "minor", "summary": "A lamp goes out."}
    dark = await ada.send("POST", f"{path}/events", 201, "A later one.", later)
    await ada.send("GET", f"{path}/events", 200, "The events, by time.")
    cause = f"{api}/events/{dark['id']}/dependencies/{sunset['id']}"
    await ada.send("POST", cause, 204, "The first causes the second.")
    circle = f"{api}/events/{sunset['id']}/dependencies/{dark['id']}"
    await ada.send("POST", circle, 422, "Causes cannot go round in a circle.")
    await ada.send("GET", f"{path}/events/dependency-graph", 200, "What causes what.")
    await ada.send("DELETE", cause, 204, "It does not cause it any more.")
    for same in (f"{api}/events/{dark['id']}", f"{path}/events/{dark['id']}"):
        await ada.send("GET", same, 200, "One event.")
        await ada.send("PUT", same, 200, "Changes it.", {"tags": ["night"]})
    await write_stories(ada, path, sunset)
    await ada.send("DELETE", f"{api}/events/{dark['id']}", 204, "Deletes an event.")
    await ada.send("DELETE", f"{path}/events/{sunset['id']}", 204, "Deletes the other.")
    await ada.send("DELETE", path, 204, "Deletes the world, with all that is in it.")


async def write_stories(ada: Client, path: str, event: dict[str, Any]) -> None:
    """Write two stories that meet at an event of the world at this path, and copy the world."""
    headline("Ada writes a story in it, beat by beat")
    stories = "/api/v1/stories"
    new = {"title": "The Lamplighter", "tags": ["sea"]}
    story = await ada.send("POST", f"{path}/stories", 201, "A story.", new)
    one = f"{stories}/{story['id']}"
    await ada.send("GET", one, 200, "The story.")
    await ada.send("PUT", one, 200, "Changes it.", {"status": "active"})
    body = {"content": "The lamp went out.", "world_event_id": event["id"]}
    beat = await ada.send("POST", f"{one}/beats", 201, "A beat linked to an event.", body)
    other = await ada.send("POST", f"{one}/beats", 201, "Another.", {"content": "It was dark."})
    order = {"beat_ids": [other["id"], beat["id"]]}
    await ada.send("POST", f"{one}/beats/reorder", 200, "Puts them in another order.", order)
    await ada.send("GET", f"{one}/beats", 200, "The beats, in their order.")
    first = f"{one}/beats/{other['id']}"
    await ada.send("GET", first, 200, "One of them.")
    await ada.send("PUT", first, 200, "Changes it.", {"content": "It was very dark."})
    await ada.send("PATCH", f"{first}/reasoning", 200, "Why it is so.", {})
    await ada.send("DELETE", first, 204, "Deletes it.")
    await ada.send("GET", f"{one}/statistics", 200, "How long the story is.")
    copy = await ada.send("POST", f"{one}/clone", 201, "A copy, which meets the original.")

    headline("Ada looks at the world as a whole, and copies it")
    await ada.send("GET", f"{path}/timeline", 200, "The events, and the stories that meet there.")
    await ada.send("GET", f"{path}/intersections", 200, "The same, by pairs of stories.")
    await ada.send("GET", f"/api/v1/events/{event['id']}/beats", 200, "The beats linked to it.")
    await ada.send("GET", f"{path}/search?q=lamp", 200, "Where the word occurs.")
    await ada.send("GET", f"{path}/stories", 200, "The stories, latest change first.")
    await ada.send("GET", f"{path}/stories/tags", 200, "Their tags.")
    two = f"{stories}/{copy['id']}"
    await ada.send("DELETE", two, 204, "Archives the copy.")
    await ada.send("GET", f"{path}/stories/archived", 200, "It is here now.")
    await ada.send("POST", f"{two}/restore", 200, "Restores it, as a draft.")
    await ada.send("DELETE", f"{two}?force=true", 204, "Deletes it.")
    document = await ada.send("GET", f"{path}/export", 200, "The whole world as one document.")
    await ada.send("POST", "/api/v1/worlds/import", 201, "A new world from it.", document)
    await ada.send("POST", f"{path}/duplicate", 201, "Both in one step.")


async def leave(ada: Client, ada_email: str) -> None:
    headline("Ada takes her data with her and deletes her account")
    await ada.send("GET", "/api/v1/users/me/export", 200, "All data about the account.")
    path, password = "/api/v1/users/me", {"password": SECOND_PASSWORD}
    await ada.send("DELETE", path, 202, "The account will be deleted after 30 days.", password)
    await ada.send("GET", path, 401, "All sessions have ended.")
    await ada.sign_in(ada_email, SECOND_PASSWORD, "Signing in before that cancels the deletion.")
    await ada.send("POST", f"{path}/deletion", 202, "This time, she means it.", password)


async def administer(root: Client, grace: Client, mailbox: Mailbox, grace_email: str) -> None:
    headline("An administrator creates an account for Grace, who chooses her password")
    body = {"email": grace_email, "name": "Grace"}
    user = await root.send("POST", "/api/v1/users", 201, "Creates it and emails a link.", body)
    path = f"/api/v1/users/{user['id']}"
    token = await mailbox.take_token(grace_email, "/password/reset")
    reset = {"token": token, "password": FIRST_PASSWORD}
    await grace.send("POST", "/api/v1/auth/password/reset", 204, "Grace sets a password.", reset)
    await grace.sign_in(grace_email, FIRST_PASSWORD, "Grace signs in.")
    await grace.send("GET", "/api/v1/users", 403, "She may not read other accounts.")

    headline("Grace joins the support staff")
    listing = f"/api/v1/users?email={grace_email}"
    await root.send("GET", listing, 200, "Finds the account by its email.")
    await root.send("GET", path, 200, "The account, with its version.")
    role = {"role": "support"}
    await root.send("PATCH", path, 428, "A change must name the version.", role)
    await root.send("PATCH", path, 200, "Gives her a role.", role, If_Match=root.etag)
    await grace.send("GET", "/api/v1/users?limit=1", 200, "She may read accounts now.")
    await grace.send("GET", "/api/v1/audit-events", 403, "The audit trail is for administrators.")

    headline("The administrator ends Grace's sessions, one and all")
    sessions = await root.send("GET", f"{path}/sessions", 200, "Her sessions.")
    session = sessions["items"][0]["id"]
    await root.send("DELETE", f"{path}/sessions/{session}", 204, "Ends one of them.")
    await grace.sign_in(grace_email, FIRST_PASSWORD, "Grace signs in again.")
    await root.send("DELETE", f"{path}/sessions", 204, "Ends all of them.")
    await grace.send("GET", "/api/v1/users/me", 401, "Grace is signed out.")

    headline("Grace adds an app, loses her phone, and asks the administrator for help")
    for one in (True, False):
        await grace.sign_in(grace_email, FIRST_PASSWORD, "Grace signs in.")
        factors = "/api/v1/users/me/factors"
        app = await grace.send("POST", f"{factors}/totp", 201, "A key for an app.")
        code = {"code": code_of(app["secret"])}
        await grace.send("POST", f"{factors}/{app['id']}/confirm", 200, "Confirms it.", code)
        await root.send("GET", f"{path}/factors", 200, "Her factors.")
        if one:
            lost = f"{path}/factors/{app['id']}"
            await root.send("DELETE", lost, 204, "Removes the one that is lost.")
        else:
            await root.send("DELETE", f"{path}/factors", 204, "Removes all of them.")

    headline("The administrator suspends Grace, and thinks better of it")
    reason = {"reason": "an example"}
    await root.send("POST", f"{path}/suspend", 200, "She cannot sign in.", reason)
    await grace.sign_in(grace_email, FIRST_PASSWORD, "Not even with the right password.", 401)
    await root.send("POST", f"{path}/reinstate", 200, "Cancels the suspension.")
    await root.send("POST", f"{path}/password-reset", 202, "Emails her a link.")
    token = await mailbox.take_token(grace_email, "/password/reset")
    reset = {"token": token, "password": SECOND_PASSWORD}
    await grace.send("POST", "/api/v1/auth/password/reset", 204, "Sets a new password.", reset)

    headline("The administrator deletes Grace's account, and looks at what has been done")
    await root.send("DELETE", path, 200, "It will be deleted after 30 days.")
    events = await root.send(
        "GET", f"/api/v1/audit-events?subject_id={user['id']}", 200, "Who did what to her account."
    )
    print("       " + ", ".join(event["action"] for event in events["items"]))


async def walk(url: str, mail_dir: Path, admin_email: str, admin_password: str) -> None:
    """Walk through all routes, those of administration only with a password."""
    mailbox = Mailbox(mail_dir)
    ada_email, grace_email = (
        f"{name}-{secrets.token_hex(4)}@example.com" for name in ("ada", "grace")
    )
    async with aiohttp.ClientSession(url) as http:
        ada, other, root, grace = (Client(http) for _ in range(4))
        await look_around(other)
        await register(ada, other, mailbox, ada_email)
        await change_profile(ada)
        await use_sessions(ada, other, ada_email)
        await change_password(ada, other, mailbox, ada_email)
        await change_email(ada, other, mailbox, ada_email)
        await use_an_app(ada, ada_email)
        await use_a_passkey(ada, ada_email)
        await write_a_world(ada)
        await leave(ada, ada_email)
        if admin_password:
            headline("The administrator that shinkei create-admin has created")
            await root.sign_in(admin_email, admin_password)
            await administer(root, grace, mailbox, grace_email)
            await root.send("POST", "/api/v1/auth/logout", 204, "The administrator signs out.")
        else:
            headline("Administration is left out: see the first lines of examples/walk.py")


def main() -> None:
    variables = os.environ
    try:
        asyncio.run(
            walk(
                variables.get("SHINKEI_URL", "http://127.0.0.1:8080"),
                Path(variables.get("DATA_DIR", ".data"), "mail"),
                variables.get("ADMIN_EMAIL", "root@example.com"),
                variables.get("ADMIN_PASSWORD", ""),
            )
        )
    except (UnexpectedError, aiohttp.ClientError) as error:
        sys.exit(str(error))
    print("\ndone")


if __name__ == "__main__":
    main()
