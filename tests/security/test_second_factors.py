"""Second factors and passkeys of another sign-in, account, session or purpose: refused."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from service.settings import Settings
from tests.support.attacks import Attack, carry_out, changed
from tests.support.authenticator import Authenticator, encoded
from tests.support.clients import Client
from tests.support.factories import Account, assert_problem, bearer, register
from tests.support.factors import (
    FACTORS,
    PASSKEY,
    PASSKEYS,
    SECOND_FACTOR,
    App,
    add_passkey,
    add_totp,
    age_proofs,
    ask_for_challenge,
    begin_passkey,
    begin_passkey_sign_in,
    sign_in_with,
    start_totp,
)
from tests.support.operations import Request
from tests.support.steps import link_about, mail_reset, refresh, sign_in_again
from tests.support.tokens import claims_of
from tests.support.worlds import NO_ONE

PROVE = "/api/v1/auth/reauthenticate"
RECOVERY_CODES = "/api/v1/users/me/recovery-codes"
EXPORT = "/api/v1/users/me/export"


class Owner(NamedTuple):
    """An account with an app, its recovery codes and a passkey, signed in at level 2."""

    account: Account
    app: App
    passkey: Authenticator

    @property
    def headers(self) -> dict[str, str]:
        return self.account.headers

    def recovery_code(self) -> str:
        """Return one that is unused."""
        assert self.app.recovery_codes is not None
        return self.app.recovery_codes.pop()


async def create_owner(client: Client) -> Owner:
    account = await register(client)
    app = await add_totp(client, account.headers)
    return Owner(account, app, await add_passkey(client, account.headers))


@pytest.fixture
async def owner(client: Client) -> Owner:
    return await create_owner(client)


@pytest.fixture
async def other(client: Client) -> Owner:
    return await create_owner(client)


async def challenge_of(client: Client, owner: Owner) -> str:
    """Sign in with the password, and return the challenge."""
    challenge: str = (await ask_for_challenge(client, owner.account))["challenge"]
    return challenge


async def sign_challenge(client: Client, owner: Owner, challenge: str) -> dict[str, Any]:
    """Have the owner's passkey sign what makes it the second factor of a sign-in."""
    response = await client.post(f"{SECOND_FACTOR}/options", json={"challenge": challenge})
    return owner.passkey.get((await response.json())["options"])


def second_step(challenge: str, **proof: Any) -> Request:
    return Request("POST", SECOND_FACTOR, body={"challenge": challenge, **proof})


async def passkey_as_second_factor(client: Client, owner: Owner) -> Request:
    challenge = await challenge_of(client, owner)
    return second_step(challenge, credential=await sign_challenge(client, owner, challenge))


def recovery_code(owner: Owner) -> dict[str, str]:
    return {"recovery_code": owner.recovery_code()}


def with_fields(request: Request, **fields: Any) -> Request:
    return request._replace(body={**request.body, **fields})


async def issued_for_others(client: Client, settings: Settings, owner: Owner) -> dict[str, str]:
    """Return what the service gives the owner for something else than to sign in, by name."""
    email = owner.account.profile["email"]
    registration = await begin_passkey(client, owner.headers)
    begun = await begin_passkey_sign_in(client)
    return {
        "refresh token": owner.account.tokens["refresh_token"],
        "access token": owner.account.tokens["access_token"][:512],
        "link to verify": await link_about(settings.data_dir, email, "Confirm your email address"),
        "link to reset": await mail_reset(client, settings.data_dir, owner.account),
        "id of a passkey's registration": registration["challenge_id"],
        "challenge of a passkey's registration": registration["options"]["challenge"],
        "challenge of a passkey": begun["options"]["challenge"],
        "id of the account": owner.account.profile["id"],
        "id of the app": owner.app.factor_id,
        "id of the passkey": encoded(owner.passkey.credential_id),
        "recovery code": owner.recovery_code(),
    }


async def test_second_step_takes_only_the_challenge_of_its_sign_in(
    client: Client, settings: Settings, owner: Owner
) -> None:
    """The twin has that challenge, with the same signature of the passkey."""
    begun = await begin_passkey_sign_in(client)
    texts = {
        **await issued_for_others(client, settings, owner),
        "id of a sign-in with a passkey": begun["challenge_id"],
    }

    async def attacks() -> AsyncIterator[Attack]:
        for name, text in texts.items():
            twin = await passkey_as_second_factor(client, owner)
            yield Attack(name, with_fields(twin, challenge=text), twin, 401, "invalid_challenge")
        twin = await passkey_as_second_factor(client, owner)
        hashed = encoded(hashlib.sha256(twin.body["challenge"].encode()).digest())
        wrong = with_fields(twin, challenge=hashed)
        yield Attack("its hash", wrong, twin, 401, "invalid_challenge")
        for n in range(len([*changed("x" * 43)])):
            twin = await passkey_as_second_factor(client, owner)
            name, text, status, _ = [*changed(twin.body["challenge"])][n]
            code = "invalid_challenge" if status == 401 else "invalid_fields"
            yield Attack(name, with_fields(twin, challenge=text), twin, status, code)

    await carry_out(client, attacks(), at_least=46)


