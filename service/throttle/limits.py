"""Rate limits on attempts per account and per IP, shared by all replicas.

Implements the generic cell rate algorithm (GCRA, ITU-T I.371). The table keeps one timestamp per
limit: the time at which the full quota is available again. An attempt advances it by ``window /
requests``, unless that would put it further ahead than the window. A refused attempt changes
nothing, so an attacker cannot prolong a lockout. All replicas use the database's clock.

``check`` counts attempts before a password is hashed, and handlers refund successful ones
(``refund``). So only failures use up the quota, and a burst of guesses never exceeds it. One
generous limit per IP counts successes too. An attempt that ends in a 5xx is refunded in full
(``service.throttle.refunds``).

So that an attacker elsewhere cannot lock the owner out of signing in, each network the account has
signed in from (``remember_network``) has its own counter per account. It has the name and rate of
the shared counter, and the limits per IP count all the same. So the responses to one client do not
tell which accounts are known in its network, unless an attacker also uses up the shared counter.
"""

import hmac
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from aiohttp import web

from service.context import REQUEST_CONTEXT, SETTINGS
from service.db.connection import Connection
from service.db.transactions import write
from service.http.client_ip import network_of
from service.http.problems import Problem, ProblemType
from service.jobs.periodic import Job
from service.sealing import derive_key
from service.settings import Rate, Settings
from service.telemetry import metrics
from service.throttle.known_networks import forget_networks, is_known_network

DELETE_BATCH = 50_000
_PER_ACCOUNT = "-per-account"

TOO_MANY_REQUESTS = ProblemType(429, "too_many_requests", "Too many attempts. Try again later.")


class Action(NamedTuple):
    """A limited action, and the settings that hold its rates.

    With ``all_per_ip``, the other two rates count only failures, and known networks have their own
    counter per account.
    """

    name: str
    per_ip: Callable[[Settings], Rate]
    per_account: Callable[[Settings], Rate] | None = None
    all_per_ip: Callable[[Settings], Rate] | None = None


# Every endpoint that asks for a password, whether or not the caller is signed in.
SIGN_IN = Action(
    "sign-in",
    attrgetter("throttle_sign_in_per_ip"),
    attrgetter("throttle_sign_in_per_account"),
    attrgetter("throttle_all_sign_ins_per_ip"),
)
REGISTRATION = Action("registration", attrgetter("throttle_registration_per_ip"))
# Inspecting mailed links, as often as guessing passwords.
LINK = Action("link", attrgetter("throttle_sign_in_per_ip"))
# No counter per known network: the mail goes to the owner, whatever client requests it.
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


# Changes of second factors. Each sends a mail, and the email may be a stranger's.
SECOND_FACTORS = Action(
    "second-factors",
    attrgetter("throttle_factors_per_ip"),
    attrgetter("throttle_factors_per_account"),
)


class Limit(NamedTuple):
    """A rate, and whom it limits: an account, a network, or both."""

    name: str
    rate: Rate
    subject: str
    only_failures: bool


class Count(NamedTuple):
    """The state of a limit after an attempt; the full quota is available again after ``ahead``.

    ``age`` is how long ago that was, for an attempt of an earlier request.
    """

    limit: Limit
    key: bytes
    allowed: bool
    ahead: timedelta
    age: timedelta = timedelta(0)


# All counts that ``check`` made for a request, for refunds.
COUNTS: web.RequestKey[list[Count]] = web.RequestKey("throttle_counts")


async def check(request: web.Request, action: Action, account: str | None = None) -> None:
    """Count an attempt. Raises Problem 429 with Retry-After in seconds if it exceeds a limit.

    ``account`` is an email folded by ``fields.fold_email``. The queries and the response are the
    same whether or not such an account exists. The response gets the headers of
    draft-ietf-httpapi-ratelimit-headers-10, whatever its status.
    """
    if not request.app[SETTINGS].throttle:
        return
    counts = await write(request.app, _count, request, action, account)
    made = [*request.get(COUNTS, ()), *counts]
    request[COUNTS] = made
    _set_headers(made)
    if counts and not counts[-1].allowed:
        metrics.count(request.app, "throttled_requests", policy=counts[-1].limit.name)
        raise Problem(TOO_MANY_REQUESTS, headers={"Retry-After": str(_wait_s(counts[-1]))})


async def refund(conn: Connection, request: web.Request, earlier: Sequence[Count] = ()) -> None:
    """Refund the counts that are for failures only, in the transaction of a success.

    ``earlier`` are those of the sign-in's other requests. Call it last in the transaction, because
    other requests wait for the locked rows.
    """
    counts = [*earlier, *request.get(COUNTS, ())]
    # In the order in which all replicas lock them.
    counts.sort(key=lambda count: (count.limit.name.endswith(_PER_ACCOUNT), count.key))
    # Of two counts of one limit, the later one says how it is now.
    after: dict[bytes, Count] = {}
    for count in counts:
        ahead = await refund_count(conn, count) if count.limit.only_failures else count.ahead
        after[count.key] = count._replace(ahead=ahead)
    _set_headers([*after.values()])


