"""Throttling: how often an account, or a client, may be tried, counted together by all replicas.

The generic cell rate algorithm (GCRA, ITU-T I.371): of each limit the table keeps one timestamp,
the moment at which its whole quota is there again. An attempt moves it on by ``window / requests``
unless that would put it further ahead than the window; a refused attempt moves nothing, so that no
attacker can prolong a penalty. The clock is the database's, which the replicas share.

What ``check`` counts are attempts, before a password is hashed; a handler gives back those that
succeed (``refund``). So only failures use a quota up, while of a burst of guesses no more are let
through than there is quota.

An owner's way past an attacker: the networks where an account has signed in before
(``remember_network``) are counted each for itself, apart from the account's other attempts and from
those of their address. Whoever shares such a network can tell it from this, and nobody else.
"""

import hmac
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import NamedTuple

from aiohttp import web

from service.context import REQUEST_CONTEXT, SETTINGS
from service.db.connection import Connection
from service.db.transactions import write
from service.http.problems import Problem, ProblemType
from service.jobs.periodic import Job
from service.sealing import derive_key
from service.settings import Rate, Settings
from service.telemetry import metrics
from service.throttle.known_networks import forget_networks, is_known_network, network_of

FORGOTTEN_AT_ONCE = 50_000

TOO_MANY_REQUESTS = ProblemType(429, "too_many_requests", "Too many attempts. Try again later.")


class Action(NamedTuple):
    """What is limited, and which settings say how much."""

    name: str
    per_ip: Callable[[Settings], Rate]
    per_account: Callable[[Settings], Rate] | None = None
    known_networks: bool = False


# Wherever a password is asked for, of strangers or of somebody signed in.
SIGN_IN = Action(
    "sign-in",
    attrgetter("throttle_sign_in_per_ip"),
    attrgetter("throttle_sign_in_per_account"),
    known_networks=True,
)
REGISTRATION = Action("registration", attrgetter("throttle_registration_per_ip"))
# Known networks would be of no use here: whoever asks, the mail goes to the owner.
PASSWORD_RESET = Action(
    "password-reset",
    attrgetter("throttle_mail_per_ip"),
    attrgetter("throttle_mail_per_account"),
)
VERIFICATION = Action(
    "verification",
    attrgetter("throttle_mail_per_ip"),
    attrgetter("throttle_mail_per_account"),
)


class Limit(NamedTuple):
    """A rate for somebody; ``whose`` is an account, a network, or both."""

    name: str
    rate: Rate
    whose: str


class Count(NamedTuple):
    """How a limit stands after an attempt: the whole quota is there in ``ahead`` from now."""

    limit: Limit
    key: bytes
    allowed: bool
    ahead: timedelta


# What ``check`` has counted of a request, for ``refund``.
_COUNTS: web.RequestKey[list[Count]] = web.RequestKey("throttle_counts")


async def check(request: web.Request, action: Action, account: str | None = None) -> None:
    """Count an attempt. Raises Problem 429 where it is one too many, with Retry-After in seconds.

    ``account`` is an address in the form of ``fields.fold_email``. Whether there is such an account
    changes neither the queries nor the answer. Every answer of the request then has the headers of
    draft-ietf-httpapi-ratelimit-headers-10.
    """
    if not request.app[SETTINGS].throttle:
        return
    counts = await write(request.app, _count, request, action, account)
    request[_COUNTS] = counts
    _set_headers(counts)
    if counts and not counts[-1].allowed:
        metrics.count(request.app, "throttled_requests", policy=counts[-1].limit.name)
        raise Problem(TOO_MANY_REQUESTS, headers={"Retry-After": str(_wait_s(counts[-1]))})


async def refund(conn: Connection, request: web.Request) -> None:
    """Give back what ``check`` counted, as the attempt succeeds: in the transaction of its success.

    Last in it, because others wait for these rows.
    """
    counts = request.get(_COUNTS, ())
    _set_headers([count._replace(ahead=await _give_back(conn, count)) for count in counts])


def _set_headers(counts: Sequence[Count]) -> None:
    """Have the response say how the limit stands that is nearest to its end."""
    if not counts:
        return
    nearest = min(reversed(counts), key=_remaining)
    name, rate, _ = nearest.limit
    headers = REQUEST_CONTEXT.get().headers
    headers["RateLimit-Policy"] = f'"{name}";q={rate.requests};w={rate.window_s}'
    headers["RateLimit"] = f'"{name}";r={_remaining(nearest)};t={_wait_s(nearest)}'


