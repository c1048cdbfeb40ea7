"""How and when the owner of a session proved who they are (NIST SP 800-63B-4, RFC 9470)."""

from datetime import datetime
from typing import NamedTuple

import asyncpg
from aiohttp import web

from service.context import SETTINGS
from service.http.problems import Problem, ProblemType

# How long a proof counts as recent.
RECENT_S = 10 * 60

INSUFFICIENT_AUTHENTICATION = ProblemType(
    401,
    "insufficient_authentication",
    "Prove again that the account is yours, with POST /api/v1/auth/reauthenticate.",
    {"WWW-Authenticate": 'Bearer error="insufficient_user_authentication"'},
)
ENROLMENT_REQUIRED = ProblemType(
    403,
    "enrolment_required",
    "This account must have a second factor. Set one up first, with"
    " POST /api/v1/users/me/factors/totp or POST /api/v1/users/me/passkeys/options.",
)


class Assurance(NamedTuple):
    """What a session proves: methods (RFC 8176), level, and when that level was last proved."""

    amr: list[str]
    aal: int
    proved_at: datetime


def assurance_of(session: asyncpg.Record) -> Assurance:
    """Return the assurance of a row with ``sessions.queries.ASSURANCE``.

    A session from before these were recorded was proved at its start at the latest.
    """
    return Assurance(session["amr"], session["aal"], session["proved_at"] or session["created_at"])


def require_level(user: asyncpg.Record, aal: int, max_age_s: int | None = None) -> None:
    """Raise Problem 401 unless the session has this level, proved less than ``max_age_s`` ago.

    ``user`` is the row of the signed-in user. The challenge says what is asked for (RFC 9470 §3).
    """
    age_s = user["proved_s_ago"]
    if user["aal"] >= aal and (max_age_s is None or (age_s is not None and age_s < max_age_s)):
        return
    challenge = f'Bearer error="insufficient_user_authentication", acr_values="aal{aal}"'
    if max_age_s is not None:
        challenge += f", max_age={max_age_s}"
    detail = None
    if aal == 2 and not user["has_second_factor"]:
        detail = "This takes a second factor, and your account has none. Set one up first."
    raise Problem(INSUFFICIENT_AUTHENTICATION, detail, headers={"WWW-Authenticate": challenge})


def require_recent(user: asyncpg.Record) -> None:
    """Raise Problem 401 unless the account's own level was proved less than RECENT_S ago.

    That is level 2 for an account with a second factor.
    """
    require_level(user, 2 if user["has_second_factor"] else 1, RECENT_S)


def require_policy(app: web.Application, user: asyncpg.Record) -> None:
    """Raise a Problem if the session lacks a second factor that the account has, or must have.

    It is a 401 for an account that has one. Such a session is from a replica of the previous
    version. It is a 403 for an account that must set one up, by REQUIRE_SECOND_FACTOR.
    """
    if user["aal"] >= 2:
        return
    if user["has_second_factor"]:
        require_level(user, 2)
    if needs_second_factor(app, user["role"]):
        raise Problem(ENROLMENT_REQUIRED)


def needs_second_factor(app: web.Application, role: str) -> bool:
    """Return whether REQUIRE_SECOND_FACTOR asks accounts of this role for a second factor."""
    policy = app[SETTINGS].require_second_factor
    return policy == "all" or (policy == "admins" and role == "admin")
