"""How many rows an account, a world, a story and an event may have."""

import asyncpg
from aiohttp import web

from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.http.problems import Problem, ProblemType
from service.worlds import queries

LIMIT_REACHED = ProblemType(
    422, "limit_reached", "You have as many worlds, stories, events or beats as one may have."
)
# Bounds that keep each statement short. Those of an account are settings.
EVENTS_PER_WORLD = 5_000
BEATS_PER_STORY = 5_000
BEATS_PER_EVENT = 1_000


async def check_limits(
    conn: Connection, request: web.Request, world: asyncpg.Record | None = None
) -> None:
    """Raise Problem 422 if the account, or the world with its new counts, has too many rows."""
    settings = request.app[SETTINGS]
    count = await queries.count_rows(conn, request[USER]["id"])
    for number, limit, what in (
        (count["worlds"], settings.worlds_per_account, "worlds"),
        (count["stories"], settings.stories_per_account, "stories"),
        (count["beats"], settings.beats_per_account, "beats"),
        (world["events"] if world else 0, EVENTS_PER_WORLD, "events in a world"),
    ):
        check_limit(number, limit, what)


def check_limit(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise Problem(LIMIT_REACHED, f"You can have at most {limit} {what}.")
