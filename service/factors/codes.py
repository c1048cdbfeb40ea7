"""One-time codes and recovery codes of an account."""

import os
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
from aiohttp import web

from service.accounts import queries as accounts
from service.audit.events import record
from service.context import SETTINGS
from service.db.connection import Connection
from service.factors import queries, recovery_codes, totp
from service.mail.notices import send_mail
from service.sealing import SealError, seal, unseal
from service.settings import SettingsError

SECRET_PURPOSE = "one-time code secrets"  # noqa: S105
RECOVERY_PURPOSE = "recovery codes"
_RECOVERY_KEY_BYTES = 32


class Match(NamedTuple):
    """The app that made a code, and the time step of the code."""

    factor_id: uuid.UUID
    step: int


def seal_secret(app: web.Application, factor_id: uuid.UUID, secret: bytes) -> bytes:
    return seal(app[SETTINGS].secret_key, SECRET_PURPOSE, str(factor_id), secret)


def match_code(app: web.Application, apps: Sequence[asyncpg.Record], code: str) -> Match | None:
    """Return the app and step that the code belongs to, or None if it is wrong or used.

    Each of ``apps`` comes with the database's time, so that a replica whose clock is off does not
    refuse all codes.
    """
    for row in apps:
        secret = _unseal(app, SECRET_PURPOSE, str(row["id"]), row["sealed_secret"])
        step = totp.find_step(secret, code, row["unix_time_s"], row.get("last_step"))
        if step is not None:
            return Match(row["id"], step)
    return None


async def report_locked(
    conn: Connection, request: web.Request, user_id: uuid.UUID, apps: Sequence[asyncpg.Record]
) -> None:
    """Tell the owner about each of ``apps`` that no longer accepts codes, and record it."""
    user = await accounts.lock_profile(conn, user_id)
    locked = [row for row in apps if row["failures"] >= queries.FAILURES_MAX]
    if user is None or not locked:
        return
    await send_mail(conn, request.app, user, "second_factor_locked")
    for row in locked:
        after = {"factor_id": str(row["id"]), "type": "totp"}
        await record(conn, request, "factor.lock", user_id, after=after)


async def replace_recovery_codes(
    conn: Connection, app: web.Application, user_id: uuid.UUID
) -> list[str]:
    """Make new recovery codes, which end the old ones, and return them. Only HMACs are stored."""
    key, codes = os.urandom(_RECOVERY_KEY_BYTES), recovery_codes.new_codes()
    sealed = seal(app[SETTINGS].secret_key, RECOVERY_PURPOSE, str(user_id), key)
    hashes = [recovery_codes.hash_code(key, code) for code in codes]
    await queries.replace_recovery_codes(conn, user_id, sealed, hashes)
    return codes


async def use_recovery_code(
    conn: Connection, app: web.Application, user_id: uuid.UUID, code: str
) -> bool:
    """Use up a recovery code. Return whether it was a good one."""
    sealed = await queries.find_recovery_key(conn, user_id)
    if sealed is None:
        return False
    key = _unseal(app, RECOVERY_PURPOSE, str(user_id), sealed)
    return await queries.use_recovery_code(conn, user_id, recovery_codes.hash_code(key, code))


def _unseal(app: web.Application, purpose: str, bound_to: str, sealed: bytes) -> bytes:
    try:
        return unseal(app[SETTINGS].secret_keys, purpose, bound_to, sealed)
    except SealError:
        raise SettingsError(
            "SECRET_KEY: expected the value that sealed this database's second factors"
        ) from None
