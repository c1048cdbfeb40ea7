"""What a reader of the database learns of second factors."""

import hashlib
from typing import Any

import pytest

from service.factors import totp
from tests.support.clients import Client
from tests.support.factories import register
from tests.support.factors import add_passkey, add_totp, ask_for_challenge


@pytest.mark.asvs("6.5.2")
async def test_a_dump_has_neither_secrets_nor_recovery_codes(client: Client, conn: Any) -> None:
    account = await register(client)
    app = await add_totp(client, account.headers)
    authenticator = await add_passkey(client, account.headers)
    challenge = (await ask_for_challenge(client, account))["challenge"]
    assert app.recovery_codes is not None
    codes = [code.replace("-", "") for code in app.recovery_codes]
    secrets = [
        app.secret.hex(),
        totp.to_base32(app.secret),
        challenge,
        *app.recovery_codes,
        *codes,
        *(code.encode().hex() for code in codes),
        # Without the account's sealed key, nobody can tell which code a row is of.
        *(hashlib.sha256(code.encode()).hexdigest() for code in codes),
    ]
    tables = await conn.fetch(
        "select relname from pg_class where relkind in ('r', 'p')"
        " and relnamespace = 'public'::regnamespace"
    )
    dump = ""
    for table in tables:
        rows = await conn.fetch(f'select to_jsonb(one)::text from "{table["relname"]}" as one')
        dump += "\n".join(row[0] for row in rows)
    assert authenticator.credential_id.hex() in dump
    assert account.profile["id"] in dump
    assert [secret for secret in secrets if secret in dump] == []
