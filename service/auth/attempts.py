"""Attempts at an account's password: limited, and visible to the operator if they fail."""

import logging
import uuid
from typing import Literal

import asyncpg
from aiohttp import web

from service.auth.passwords import WRONG_PASSWORD, require_room, verify_password
from service.http.fields import fold_email
from service.http.problems import Problem, ProblemType
from service.telemetry.metrics import count
from service.throttle import limits as throttle

log = logging.getLogger(__name__)


async def count_attempt(request: web.Request, email_folded: str) -> None:
    """Count an attempt. Raises Problem 429, or 503 if the hash queue is full, counting nothing."""
    require_room(request.app)
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


def report_refusal(
    app: web.Application, outcome: Literal["wrong", "refused"], account_id: uuid.UUID | None
) -> None:
    """Log a refused password, and count it. The access log leaves out accounts only named."""
    count(app, "sign_ins", outcome=outcome)
    log.info("sign-in refused", extra={"account_id": account_id})
