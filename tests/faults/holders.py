"""Owners of passkeys who sign in during a fault, and the ledger of their sign-ins.

The counter of an authenticator numbers the sign-ins. A client that gets no answer to one sends it
again, so the ledger mostly knows what has become of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.faults.stage import Connection
from tests.support.authenticator import Authenticator
from tests.support.factories import PASSWORD, bearer
from tests.support.tokens import claims_of

# A challenge is good for five tries, of which these take four at most.
TRIES = 4
# The refusals of a sign-in that is repeated after it was accepted.
ACCEPTED_BEFORE = ("invalid_challenge", "passkey_counter_fell")


class Send(Protocol):
    """Sends a request and notes its outcome. ``refusals`` are codes of problems to be expected."""

    def __call__(
        self,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str] | None = None,
        *,
        refusals: tuple[str, ...] = (),
    ) -> Awaitable[tuple[int, Any]]: ...


@dataclass
class Holder:
    """An account with a passkey.

    ``sessions`` has the id of the session of each sign-in that was acknowledged, by the counter.
    Those of ``repeated`` were accepted, but the response was lost. Of those in ``unknown``, it is
    not known whether they were accepted.
    """

    email: str
    passkey: Authenticator = field(default_factory=Authenticator)
    sessions: dict[int, str] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)

    async def compare(self, administrator: Connection) -> tuple[int, int]:
        """Compare the ledger with what is stored; return how many are lost, and doubled."""
        account = "(select id from users where email = $1)"
        rows = await administrator.fetch(
            f"select id::text, created_at from sessions where user_id = {account} order by id",
            self.email,
        )
        # The first is the one that added the passkey.
        found = {row["id"] for row in rows[1:]}
        known = len(self.sessions) + len(self.repeated)
        lost = len(set(self.sessions.values()) - found) + max(0, known - len(found))
        doubled = max(0, len(found) - known - len(self.unknown))
        count: int = await administrator.fetchval(
            f"select sign_count from factors where user_id = {account}", self.email
        )
        lost += count < max([*self.sessions, *self.repeated], default=0)
        assert count <= self.passkey.count
        assert len(set(self.sessions.values())) == len(self.sessions)
        return lost, doubled


async def create_holder(expect: Callable[..., Awaitable[Any]], email: str) -> Holder:
    """Register an account, and add a passkey to it."""
    holder = Holder(email)
    tokens = await expect("POST", "/auth/register", {"email": email, "password": PASSWORD})
    headers = bearer(tokens["access_token"])
    begun = await expect("POST", "/users/me/passkeys/options", None, headers)
    credential = holder.passkey.create(begun["options"])
    body = {"challenge_id": begun["challenge_id"], "credential": credential}
    await expect("POST", "/users/me/passkeys", body, headers)
    return holder


async def sign_in_by_passkey(send: Send, holder: Holder) -> None:
    status, begun = await send("POST", "/auth/passkey/options", None)
    if status == 200:
        await _finish(
            send, holder, "/auth/passkey", begun["options"], challenge_id=begun["challenge_id"]
        )


async def sign_in_in_two_steps(send: Send, holder: Holder) -> None:
    """Sign in with the password and then with the passkey."""
    body = {"email": holder.email, "password": PASSWORD}
    status, problem = await send("POST", "/auth/login", body, refusals=("second_factor_required",))
    assert status != 200
    if status != 401:
        return
    challenge = problem["challenge"]
    path = "/auth/second-factor"
    status, begun = await send("POST", f"{path}/options", {"challenge": challenge})
    if status == 200:
        await _finish(send, holder, path, begun["options"], challenge=challenge)


async def _finish(
    send: Send, holder: Holder, path: str, options: dict[str, Any], **challenge: str
) -> None:
    body = {**challenge, "credential": holder.passkey.get(options)}
    count = holder.passkey.count
    holder.unknown.add(count)
    refusals: tuple[str, ...] = ()
    for _ in range(TRIES):
        status, answer = await send("POST", path, body, refusals=refusals)
        if status == 200:
            holder.sessions[count] = claims_of(answer["access_token"])["sid"]
        elif status == 401:
            holder.repeated.add(count)
        if status in (200, 401):
            holder.unknown.discard(count)
            return
        refusals = ACCEPTED_BEFORE
        await asyncio.sleep(0.1)
