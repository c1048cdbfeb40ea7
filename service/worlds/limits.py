"""How many rows an account, a world, a story and an event may have."""

from typing import Literal, TypeAlias

from aiohttp import web

from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.http.problems import Problem, ProblemType
from service.worlds import queries

Kind: TypeAlias = Literal["worlds", "stories", "beats"]
LIMIT_REACHED = ProblemType(
    422, "limit_reached", "You have reached the limit of worlds, stories, events or beats."
)
CAUSES_CYCLE = ProblemType(
    422, "causes_cycle", "An event cannot be among the causes of its own causes."
)
# Bounds that keep each statement short. Those of an account are settings.
EVENTS_PER_WORLD = 5_000
BEATS_PER_STORY = 5_000
BEATS_PER_EVENT = 1_000


async def check_limits(conn: Connection, request: web.Request, *kinds: Kind) -> None:
    """Raise Problem 422 if the account has too many rows of these kinds, by its settings."""
    settings = request.app[SETTINGS]
    limits = {
        "worlds": settings.worlds_per_account,
        "stories": settings.stories_per_account,
        "beats": settings.beats_per_account,
    }
    count = await queries.count_rows(conn, request[USER]["id"])
    for kind in kinds:
        check_limit(count[kind], limits[kind], kind)


def check_limit(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise Problem(LIMIT_REACHED, f"You can have at most {limit} {what}.")
