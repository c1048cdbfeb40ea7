"""Attempts at an account's password: limited, and visible to the operator if they fail."""

import logging
import uuid
from typing import Literal

import asyncpg
from aiohttp import web

from service.auth.assurance import require_recent
from service.auth.passwords import WRONG_PASSWORD, require_room, verify_password
from service.context import USER
from service.http.fields import fold_email
from service.http.problems import Problem, ProblemType
from service.telemetry.metrics import count
from service.throttle import limits as throttle

log = logging.getLogger(__name__)


async def count_attempt(request: web.Request, email_folded: str) -> None:
    """Count an attempt. Raises Problem 429, or 503 if the hash queue is full, counting nothing."""
    require_room(request.app)
    await count_guess(request, email_folded)


async def count_guess(request: web.Request, email_folded: str | None) -> None:
    """Count an attempt that hashes nothing, such as a one-time code. Raises Problem 429."""
    try:
        await throttle.check(request, throttle.SIGN_IN, email_folded)
    except Problem as problem:
        if problem.status == 429:
            count(request.app, "sign_ins", outcome="throttled")
        raise


async def require_own(
    request: web.Request,
    owner: asyncpg.Record,
    password_hash: str | None,
    password: str,
    refusal: ProblemType = WRONG_PASSWORD,
) -> None:
    """Raise ``refusal`` if this is not the password of ``owner``, an account with id and email.

    The attempt counts toward the sign-in limit, so nothing but a sign-in helps to guess passwords.
    """
    await count_attempt(request, fold_email(owner["email"]))
    if not await verify_password(request.app, password_hash, password):
        report_refusal(request.app, "wrong", owner["id"])
        raise Problem(refusal)


async def require_proof(
    request: web.Request, password_hash: str | None, password: str | None
) -> None:
    """Raise a Problem unless the signed-in user proves again that the account is theirs.

    A recent proof of the account's level is enough, and so is its password if it has no second
    factor. A password that is sent must be right in any case.
    """
    user = request[USER]
    if password is None or user["has_second_factor"]:
        require_recent(user)
    if password is not None:
        await require_own(request, user, password_hash, password)


def report_refusal(
    app: web.Application, outcome: Literal["wrong", "refused"], account_id: uuid.UUID | None
) -> None:
    """Log a refused proof, and count it. The access log leaves out accounts only named."""
    count(app, "sign_ins", outcome=outcome)
    log.info("sign-in refused", extra={"account_id": account_id})