async def sign_in_without_name(client: Client, owner: Owner) -> Request:
    begun = await begin_passkey_sign_in(client)
    credential = owner.passkey.get(begun["options"])
    body = {"challenge_id": begun["challenge_id"], "credential": credential}
    return Request("POST", PASSKEY, body=body)


async def proof_again(client: Client, owner: Owner) -> Request:
    request = await sign_in_without_name(client, owner)
    return request._replace(path=PROVE, headers=owner.headers)


async def registration(client: Client, owner: Owner) -> Request:
    """Return a request of another account, because the owner's may have only so many passkeys."""
    account = await register(client)
    begun = await begin_passkey(client, account.headers)
    credential = Authenticator().create(begun["options"])
    body = {"challenge_id": begun["challenge_id"], "credential": credential}
    return Request("POST", PASSKEYS, "", account.headers, body)


@pytest.mark.parametrize(
    ("prepare", "status"),
    [(sign_in_without_name, 401), (proof_again, 403), (registration, 403)],
    ids=["sign-in", "proof", "registration"],
)
async def test_passkeys_take_only_the_id_of_their_challenge(
    client: Client,
    settings: Settings,
    owner: Owner,
    prepare: Callable[[Client, Owner], Awaitable[Request]],
    status: int,
) -> None:
    """Spelled as it was issued. The twin has it, with the same credential."""
    texts = {
        **await issued_for_others(client, settings, owner),
        "challenge of a sign-in": await challenge_of(client, owner),
    }

    async def attacks() -> AsyncIterator[Attack]:
        for name, text in texts.items():
            twin = await prepare(client, owner)
            wrong = with_fields(twin, challenge_id=text)
            yield Attack(name, wrong, twin, status, "invalid_challenge")
        for n in range(len([*changed("x" * 43)])):
            twin = await prepare(client, owner)
            name, text, kind, _ = [*changed(twin.body["challenge_id"])][n]
            expected = (status, "invalid_challenge") if kind == 401 else (kind, "invalid_fields")
            yield Attack(name, with_fields(twin, challenge_id=text), twin, *expected)

    await carry_out(client, attacks(), at_least=45)


@pytest.mark.asvs("6.3.3")
async def test_second_step_takes_only_a_proof_of_its_account(
    client: Client, owner: Owner, other: Owner
) -> None:
    """The twin has the same challenge, and a recovery code of the account."""
    removed = await add_totp(client, owner.headers)
    removing = await client.delete(f"{FACTORS}/{removed.factor_id}", headers=owner.headers)
    assert removing.status == 204
    pending = await start_totp(client, owner.headers)
    for_other = await challenge_of(client, other)
    proofs: dict[str, dict[str, Any]] = {
        "code of another account": {"code": other.app.code(1)},
        "recovery code of another account": {"recovery_code": other.recovery_code()},
        "code of an app that is not confirmed": {"code": pending.code()},
        "code of an app that was removed": {"code": removed.code(1)},
        "code for a recovery code": {"recovery_code": owner.app.code(1)},
    }

    async def attacks() -> AsyncIterator[Attack]:
        for name, proof in proofs.items():
            twin = second_step(await challenge_of(client, owner), **recovery_code(owner))
            wrong = second_step(twin.body["challenge"], **proof)
            yield Attack(name, wrong, twin, 401, "wrong_code")
        twin = second_step(await challenge_of(client, owner), **recovery_code(owner))
        wrong = with_fields(twin, challenge=for_other)
        yield Attack("challenge of another account", wrong, twin, 401, "wrong_code")
        twin = await passkey_as_second_factor(client, owner)
        signed = await sign_challenge(client, other, twin.body["challenge"])
        wrong = with_fields(twin, credential=signed)
        yield Attack("passkey of another account", wrong, twin, 401, "unknown_passkey")
        without_name = await sign_in_without_name(client, owner)
        for name, credential in {
            "signature for another sign-in": await sign_challenge(
                client, owner, await challenge_of(client, owner)
            ),
            "signature for another account": await sign_challenge(client, owner, for_other),
            "signature without a name": without_name.body["credential"],
        }.items():
            twin = await passkey_as_second_factor(client, owner)
            wrong = with_fields(twin, credential=credential)
            yield Attack(name, wrong, twin, 401, "passkey_wrong_challenge")

    await carry_out(client, attacks(), at_least=10)


