"""Passkeys of accounts: which site they belong to, and the check of one that is stored."""

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import read
from service.factors import queries
from service.factors.problems import LAST_WAY_IN, PASSKEYS_NOT_CONFIGURED, refused
from service.factors.webauthn import (
    Passkey,
    PasskeyRefused,
    RelyingParty,
    credential_id_of,
    relying_party,
    verify_assertion,
)
from service.http.problems import Problem, ProblemType


class Used(NamedTuple):
    """A passkey that has signed a challenge, with what is to be stored of that."""

    factor_id: uuid.UUID
    user_id: uuid.UUID
    old_count: int
    new_count: int
    backed_up: bool
    method: str


def site(app: web.Application) -> RelyingParty:
    """Return the site that passkeys belong to. Raises Problem 409 if there is none."""
    found = relying_party(app[SETTINGS])
    if found is None:
        raise Problem(PASSKEYS_NOT_CONFIGURED)
    return found


async def check_assertion(
    app: web.Application,
    challenge: bytes,
    credential: Mapping[str, Any],
    *,
    refusals: tuple[ProblemType, ...],
    owner_id: uuid.UUID | None = None,
) -> Used:
    """Check that a stored passkey, of ``owner_id`` if that is given, has signed the challenge.

    Raises one of ``refusals``. The first of them means that no such account has the passkey.
    """
    rp = site(app)
    try:
        found = await read(app, queries.find_passkey, credential_id_of(credential))
        if found is None or owner_id not in (None, found["user_id"]):
            raise Problem(refusals[0])
        assertion = verify_assertion(rp, challenge, credential, _stored(found))
    except PasskeyRefused as error:
        raise refused(error, refusals) from None
    # Without a name, the handle must say whose it is; otherwise, a client may leave it out.
    handle = assertion.user_handle
    if handle != found["passkey_handle"] and (handle is not None or owner_id is None):
        raise Problem(refusals[0])
    return Used(
        found["id"],
        found["user_id"],
        found["sign_count"],
        assertion.sign_count,
        assertion.backed_up,
        method_of(found["backup_eligible"]),
    )


async def note_use(conn: Connection, used: Used, refusals: tuple[ProblemType, ...]) -> None:
    """Store the use of a passkey. Raises a refusal if it has just been used or removed."""
    if not await queries.use_passkey(
        conn, used.factor_id, used.old_count, used.new_count, backed_up=used.backed_up
    ):
        changed = PasskeyRefused("counter_fell", "The passkey has just been used, or removed.")
        raise refused(changed, refusals)


async def keep_a_way_in(conn: Connection, user_id: uuid.UUID) -> None:
    """Raise Problem 409 if the account has neither a password nor a passkey."""
    account = await credentials.find_own_credentials(conn, user_id)
    has_password = account is not None and account["password_hash"] is not None
    if not has_password and await queries.count_factors(conn, user_id, "passkey") == 0:
        raise Problem(LAST_WAY_IN)


def method_of(backup_eligible: bool) -> str:
    """Return the method of a passkey: a key in hardware, or one that can be synchronized."""
    return "swk" if backup_eligible else "hwk"


def _stored(row: asyncpg.Record) -> Passkey:
    return Passkey(
        row["credential_id"], row["public_key"], row["sign_count"], row["backup_eligible"]
    )
