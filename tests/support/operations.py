"""A valid request of each operation, made from the served description.

An operation that a later change adds is in it by itself. Its body has a value for every field. If
the service does not accept a body with such values, add those of the field to ``_values``.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import ClientResponse
from yarl import URL

from service.auth import guards
from service.routes import ROUTES
from tests.support.authenticator import Authenticator
from tests.support.clients import Client
from tests.support.factories import PASSWORD, Account, register, register_as
from tests.support.factors import (
    SECOND_FACTOR,
    App,
    add_passkey,
    add_totp,
    ask_for_challenge,
    begin_passkey,
    begin_passkey_sign_in,
    start_totp,
)
from tests.support.steps import (
    NEW_PASSWORD,
    change_email,
    link_about,
    mail_reset,
    sign_in_again,
    verify,
)
from tests.support.worlds import NO_ONE, OF_WORLDS, ids_of_each

# The subjects of mails with links.
VERIFY, CHANGE = "Confirm your email address", "Confirm your new email address"
CHANGED = "The email address of your account was changed"
# Another name of a beat's type. Nothing has both, wherever in a body it is.
BEAT_TYPE = "beat_type"
# Ways to fill a body, each with fields that exclude those of the others. The first is the default.
Way = tuple[str, ...]
_ONE_WAY: tuple[Way, ...] = ((),)
_WAYS: dict[str, tuple[Way, ...]] = {
    "sessions_use_second_factor": (("code",), ("recovery_code",), ("credential",)),
    "sessions_reauthenticate": (("password",), ("code",), ("challenge_id", "credential")),
    "recovery_verify_email": (("password",), ("new_password",)),
    "worlds_create_beat": (("type",), (BEAT_TYPE,)),
    "worlds_change_beat": (("type",), (BEAT_TYPE,)),
}
# Operations of owners who have a second factor, besides those that name one in their path.
_WITH_FACTORS = {
    "admin_remove_factors",
    "sessions_reauthenticate",
    "sessions_second_factor_options",
    "sessions_use_passkey",
    "sessions_use_second_factor",
    "users_make_recovery_codes",
    "users_remove_password",
}
# An imported document has these of its own.
DOCUMENT_ID = NO_ONE
_numbers = itertools.count(1)


class Operation(NamedTuple):
    """An operation of the description. ``fields`` is the schema of its body, or None."""

    id: str
    method: str
    path: str
    parameters: list[dict[str, Any]]
    fields: dict[str, Any] | None
    body_required: bool
    success: dict[str, Any]

    def named(self, where: str) -> list[dict[str, Any]]:
        """Return the parameters in the path, the query or the header."""
        return [parameter for parameter in self.parameters if parameter["in"] == where]


class Request(NamedTuple):
    """A request. ``query`` and ``path`` are sent as they are; so is a ``body`` of bytes."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: Any = None

    def with_headers(self, **headers: str) -> "Request":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._replace(headers={**self.headers, **named})

    async def send(self, client: Client) -> ClientResponse:
        url = URL(self.path + (f"?{self.query}" if self.query else ""), encoded=True)
        headers, body = dict(self.headers), self.body
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            # aiohttp warns of large bodies that are no files.
            body = io.BytesIO(body)
        # Otherwise the client would name a type of its own, even for no body.
        absent = ["Content-Type"] if not headers.get("Content-Type") else []
        if absent:
            headers.pop("Content-Type", None)
        return await client.request(
            self.method, url, headers=headers, data=body, skip_auto_headers=absent
        )


class Prepared(NamedTuple):
    """A valid request, with the accounts and the ids that it is about."""

    request: Request
    owner: Account
    ids: dict[str, str]


async def read_description(client: Client) -> dict[str, Any]:
    document: dict[str, Any] = await (await client.get("/openapi.json")).json()
    return document


