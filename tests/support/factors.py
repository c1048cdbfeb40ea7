"""Second factors for tests, added over HTTP as a client would."""

import base64
import time
from typing import Any, NamedTuple

from service.factors import totp
from tests.support.authenticator import Authenticator
from tests.support.clients import Client, pool_of
from tests.support.factories import Account, bearer

SECOND_FACTOR = "/api/v1/auth/second-factor"
FACTORS = "/api/v1/users/me/factors"
PASSKEYS = "/api/v1/users/me/passkeys"
PASSKEY = "/api/v1/auth/passkey"


class App(NamedTuple):
    """An app that makes one-time codes, the recovery codes that came with it, and a used code."""

    factor_id: str
    secret: bytes
    recovery_codes: list[str] | None
    used_code: str = ""

    def code(self, steps: int = 0) -> str:
        """Return the code of now, or of so many time steps later."""
        return totp.code_at(self.secret, totp.step_at(time.time()) + steps)

    def wrong_code(self) -> str:
        """Return a code that is good at no time near now."""
        near = {self.code(steps) for steps in range(-3, 4)}
        return next(code for code in (f"{n:06}" for n in range(10)) if code not in near)


async def start_totp(client: Client, headers: dict[str, str]) -> App:
    """Begin to add an app."""
    response = await client.post(f"{FACTORS}/totp", headers=headers, json={})
    assert response.status == 201, await response.text()
    return app_of(await response.json())


def app_of(begun: dict[str, Any]) -> App:
    """Return an app that has read the response with its secret."""
    secret = base64.b32decode(begun["secret"] + "=" * (-len(begun["secret"]) % 8))
    return App(begun["id"], secret, None)


async def add_totp(client: Client, headers: dict[str, str]) -> App:
    """Add an app, which has then used the code of now."""
    app = await start_totp(client, headers)
    code = app.code()
    response = await confirm(client, headers, app, code)
    assert response.status == 200, await response.text()
    recovery_codes = (await response.json())["recovery_codes"]
    return app._replace(recovery_codes=recovery_codes, used_code=code)


async def confirm(client: Client, headers: dict[str, str], app: App, code: str) -> Any:
    path = f"{FACTORS}/{app.factor_id}/confirm"
    return await client.post(path, headers=headers, json={"code": code})


async def ask_for_challenge(client: Client, account: Account) -> dict[str, Any]:
    """Sign in with the password alone and return the problem, with its challenge."""
    response = await log_in(client, account)
    problem: dict[str, Any] = await response.json(content_type=None)
    assert (response.status, problem["code"]) == (401, "second_factor_required"), problem
    return problem


async def log_in(client: Client, account: Account) -> Any:
    body = {"email": account.profile["email"], "password": account.password}
    return await client.post("/api/v1/auth/login", json=body)


async def options_of(client: Client, challenge: str) -> dict[str, Any]:
    """Return the options of a passkey that is to be the second factor of a sign-in."""
    response = await client.post(f"{SECOND_FACTOR}/options", json={"challenge": challenge})
    assert response.status == 200, await response.text()
    options: dict[str, Any] = (await response.json())["options"]
    return options


async def answer(client: Client, challenge: str, **proof: Any) -> Any:
    """Send a second factor."""
    return await client.post(SECOND_FACTOR, json={"challenge": challenge, **proof})


async def sign_in_with(client: Client, account: Account, **proof: Any) -> Account:
    """Sign in with the password and a second factor."""
    problem = await ask_for_challenge(client, account)
    response = await answer(client, problem["challenge"], **proof)
    assert response.status == 200, await response.text()
    tokens = await response.json()
    return account._replace(headers=bearer(tokens["access_token"]), tokens=tokens)


async def forget_used_codes(client: Client) -> None:
    """Make codes that were used good again, so that a test need not wait for the next ones."""
    await pool_of(client).execute("update factors set last_step = null")


async def prove(client: Client, headers: dict[str, str], **proof: Any) -> Any:
    """Prove again who the owner of the session is."""
    return await client.post("/api/v1/auth/reauthenticate", headers=headers, json=proof)


async def age_proofs(client: Client, hours: int = 1) -> None:
    """Move the time at which any session was proved into the past."""
    await pool_of(client).execute(
        """
        update sessions set aal1_at = aal1_at - make_interval(hours => $1),
                            aal2_at = aal2_at - make_interval(hours => $1)
        """,
        hours,
    )


async def begin_passkey(client: Client, headers: dict[str, str]) -> dict[str, Any]:
    response = await client.post(f"{PASSKEYS}/options", headers=headers)
    assert response.status == 200, await response.text()
    begun: dict[str, Any] = await response.json()
    return begun


async def add_passkey(client: Client, headers: dict[str, str], **named: str) -> Authenticator:
    """Add a passkey, and return the authenticator that holds it."""
    begun, authenticator = await begin_passkey(client, headers), Authenticator()
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.create(begun["options"]),
        **named,
    }
    response = await client.post(PASSKEYS, headers=headers, json=body)
    assert response.status == 201, await response.text()
    return authenticator


async def begin_passkey_sign_in(client: Client) -> dict[str, Any]:
    response = await client.post(f"{PASSKEY}/options")
    assert response.status == 200, await response.text()
    begun: dict[str, Any] = await response.json()
    return begun


async def sign_in_with_passkey(client: Client, authenticator: Authenticator) -> Any:
    begun = await begin_passkey_sign_in(client)
    body = {
        "challenge_id": begun["challenge_id"],
        "credential": authenticator.get(begun["options"]),
    }
    return await client.post(PASSKEY, json=body)