def counts_to_keep(request: web.Request) -> list[list[Any]]:
    """Return what ``refund`` would refund for this request, as JSON for ``kept_counts``."""
    return [
        [count.limit.name, *count.limit.rate, count.key.hex()]
        for count in request.get(COUNTS, ())
        if count.limit.only_failures
    ]


def kept_counts(kept: Iterable[Sequence[Any]], age: timedelta) -> list[Count]:
    """Return counts from ``counts_to_keep``, made ``age`` ago, without their subjects."""
    return [
        Count(Limit(name, Rate(*rate), "", True), bytes.fromhex(key), True, timedelta(0), age)
        for name, *rate, key in kept
    ]


def _set_headers(counts: Sequence[Count]) -> None:
    """Set the response's RateLimit headers for the limit with the fewest remaining attempts."""
    if not counts:
        return
    nearest = min(reversed(counts), key=_remaining)
    name, rate = nearest.limit.name, nearest.limit.rate
    headers = REQUEST_CONTEXT.get().headers
    headers["RateLimit-Policy"] = f'"{name}";q={rate.requests};w={rate.window_s}'
    headers["RateLimit"] = f'"{name}";r={_remaining(nearest)};t={_wait_s(nearest)}'


async def _count(
    conn: Connection, request: web.Request, action: Action, account: str | None
) -> list[Count]:
    """Count the attempt against each limit in turn, stopping at the first that refuses it."""
    key = derive_key(request.app[SETTINGS].secret_key, "throttles")
    counts = []
    for limit in await _limits(conn, request, action, account):
        hashed = hmac.digest(key, f"{limit.name}\0{limit.subject}".encode(), "sha256")
        counts.append(await _take(conn, limit, hashed))
        if not counts[-1].allowed:
            break
    return counts


async def _limits(
    conn: Connection, request: web.Request, action: Action, account: str | None
) -> list[Limit]:
    """Return the limits of an attempt, in the order in which all replicas lock them."""
    settings = request.app[SETTINGS]
    network = network_of(request)
    only_failures = action.all_per_ip is not None
    limits = []
    if network is not None:
        rate = action.per_ip(settings)
        limits.append(Limit(f"{action.name}-per-ip", rate, str(network), only_failures))
    if network is not None and action.all_per_ip is not None:
        rate = action.all_per_ip(settings)
        limits.append(Limit(f"all-{action.name}s-per-ip", rate, str(network), only_failures=False))
    if action.per_account is not None and account is not None:
        subject = account
        if action.all_per_ip and network and await is_known_network(conn, account, network):
            subject = f"{account}\0{network}"
        rate = action.per_account(settings)
        limits.append(Limit(f"{action.name}{_PER_ACCOUNT}", rate, subject, only_failures))
    return limits


def _interval(rate: Rate) -> timedelta:
    """Return how long the quota takes to regain one attempt."""
    return timedelta(seconds=rate.window_s) // rate.requests


def _remaining(count: Count) -> int:
    """Return how many more attempts would be allowed now."""
    interval = _interval(count.limit.rate)
    free = interval * count.limit.rate.requests - count.ahead
    return free // interval if count.allowed else 0


def _wait_s(count: Count) -> int:
    """Return whole seconds, at least 1, until the quota regains one attempt."""
    interval = _interval(count.limit.rate)
    more = _remaining(count) + 1 - count.limit.rate.requests
    return max(1, math.ceil((count.ahead + interval * more).total_seconds()))


async def _take(conn: Connection, limit: Limit, key: bytes) -> Count:
    """Take one attempt from the quota, if one is left.

    Reads the clock while the row is locked, not when the statement starts. Otherwise attempts that
    waited for the lock would use an outdated time, and one too few would be allowed. A refused
    attempt may see its row as it was before the wait, which makes Retry-After too small.
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


async def refund_count(conn: Connection, count: Count) -> timedelta:
    """Undo a ``_take`` and return how far ahead the limit is afterwards.

    What the quota has regained since then is not given back again.
    """
    ahead: timedelta | None = await conn.fetchval(
        """
        update throttles set arrival_at = arrival_at - $2::interval where key = $1
        returning greatest(arrival_at - clock_timestamp(), interval '0')
        """,
        count.key,
        max(timedelta(0), _interval(count.limit.rate) - count.age),
    )
    return ahead or timedelta(0)


async def forget_throttles(app: web.Application, conn: Connection) -> None:
    """Delete limits whose full quota is available again, which is what a missing row means."""
    await conn.execute(
        """
        delete from throttles where key in (
            select key from throttles where arrival_at < now()
            limit $1 for update skip locked
        )
        """,
        DELETE_BATCH,
    )


JOBS = (
    Job("forget throttles", 60, forget_throttles),
    Job("forget networks", 3600, forget_networks),
)