def operations_of(document: Mapping[str, Any]) -> Iterator[Operation]:
    """Yield each operation, with the references in its body and success resolved."""
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            body = described.get("requestBody", {"content": {}, "required": False})
            content = next(iter(body["content"].values()), None)
            status = next(each for each in described["responses"] if each.startswith("2"))
            success = described["responses"][status].get("content", {})
            shown: Any = next(iter(success.values()), {"schema": {}})["schema"]
            yield Operation(
                described["operationId"],
                method.upper(),
                path,
                described["parameters"],
                resolved(content["schema"], document) if content else None,
                body["required"],
                resolved(shown, document),
            )


def resolved(schema: Any, document: Mapping[str, Any]) -> Any:
    """Return a schema with its references replaced. None of them contains itself."""
    if isinstance(schema, list):
        return [resolved(each, document) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return resolved(document["components"]["schemas"][name], document)
    return {key: resolved(each, document) for key, each in schema.items()}


def _access_of(operation: Operation) -> object:
    return next(
        route.access
        for route in ROUTES
        if (route.method, route.path) == (operation.method, operation.path)
    )


def ways_of(operation: Operation) -> tuple[Way, ...]:
    """Return the ways to fill the operation's body."""
    return _WAYS.get(operation.id, _ONE_WAY)


class Requests:
    """Makes valid requests. Those that only read share an owner; others have a new one each."""

    def __init__(self, client: Client, data_dir: Path) -> None:
        self.client = client
        self.data_dir = data_dir
        self._admin: Account | None = None
        self._reader: Account | None = None

    async def prepare(self, operation: Operation, way: Way = ()) -> Prepared:
        """Return a valid request with all its fields but those that exclude ``way``."""
        access = _access_of(operation)
        if self._admin is None:
            self._admin = await register_as(self.client, "admin")
            self._reader = await register(self.client)
        if access is guards.admin_recently:
            # Whose proof does not grow old in a test of many requests.
            self._admin = await register_as(self.client, "admin")
        shared = operation.method == "GET" and access is not guards.recently
        reader = self._reader if shared else None
        owner = reader or await register(self.client)
        ids = {"user_id": owner.profile["id"]}
        if OF_WORLDS.search(operation.path):
            ids |= await ids_of_each(self.client, owner)
        if "{session_id}" in operation.path:
            other = await sign_in_again(self.client, owner)
            sessions = await self.client.get("/api/v1/users/me/sessions", headers=other.headers)
            items = (await sessions.json())["items"]
            ids["session_id"] = next(each["id"] for each in items if each["current"])
        way = way or ways_of(operation)[0]
        proof, app = await self._proof_of(operation, owner, way)
        if app is not None:
            ids["factor_id"] = app.factor_id
        headers = self._headers_of(operation, access, owner)
        if any(each.get("required") for each in operation.named("header")):
            headers = {**headers, "If-Match": "*"}
        query = "&".join(
            f"{each['name']}=lamp" for each in operation.named("query") if each.get("required")
        )
        body = None
        if operation.fields is not None:
            values = {**self._values(operation, owner, ids), **proof}
            if "token" in operation.fields["properties"]:
                values["token"] = await self._link_of(operation, owner)
            others = {BEAT_TYPE, *itertools.chain(*ways_of(operation))} - {*way}
            body = sample(operation.fields, values, others)
        request = Request(operation.method, operation.path.format(**ids), query, headers, body)
        return Prepared(request, owner, ids)

    def _headers_of(
        self, operation: Operation, access: object, owner: Account
    ) -> Mapping[str, str]:
        if access in (guards.admin, guards.admin_recently, guards.support):
            assert self._admin is not None
            return self._admin.headers
        # The password is another proof.
        anonymous = access is guards.anyone or operation.id == "recovery_verify_email"
        return {} if anonymous else owner.headers

    async def _proof_of(
        self, operation: Operation, owner: Account, way: Way
    ) -> tuple[dict[str, Any], App | None]:
        """Give the owner the second factor that the operation needs.

        Returns the fields that prove it, and the app of the owner, if there is one.
        """
        client, headers = self.client, owner.headers
        match operation.id:
            case "users_confirm_totp":
                app = await start_totp(client, headers)
                return {"code": app.code(1)}, app
            case "users_add_passkey":
                begun = await begin_passkey(client, headers)
                credential = Authenticator().create(begun["options"])
                return {"challenge_id": begun["challenge_id"], "credential": credential}, None
        if "factor_id" not in operation.path and operation.id not in _WITH_FACTORS:
            return {}, None
        app = await add_totp(client, headers)
        assert app.recovery_codes is not None
        authenticator = await add_passkey(client, headers)
        # Of the next step, because the app has used the code of this one.
        fields: dict[str, Any] = {"code": app.code(1), "recovery_code": app.recovery_codes[0]}
        if operation.path.startswith(SECOND_FACTOR):
            fields["challenge"] = (await ask_for_challenge(client, owner))["challenge"]
            body = {"challenge": fields["challenge"]}
            begun = await (await client.post(f"{SECOND_FACTOR}/options", json=body)).json()
        else:
            begun = await begin_passkey_sign_in(client)
            fields["challenge_id"] = begun["challenge_id"]
        return {**fields, "credential": authenticator.get(begun["options"])}, app

    def _values(
        self, operation: Operation, owner: Account, ids: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return what fields of these names hold, wherever they are."""
        of_new = operation.id in ("users_register", "admin_create_user", "users_change_email")
        new_email = f"new{next(_numbers)}@example.com"
        is_import = operation.id == "worlds_import_world"
        event_id = DOCUMENT_ID if is_import else ids.get("event_id")
        return {
            "email": new_email if of_new else owner.profile["email"],
            "current_password": owner.password,
            "refresh_token": owner.tokens["refresh_token"],
            "version": "1.0",
            "world_event_id": event_id,
            "caused_by_ids": [] if is_import else [ids.get("cause_id")],
            "beat_ids": [ids.get("beat_id")],
            **({"id": DOCUMENT_ID} if is_import else {}),
        }

    async def _link_of(self, operation: Operation, owner: Account) -> str:
        """Return a mailed token that the operation takes."""
        email = owner.profile["email"]
        if operation.id == "recovery_reset_password":
            return await mail_reset(self.client, self.data_dir, owner)
        token = await link_about(self.data_dir, email, VERIFY)
        if operation.id != "recovery_revert_email":
            return token
        to = f"changed{next(_numbers)}@example.com"
        assert (await verify(self.client, token)).status == 200
        assert (await change_email(self.client, owner, owner.password, to=to)).status == 202
        await verify(self.client, await link_about(self.data_dir, to, CHANGE))
        return await link_about(self.data_dir, email, CHANGED)


def sample(schema: Mapping[str, Any], values: Mapping[str, Any], left_out: set[str]) -> Any:
    """Return a value of the schema, without the members that are left out."""
    kind = schema.get("type", "any")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {
            name: values[name] if name in values else sample(inner, values, left_out)
            for name, inner in schema.get("properties", {}).items()
            if name not in left_out
        }
    if kind == "array":
        return [sample(schema["items"], values, left_out)]
    if kind == "string":
        return _text(schema)
    return {"boolean": True, "integer": 1, "number": 1.5}.get(kind, "any")


def _text(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return str(schema["enum"][0])
    # A password to verify may be shorter than a new one.
    passwords = NEW_PASSWORD if schema.get("minLength", 0) > 1 else PASSWORD
    by_format = {
        "uuid": NO_ONE,
        "date-time": "2126-01-31T12:00:00Z",
        "http-url": "https://llm.example/v1",
        "password": passwords,
    }
    text = by_format.get(schema.get("format", ""), "en")
    assert re.search(schema.get("pattern", ""), text), schema
    return text
