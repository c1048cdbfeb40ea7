"""Schemathesis hooks that supply what an API description cannot: callers and their data.

A caller is an existing account with a live session for each request, even after the fuzzer ended
one. Values that a client has from an earlier response or mail (an ETag, a cursor, an id, a token)
are real: always if the description says nothing about a request without them, else mostly.
"""

import email
import email.policy
import json
import os
import random
import re
import secrets
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import AuthContext, Case, HookContext

from tests.support.any_json import with_exact_json

ORIGIN = os.environ["SHINKEI_URL"]
API = f"{ORIGIN}/api/v1"
MAIL_DIR = Path(os.environ["DATA_DIR"]) / "mail"
MAILED_AT_ONCE = 50
MAIL_TIMEOUT_S = 15
PASSWORD = "a passphrase of the fuzzer's"
PLACEHOLDER = "Bearer <a live session's token>"
# A success of these ends the caller's session, account or password.
ENDING = {
    "sessions_logout",
    "sessions_end_one",
    "users_change_password",
    "users_delete_me",
    "users_request_deletion",
}


class Caller(NamedTuple):
    email: str
    tokens: dict[str, Any]

    def get(self, path: str, **query: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.tokens['access_token']}"}
        return requests.get(f"{ORIGIN}{path}", query, headers=headers, timeout=10)


def create_caller(role: str) -> Caller:
    email = f"{role}-{secrets.token_hex(6)}@example.com"
    body = {"email": email, "password": PASSWORD}
    response = requests.post(f"{API}/auth/register", json=body, timeout=10)
    response.raise_for_status()
    if role == "admin":
        command = [os.environ["SHINKEI"], "create-admin", "--promote", "--email", email]
        subprocess.run(command, check=True, capture_output=True)
    return Caller(email, response.json())


callers: dict[str, Caller] = {}
lock = threading.Lock()


def find_caller(role: str, *, new: bool) -> Caller:
    """Return the role's caller, or a new one if it lost its session or role."""
    with lock:
        alive = False
        if role in callers and not new:
            response = callers[role].get("/api/v1/users/me")
            alive = response.status_code == 200 and response.json()["role"] == role
            # Settings that are merged again and again outgrow their limit.
            alive = alive and len(response.content) < 4000
        if not alive:
            callers[role] = create_caller(role)
        return callers[role]


mailed: dict[str, list[str]] = {"/password/reset": [], "/email/verify": [], "/email/revert": []}
read_already: set[Path] = set()


def find_mailed_token(page: str) -> str | None:
    """Return an unused token from a mailed link to this page, or None if none arrives."""
    with lock:
        if not mailed[page]:
            for _ in range(MAILED_AT_ONCE):
                body = {"email": create_caller("user").email}
                requests.post(f"{API}/auth/password/forgot", json=body, timeout=10)
        deadline = time.monotonic() + MAIL_TIMEOUT_S
        while not mailed[page] and time.monotonic() < deadline:
            time.sleep(0.1)
            read_mails()
        return mailed[page].pop() if mailed[page] else None


def read_mails() -> None:
    for path in sorted(set(MAIL_DIR.glob("*.eml")) - read_already):
        read_already.add(path)
        mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        part = mail.get_body(("plain",))
        found = part and re.search(r"(/[a-z]+/[a-z]+)#token=([\w-]+)", part.get_content())
        if found and mail["To"].startswith("user-"):
            mailed[found[1]].append(found[2])


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Generate only JSON that the service accepts."""
    raw_schema["components"] = with_exact_json(raw_schema["components"])


@schemathesis.auth(refresh_interval=None)
class Bearer:
    """Marks the requests that need a sign-in; ``before_call`` signs them in when they are sent."""

    def get(self, case: Case, context: AuthContext) -> str | None:
        return PLACEHOLDER if case.operation.definition.raw.get("security") else None

    def set(self, case: Case, data: str, context: AuthContext) -> None:
        case.headers["Authorization"] = data


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Sign the request in and fill in values from earlier responses."""
    operation = case.operation.definition.raw
    caller = None
    if case.headers.get("Authorization") == PLACEHOLDER:
        role = "admin" if operation["tags"][0] in ("admin", "audit") else "user"
        if "{user_id}" not in case.path and random.random() < 0.1:
            # Expect 403. With an id, it would be 404, which reveals nothing.
            role = "user"
        caller = find_caller(role, new=operation["operationId"] in ENDING)
        case.headers["Authorization"] = f"Bearer {caller.tokens['access_token']}"
    if caller is not None:
        complete_from_responses(case, caller)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        complete_body(case.body, operation["operationId"])
    if "If-None-Match" in case.headers:
        # schemathesis misreads the pattern, and tries 0 without quotes as a valid value.
        case.headers["If-None-Match"] = '"0"'
    if "Idempotency-Key" in case.headers:
        # A new key for each request, as clients should send.
        key = case.headers["Idempotency-Key"]
        case.headers["Idempotency-Key"] = f"{secrets.token_hex(8)}{key}"[:255]


