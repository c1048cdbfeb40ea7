"""Access guards of the route table: who may call a route, and how they must have proved it."""

import functools
import uuid
from collections.abc import Callable

import asyncpg
from aiohttp import web
from aiohttp.typedefs import Handler

from service.auth.assurance import (
    ENROLMENT_REQUIRED,
    INSUFFICIENT_AUTHENTICATION,
    RECENT_S,
    require_level,
    require_policy,
    require_recent,
)
from service.auth.tokens import (
    INVALID_ACCESS_TOKEN,
    SESSION_ENDED,
    find_verified,
    verify_access_token,
)
from service.context import REQUEST_CONTEXT, USER
from service.db.coalescing import Coalesced
from service.http.descriptions import describe_access
from service.http.problems import ACCOUNT_NOT_FOUND, CHALLENGE, MISCONFIGURED, Problem, ProblemType

SIGNED_IN: web.AppKey["Coalesced[uuid.UUID, asyncpg.Record]"] = web.AppKey("signed_in")

NOT_SIGNED_IN = ProblemType(401, "not_signed_in", "Sign in and send the access token.", CHALLENGE)
FORBIDDEN = ProblemType(403, "forbidden", "Your role does not allow this.")
_TOKEN_PROBLEMS = (NOT_SIGNED_IN, INVALID_ACCESS_TOKEN, MISCONFIGURED)
# If REQUIRE_SECOND_FACTOR asks for more than the session has.
_POLICY_PROBLEMS = (*_TOKEN_PROBLEMS, INSUFFICIENT_AUTHENTICATION, ENROLMENT_REQUIRED)
_MINUTES = RECENT_S // 60
_RECENTLY = (
    f"whose session was proved in the last {_MINUTES} minutes: with a second factor, if the"
    " account has one."
)


@describe_access("No sign-in needed.")
def anyone(app: web.Application, handler: Handler) -> Handler:
    """Allow everyone; the route needs no token."""
    return handler


async def identify(app: web.Application, request: web.Request) -> None:
    """Set ``request[USER]`` to the bearer of the access token, whose session has not ended.

    A single read returns both the user and the session. Raises Problem 401 if there is no token or
    it is invalid.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Problem(NOT_SIGNED_IN)
    token = token.strip()
    bearer = find_verified(app, token) or await verify_access_token(app, token)
    user = await app[SIGNED_IN].find(bearer.session_id)
    if user is None or user["id"] != bearer.user_id:
        raise Problem(INVALID_ACCESS_TOKEN, SESSION_ENDED)
    request[USER] = user
    REQUEST_CONTEXT.get().user_id = user["id"]


@describe_access(
    "For any signed-in user, even without the second factor that the service asks for.",
    *_TOKEN_PROBLEMS,
)
def enrolling(app: web.Application, handler: Handler) -> Handler:
    """Allow the bearer of a valid access token whose session has not ended.

    Only what is needed to sign out, or to reach the level that REQUIRE_SECOND_FACTOR asks for, has
    this guard rather than ``signed_in``.
    """

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        await identify(app, request)
        return await handler(request)

    return guarded


@describe_access("For any signed-in user.", *_POLICY_PROBLEMS)
def signed_in(app: web.Application, handler: Handler) -> Handler:
    """Allow like ``enrolling``, unless the session is short of REQUIRE_SECOND_FACTOR."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        await identify(app, request)
        require_policy(app, request[USER])
        return await handler(request)

    return guarded


@describe_access(
    "For any signed-in user. Takes a recent proof, or the password if the account has no second"
    " factor.",
    *_POLICY_PROBLEMS,
)
def recently_or_by_password(app: web.Application, handler: Handler) -> Handler:
    """Allow like ``signed_in``; the handler calls ``attempts.require_proof``."""
    return signed_in(app, handler)


@describe_access(f"For any signed-in user {_RECENTLY}", *_POLICY_PROBLEMS)
def recently(app: web.Application, handler: Handler) -> Handler:
    """Allow like ``signed_in``, with a recent proof of the account's own level."""
    return signed_in(app, _if(require_recent, handler))


@describe_access(
    f"For any signed-in user {_RECENTLY}", *_TOKEN_PROBLEMS, INSUFFICIENT_AUTHENTICATION
)
def recently_enrolling(app: web.Application, handler: Handler) -> Handler:
    """Allow like ``enrolling``, with a recent proof of the account's own level."""
    return enrolling(app, _if(require_recent, handler))


@describe_access(
    f"For any signed-in user who has proved a second factor in the last {_MINUTES} minutes.",
    *_POLICY_PROBLEMS,
)
def aal2(app: web.Application, handler: Handler) -> Handler:
    """Allow like ``signed_in``, with a recent proof of level 2."""
    return signed_in(app, _if(lambda user: require_level(user, 2, RECENT_S), handler))


def _if(require: Callable[[asyncpg.Record], None], handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        require(request[USER])
        return await handler(request)

    return guarded


@describe_access("The access token is optional.", *_TOKEN_PROBLEMS, optional=True)
def optionally_signed_in(app: web.Application, handler: Handler) -> Handler:
    """Allow everyone; the handler calls ``identify`` unless the body has another proof."""
    return handler


@describe_access("For administrators and support.", *_POLICY_PROBLEMS, FORBIDDEN)
def support(app: web.Application, handler: Handler) -> Handler:
    """Allow support staff and administrators."""
    return signed_in(app, _only_for(handler, "support", "admin"))


@describe_access("For administrators.", *_POLICY_PROBLEMS, FORBIDDEN)
def admin(app: web.Application, handler: Handler) -> Handler:
    """Allow administrators only."""
    return signed_in(app, _only_for(handler, "admin"))


@describe_access(f"For administrators {_RECENTLY}", *_POLICY_PROBLEMS, FORBIDDEN)
def admin_recently(app: web.Application, handler: Handler) -> Handler:
    """Allow administrators only, with a recent proof of the account's own level."""
    return admin(app, _if(require_recent, handler))


def _only_for(handler: Handler, *roles: str) -> Handler:
    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        role = request[USER]["role"]
        if role == "user" and "user_id" in request.match_info:
            # A caller who may not read accounts must not learn which ones exist.
            raise Problem(ACCOUNT_NOT_FOUND)
        if role not in roles:
            raise Problem(FORBIDDEN)
        return await handler(request)

    return guarded
