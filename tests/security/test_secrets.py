"""Where the secrets of second factors and passkeys are after every use of them: nowhere."""

import base64
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pytest_aiohttp import AiohttpClient

from service.app import create_app
from service.settings import Settings
from tests.support import described
from tests.support.authenticator import encoded
from tests.support.clients import Client
from tests.support.factories import Account, register, register_as
from tests.support.factors import (
    FACTORS,
    PASSKEY,
    PASSKEYS,
    SECOND_FACTOR,
    add_passkey,
    answer,
    ask_for_challenge,
    begin_passkey,
    begin_passkey_sign_in,
    confirm,
    prove,
    start_totp,
)
from tests.support.logbook import logged
from tests.support.steps import send
from tests.support.waiting import eventually

ME = "/api/v1/users/me"


class Walk(NamedTuple):
    """What every use of second factors gave or took that is secret, and what refusals said."""

    account: Account
    secrets: dict[str, list[bytes]]
    refusals: list[str]


async def walk(client: Client) -> Walk:
    """Add an app and a passkey, use and guess all that there is, and remove the app."""
    account = await register(client)
    headers = account.headers
    refusals: list[str] = []

    async def refused(response: Any) -> None:
        assert response.status in (401, 403, 422), await response.text()
        refusals.append(await response.text())

    app = await start_totp(client, headers)
    await refused(await confirm(client, headers, app, app.wrong_code()))
    codes = (await (await confirm(client, headers, app, app.code())).json())["recovery_codes"]
    begun = await begin_passkey(client, headers)
    authenticator = await add_passkey(client, headers, name="Laptop")
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.create(begun["options"]),
    }
    await refused(await client.post(PASSKEYS, headers=headers, json={**body, "name": ""}))
    first = (await ask_for_challenge(client, account))["challenge"]
    await refused(await answer(client, first, code=app.wrong_code()))
    await refused(await answer(client, first, recovery_code=codes[1][::-1]))
    assert (await answer(client, first, recovery_code=codes[0])).status == 200
    await refused(await answer(client, first, recovery_code=codes[0]))
    second = (await ask_for_challenge(client, account))["challenge"]
    options = await client.post(f"{SECOND_FACTOR}/options", json={"challenge": second})
    signed = authenticator.get((await options.json())["options"])
    assert (await answer(client, second, credential=signed)).status == 200
    third = await begin_passkey_sign_in(client)
    body = {
        "challenge_id": third["challenge_id"],
        "credential": authenticator.get(third["options"]),
    }
    assert (await client.post(PASSKEY, json=body)).status == 200
    await refused(await client.post(PASSKEY, json=body))
    code = app.code(1)
    assert (await prove(client, headers, code=code)).status == 200
    await refused(await prove(client, headers, code=code))
    made = await client.post(f"{ME}/recovery-codes", headers=headers)
    codes += (await made.json())["recovery_codes"]
    path = f"{FACTORS}/{app.factor_id}"
    assert (await client.patch(path, headers=headers, json={"name": "Phone"})).status == 200
    assert (await client.delete(path, headers=headers)).status == 204
    base32 = base64.b32encode(app.secret).decode().rstrip("=")
    texts = {
        "secret of the app": [base32, f"secret={base32}"],
        "recovery codes": [*codes, *(code.replace("-", "") for code in codes)],
        "challenges of sign-ins": [first, second],
        "challenges of passkeys": [
            *(begun["challenge_id"], begun["options"]["challenge"]),
            *(third["challenge_id"], third["options"]["challenge"]),
        ],
        "id of the passkey": [encoded(authenticator.credential_id)],
        "signature": [signed["response"]["signature"]],
    }
    secrets = {name: [text.encode() for text in each] for name, each in texts.items()}
    raw = {"secret of the app": app.secret, "id of the passkey": authenticator.credential_id}
    for name, value in raw.items():
        secrets[name] += [value.hex().encode(), base64.b64encode(value).rstrip(b"=")]
    return Walk(account, secrets, refusals)


async def rows_of_all_tables(conn: Any) -> dict[str, str]:
    """Return the rows of each table as text, with bytes in hexadecimal."""
    tables = await conn.fetch("select tablename from pg_tables where schemaname = current_schema()")
    return {
        f"table {name}": str(await conn.fetch(f'select row::text from "{name}" as row'))
        for (name,) in tables
    }


@pytest.mark.asvs("14.2.1", "16.2.5")
async def test_secrets_of_second_factors_are_nowhere(
    settings: Settings, aiohttp_client: AiohttpClient, conn: Any
) -> None:
    """In no log, metric, mail, row or later response, as it is or as bytes.

    Each place has something else of the account, which shows that the right one was searched.
    """
    registry = CollectorRegistry()
    app = create_app(settings, registry)
    client = await aiohttp_client(app, middlewares=described.checks_of(settings))
    with logged() as events:
        found = await walk(client)
        admin = await register_as(client, "admin")
        user_id, headers = found.account.profile["id"], found.account.headers
        places = {
            f"GET {path}": await (await send(client, "GET", path, headers=headers)).text()
            for path in ("/users/me", "/users/me/factors", "/users/me/sessions", "/users/me/export")
        }
        for path in (f"/users/{user_id}", f"/users/{user_id}/factors", "/audit-events"):
            places[f"GET {path}"] = await (await send(client, "GET", path, by=admin)).text()

        async def is_sent() -> bool:
            return not await conn.fetchval("select exists (select from mail_outbox)")

        places |= await rows_of_all_tables(conn)
        await eventually(is_sent)
    mails = (settings.data_dir / "mail").glob("*.eml")
    places |= {
        "log": str(events),
        "metrics": generate_latest(registry).decode(),
        "mails": "\n".join(path.read_text() for path in mails),
        "refusals": "\n".join(found.refusals),
    }
    controls = {
        "log": user_id,
        "metrics": "second_factor_required",
        "mails": found.account.profile["email"],
        "refusals": "wrong_code",
        "table users": user_id,
        "table factors": "Laptop",
        "table audit_events": user_id,
        "GET /users/me/factors": "Laptop",
        "GET /users/me/export": "Laptop",
        f"GET /users/{user_id}/factors": "Laptop",
    }
    assert {place for place, text in controls.items() if text not in places[place]} == set()
    leaks = {
        f"{name} in {place}"
        for name, forms in found.secrets.items()
        for place, text in places.items()
        if any(form.decode() in text for form in forms)
    }
    # Which is how it is found.
    assert leaks == {"id of the passkey in table factors"}