def complete_body(body: dict[str, Any], operation_id: str) -> None:
    for name in {"password", "new_password"} & body.keys():
        # As long as before, but neither a common password nor derived from one.
        body[name] = f"ü{secrets.token_urlsafe(256)}"[: len(body[name])]
    if body.get("until", "9") < "2100":
        body["until"] = f"2100{body['until'][4:]}"
    if operation_id == "recovery_verify_email":
        body["token"] = find_mailed_token("/email/verify") or body["token"]
        if "new_password" in body:
            body.pop("password", None)  # only one of them is accepted
        elif "password" in body:
            body["password"] = PASSWORD
    elif operation_id == "recovery_inspect_link":
        body["token"] = find_mailed_token("/email/verify") or body["token"]
    elif operation_id == "recovery_reset_password":
        body["token"] = find_mailed_token("/password/reset") or body["token"]
    elif random.random() < 0.2:
        pass  # responses to a wrong password or token are described too
    elif operation_id == "users_change_password":
        body["current_password"] = PASSWORD
    elif operation_id in ("users_change_email", "users_delete_me", "users_request_deletion"):
        body["password"] = PASSWORD
    elif operation_id == "sessions_login":
        body |= {"email": create_caller("user").email, "password": PASSWORD}
    elif operation_id == "sessions_refresh":
        body["refresh_token"] = create_caller("user").tokens["refresh_token"]


def complete_from_responses(case: Case, caller: Caller) -> None:
    """Fill in existing ids, the current ETag and a cursor of the requested list."""
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and "user_id" in case.path_parameters and random.random() < 0.8:
        accounts = caller.get("/api/v1/users", limit=20).json().get("items")
        if accounts:
            case.path_parameters["user_id"] = random.choice(accounts)["id"]
    user_id = case.path_parameters.get("user_id", "me")
    if "If-Match" in case.headers:
        tag = caller.get(f"/api/v1/users/{user_id}").headers.get("ETag")
        case.headers["If-Match"] = tag or case.headers["If-Match"]
    if positive and "session_id" in case.path_parameters and random.random() < 0.8:
        sessions = caller.get(f"/api/v1/users/{user_id}/sessions").json().get("items")
        if sessions:
            case.path_parameters["session_id"] = sessions[0]["id"]
    if positive and "cursor" in case.query:
        del case.query["cursor"]
        response = caller.get(case.formatted_path, **{**case.query, "limit": 1})
        if response.status_code == 200 and response.json()["has_more"]:
            case.query["cursor"] = response.json()["next_cursor"]


# Realistic emails and URLs; the service's own tests cover unusual ones.
_label = st.from_regex(r"[a-z0-9]([a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
_local = st.from_regex(r"[A-Za-z0-9é]([.+_-]?[A-Za-z0-9é]){0,20}", fullmatch=True)
schemathesis.openapi.format("idn-email", st.builds("{}@{}.com".format, _local, _label))
schemathesis.openapi.format("http-url", st.builds("https://{}.com/{}".format, _label, _label))
schemathesis.openapi.format(
    "display-name",
    st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=200),
)
schemathesis.openapi.format(
    "search", st.builds("{}abc{}".format, st.text(max_size=9), st.text(max_size=9))
)
schemathesis.openapi.format(
    "json-object",
    st.dictionaries(st.text("abc", max_size=5), st.booleans() | st.integers(-9, 9)).map(json.dumps),
)
schemathesis.openapi.format(
    "password",
    st.binary(min_size=12, max_size=60).map(lambda data: f"{data.hex()}-ünd-{len(data)}"),
)