async def _count(
    conn: Connection, request: web.Request, action: Action, account: str | None
) -> list[Count]:
    """Take one from each limit in turn, up to the first that refuses."""
    key = derive_key(request.app[SETTINGS].secret_key, "throttles")
    counts = []
    for limit in await _limits(conn, request, action, account):
        hashed = hmac.digest(key, f"{limit.name}\0{limit.whose}".encode(), "sha256")
        counts.append(await _take(conn, limit, hashed))
        if not counts[-1].allowed:
            break
    return counts


async def _limits(
    conn: Connection, request: web.Request, action: Action, account: str | None
) -> list[Limit]:
    """The limits that an attempt meets. All replicas lock them in this order."""
    settings = request.app[SETTINGS]
    network = network_of(request)
    limits = []
    if network is not None:
        limits.append(Limit(f"{action.name}-per-ip", action.per_ip(settings), str(network)))
    if action.per_account is None or account is None:
        return limits
    name, rate = f"{action.name}-per-account", action.per_account(settings)
    if action.known_networks and network and await is_known_network(conn, account, network):
        return [Limit(name, rate, f"{account}\0{network}")]
    return [*limits, Limit(name, rate, account)]


def _interval(rate: Rate) -> timedelta:
    """How long it takes for one more attempt to be there."""
    return timedelta(seconds=rate.window_s) // rate.requests


def _remaining(count: Count) -> int:
    """How many more attempts would be let through now."""
    interval = _interval(count.limit.rate)
    free = interval * count.limit.rate.requests - count.ahead
    return free // interval if count.allowed else 0


def _wait_s(count: Count) -> int:
    """Whole seconds until one more attempt is there than now, at least 1."""
    interval = _interval(count.limit.rate)
    more = _remaining(count) + 1 - count.limit.rate.requests
    return max(1, math.ceil((count.ahead + interval * more).total_seconds()))


async def _take(conn: Connection, limit: Limit, key: bytes) -> Count:
    """Take one from the quota, if there is one.

    The clock is read while the row is locked, not at the statement's start: of attempts that waited
    for each other, the last would find itself in the past of the first, and one too few would pass.
    A refused attempt may see its row as it was before it waited, which makes Retry-After too small.
    """
    interval = _interval(limit.rate)
    row = await conn.fetchrow(
        """
        with taken as (
            insert into throttles as throttle (key, arrival_at)
            values ($1, clock_timestamp() + $2::interval)
            on conflict (key) do update
            set arrival_at = greatest(throttle.arrival_at, clock_timestamp()) + $2
            where greatest(throttle.arrival_at, clock_timestamp()) + $2
                <= clock_timestamp() + $3::interval
            returning arrival_at
        )
        select exists (select from taken) as allowed,
               coalesce(
                   (select arrival_at from taken),
                   (select arrival_at from throttles where key = $1),
                   clock_timestamp() + $3
               ) - clock_timestamp() as ahead
        """,
        key,
        interval,
        interval * limit.rate.requests,
    )
    assert row is not None  # noqa: S101
    return Count(limit, key, row["allowed"], row["ahead"])


async def _give_back(conn: Connection, count: Count) -> timedelta:
    """Undo a ``_take``; how far ahead the limit is then."""
    ahead: timedelta | None = await conn.fetchval(
        """
        update throttles set arrival_at = arrival_at - $2::interval where key = $1
        returning greatest(arrival_at - clock_timestamp(), interval '0')
        """,
        count.key,
        _interval(count.limit.rate),
    )
    return ahead or timedelta(0)


async def forget_throttles(app: web.Application, conn: Connection) -> None:
    """Delete the limits whose quota is whole again, which is what having no row means."""
    await conn.execute(
        """
        delete from throttles where key in (
            select key from throttles where arrival_at < now()
            limit $1 for update skip locked
        )
        """,
        FORGOTTEN_AT_ONCE,
    )


JOBS = (
    Job("forget throttles", 60, forget_throttles),
    Job("forget networks", 24 * 3600, forget_networks),
)
