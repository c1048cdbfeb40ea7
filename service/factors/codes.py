"""One-time codes and recovery codes of an account."""

import os
import uuid

import asyncpg
from aiohttp import web

from service.accounts import credential_queries as credentials
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


def seal_secret(app: web.Application, factor_id: uuid.UUID, secret: bytes) -> bytes:
    return seal(app[SETTINGS].secret_key, SECRET_PURPOSE, str(factor_id), secret)


def find_step(app: web.Application, row: asyncpg.Record, code: str) -> int | None:
    """Return the time step of the code, or None if it is wrong or used.

    ``row`` has the sealed secret, the last step, and the database's time, so that a replica whose
    clock is off does not refuse all codes.
    """
    secret = _unseal(app, SECRET_PURPOSE, str(row["id"]), row["sealed_secret"])
    return totp.find_step(secret, code, row["unix_time_s"], row["last_step"])


async def use_code(conn: Connection, request: web.Request, user_id: uuid.UUID, code: str) -> bool:
    """Use up a code of one of the account's authenticator apps. Return whether it was a good one.

    A wrong one counts against each of them. One that no longer accepts codes after that is reported
    to its owner. The account must be locked.
    """
    rows = await queries.list_totp(conn, user_id)
    sealed_otherwise = None
    for row in rows:
        try:
            step = find_step(request.app, row, code)
        except SettingsError as error:
            sealed_otherwise = error
            continue
        if step is not None:
            await queries.use_step(conn, user_id, row["id"], step)
            return True
    if sealed_otherwise is not None:
        raise sealed_otherwise
    await queries.count_failure(conn, user_id)
    locked = [row for row in rows if row["failures"] + 1 >= queries.FAILURES_MAX]
    if locked:
        await send_mail(conn, request.app, await _owner(conn, user_id), "second_factor_locked")
    for row in locked:
        after = {"factor_id": str(row["id"]), "type": "totp"}
        await record(conn, request, "factor.lock", user_id, after=after)
    return False


async def _owner(conn: Connection, user_id: uuid.UUID) -> asyncpg.Record:
    owner = await accounts.lock_profile(conn, user_id)
    assert owner is not None  # noqa: S101
    return owner


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
    conn: Connection, request: web.Request, user_id: uuid.UUID, code: str
) -> bool:
    """Use up a recovery code and tell its owner. Return whether it was a good one."""
    sealed = await credentials.find_recovery_key(conn, user_id)
    if sealed is None:
        return False
    key = _unseal(request.app, RECOVERY_PURPOSE, str(user_id), sealed)
    if not await queries.use_recovery_code(conn, user_id, recovery_codes.hash_code(key, code)):
        return False
    left = str(await queries.count_recovery_codes(conn, user_id))
    owner = await _owner(conn, user_id)
    await send_mail(conn, request.app, owner, "recovery_code_used", left=left)
    return True


def _unseal(app: web.Application, purpose: str, bound_to: str, sealed: bytes) -> bytes:
    try:
        return unseal(app[SETTINGS].secret_keys, purpose, bound_to, sealed)
    except SealError:
        raise SettingsError(
            "SECRET_KEY: expected the value that sealed this database's second factors"
        ) from None