async def test_passkey_signs_in_only_with_a_signature_for_that(
    client: Client, owner: Owner
) -> None:
    """Not with one for the second step of a sign-in. The twin has its own."""
    second = await passkey_as_second_factor(client, owner)
    attacks = []
    for prepare, status in ((sign_in_without_name, 401), (proof_again, 403)):
        twin = await prepare(client, owner)
        wrong = with_fields(twin, credential=second.body["credential"])
        attacks.append(Attack(twin.path, wrong, twin, status, "passkey_wrong_challenge"))
    await carry_out(client, attacks, at_least=2)


async def test_proof_raises_only_the_session_that_sends_it(
    client: Client, owner: Owner, other: Owner
) -> None:
    """Not one of another account that knows it, nor another session of the same account."""
    by_passkey = await proof_again(client, owner)
    second = await sign_in_with(client, owner.account, **recovery_code(owner))
    by_other = dict(other.headers)
    attacks = []
    for name, body, code in (
        ("code", {"code": owner.app.code(1)}, "wrong_code"),
        ("passkey", by_passkey.body, "unknown_passkey"),
    ):
        twin = by_passkey._replace(body=body)
        attacks.append(Attack(name, twin._replace(headers=by_other), twin, 403, code))
    await carry_out(client, attacks, at_least=2)
    await age_proofs(client)
    assert (await (await proof_again(client, owner)).send(client)).status == 200
    tokens = await (await refresh(client, second.tokens["refresh_token"])).json()
    refreshed = bearer(tokens["access_token"])
    twin = Request("GET", EXPORT, headers=owner.headers)
    insufficient = (401, "insufficient_authentication")
    await carry_out(
        client,
        [
            Attack("another session", twin._replace(headers=second.headers), twin, *insufficient),
            Attack("refreshed", twin._replace(headers=refreshed), twin, *insufficient),
        ],
        at_least=2,
    )


@pytest.mark.asvs("10.3.4")
async def test_token_of_level_two_opens_nothing_once_the_last_factor_is_gone(
    client: Client,
) -> None:
    """The twin belongs to an account that has another one left."""
    headers = []
    for one_is_left in (False, True):
        account = await register(client)
        app = await add_totp(client, account.headers)
        if one_is_left:
            await add_passkey(client, account.headers)
        account = await sign_in_with(client, account, code=app.code(1))
        assert claims_of(account.tokens["access_token"])["acr"] == "aal2"
        path = f"{FACTORS}/{app.factor_id}"
        assert (await client.delete(path, headers=account.headers)).status == 204
        headers.append(account.headers)
    without, with_one = (Request("POST", RECOVERY_CODES, headers=each) for each in headers)
    attack = Attack("last one gone", without, with_one, 401, "insufficient_authentication")
    await carry_out(client, [attack], at_least=1)


async def test_session_that_began_an_app_ends_with_the_first_factor(client: Client) -> None:
    """The twin is the same request by the session that added the factor."""
    account = await register(client)
    app = await start_totp(client, account.headers)
    by_owner = await sign_in_again(client, account)
    await add_passkey(client, by_owner.headers)
    path = f"{FACTORS}/{app.factor_id}/confirm"
    twin = Request("POST", path, "", by_owner.headers, {"code": app.code()})
    wrong = twin._replace(headers=account.headers)
    attack = Attack("session of level 1", wrong, twin, 401, "invalid_token")
    await carry_out(client, [attack], at_least=1)


async def test_replayed_refresh_token_ends_no_sign_in_in_progress(
    client: Client, owner: Owner
) -> None:
    """The thief's family ends; the owner, who has shown the password, goes on."""
    twin = await passkey_as_second_factor(client, owner)
    family = [owner.account.tokens]
    for _ in range(2):
        family.append(await (await refresh(client, family[-1]["refresh_token"])).json())
    assert (await refresh(client, family[0]["refresh_token"])).status == 401
    wrong = Request("GET", EXPORT, headers=bearer(family[-1]["access_token"]))
    await carry_out(client, [Attack("its family", wrong, twin, 401, "invalid_token")], at_least=1)


@pytest.mark.asvs("8.2.2")
async def test_refusals_do_not_tell_which_factors_there_are(
    client: Client, owner: Owner, other: Owner
) -> None:
    """Factors of others, and apps to be confirmed, are refused like those that do not exist."""
    pending = (await start_totp(client, owner.headers)).factor_id
    theirs = [other.app.factor_id, (await start_totp(client, other.headers)).factor_id]
    paths: dict[str, tuple[str, Any, list[str]]] = {
        "PATCH": ("", {"name": "Phone"}, [*theirs, pending]),
        "DELETE": ("", None, [*theirs, pending]),
        "POST": ("/confirm", {"code": owner.app.code(1)}, [*theirs, owner.app.factor_id]),
    }
    for method, (ending, body, ids) in paths.items():
        found = []
        for factor_id in (NO_ONE, *ids):
            request = Request(method, f"{FACTORS}/{factor_id}{ending}", "", owner.headers, body)
            response = await request.send(client)
            found.append(await assert_problem(response, 404, "not_found"))
        assert all(each == found[0] for each in found)
