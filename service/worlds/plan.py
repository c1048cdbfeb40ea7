"""What to insert for a document, checked as a whole before the database is asked for anything."""

import asyncio
import graphlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any, TypeVar

import uuid_utils.compat as uuid_utils
from marshmallow import Schema, ValidationError

from service.http.field_errors import field_error, field_errors
from service.http.problems import Problem, invalid_fields
from service.settings import Settings
from service.worlds import document, schemas
from service.worlds.limits import (
    BEATS_PER_EVENT,
    BEATS_PER_STORY,
    CAUSES_CYCLE,
    EVENTS_PER_WORLD,
    check_limit,
)
from service.worlds.rows import no_such

T = TypeVar("T")

# Rows, and about how many characters, that are inserted at once.
ROWS_AT_ONCE = 100
CHARACTERS_AT_ONCE = 200_000


class Plan:
    """The rows of a document, with their new ids. The methods read the document again."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = schemas.new_world(world)
        self.event_ids: dict[uuid.UUID, uuid.UUID] = {}
        self.causes: list[tuple[uuid.UUID, uuid.UUID]] = []
        self.story_ids: list[uuid.UUID] = []
        self.beat_count = 0

    def events(self, spool: IO[bytes]) -> Iterator[tuple[uuid.UUID, dict[str, Any]]]:
        for at, value in document.read_events(spool):
            event = {**schemas.NEW_EVENT, **_load(schemas.IMPORT_EVENT, at, value)}
            yield self.event_ids[event["id"]], event

    def stories(self, spool: IO[bytes]) -> Iterator[tuple[uuid.UUID, dict[str, Any]]]:
        for story_id, (at, value) in zip(self.story_ids, document.read_stories(spool), strict=True):
            yield story_id, {**schemas.NEW_STORY, **_load(schemas.IMPORT_STORY, at, value)}

    def beats(self, spool: IO[bytes]) -> Iterator[tuple[uuid.UUID, uuid.UUID, dict[str, Any]]]:
        for _, story_id, beat in self.beats_with_places(spool):
            yield uuid_utils.uuid7(), story_id, beat

    def beats_with_places(
        self, spool: IO[bytes]
    ) -> Iterator[tuple[str, uuid.UUID, dict[str, Any]]]:
        """Yield the beats, each with its JSON Pointer and its story."""
        last = dict.fromkeys(self.story_ids, 0)
        for at, value in document.read_beats(spool):
            beat = {**schemas.NEW_BEAT, **_load(schemas.IMPORT_BEAT, at, value)}
            story_id = self.story_of(at)
            if beat["order_index"] is None:
                beat["order_index"] = last[story_id] + 1
            if beat["order_index"] > schemas.ORDER_MAX:
                text = "No place follows that of the beats before."
                raise invalid_fields(field_error(f"{at}/order_index", "invalid_number", text))
            last[story_id] = max(last[story_id], beat["order_index"])
            if beat["world_event_id"] is not None:
                beat["world_event_id"] = self.find_event(
                    beat["world_event_id"], f"{at}/world_event_id"
                )
            yield at, story_id, beat

    def story_of(self, at: str) -> uuid.UUID:
        """Return the id of the story at this JSON Pointer, or of what is in it."""
        return self.story_ids[int(at.split("/")[2])]

    def find_event(self, wanted: uuid.UUID, at: str) -> uuid.UUID:
        """Return the new id of an event. Raises Problem 422 if the document has none."""
        if wanted not in self.event_ids:
            raise no_such(at, "event")
        return self.event_ids[wanted]


def make_plan(spool: IO[bytes], settings: Settings) -> Plan:
    """Check a document, which takes seconds if it is large, and plan its import.

    Raises Problem 400 if it is not JSON or of another version, and 422 if any part is invalid.
    """
    document.check_outline(spool)
    plan = Plan(_load(schemas.IMPORT_WORLD, "#/world", document.read_value(spool, "world")))
    _plan_events(plan, spool)
    for at, value in document.read_stories(spool):
        check_limit(len(plan.story_ids) + 1, settings.stories_per_account, "stories")
        _load(schemas.IMPORT_STORY, at, value)
        plan.story_ids.append(uuid_utils.uuid7())
    _plan_beats(plan, spool, settings.beats_per_account)
    return plan


def _plan_events(plan: Plan, spool: IO[bytes]) -> None:
    causes: list[tuple[str, uuid.UUID, list[uuid.UUID]]] = []
    seen: set[uuid.UUID] = set()
    for at, value in document.read_events(spool):
        check_limit(len(seen) + 1, EVENTS_PER_WORLD, "events in a world")
        event = _load(schemas.IMPORT_EVENT, at, value)
        if event["id"] in seen:
            raise invalid_fields(field_error(f"{at}/id", "duplicate", "Given more than once."))
        seen.add(event["id"])
        causes.append((at, event["id"], event.get("caused_by_ids", [])))
    # New ids in the order of the old ones, so that causes keep their order.
    plan.event_ids = {event_id: uuid_utils.uuid7() for event_id in sorted(seen)}
    for at, event_id, cause_ids in causes:
        for number, cause_id in enumerate(cause_ids):
            cause = plan.find_event(cause_id, f"{at}/caused_by_ids/{number}")
            plan.causes.append((plan.event_ids[event_id], cause))
    require_no_cycle(plan.causes)


def require_no_cycle(causes: list[tuple[uuid.UUID, uuid.UUID]]) -> None:
    """Raise Problem 422 if an event is among the causes of its own causes."""
    sorter: graphlib.TopologicalSorter[uuid.UUID] = graphlib.TopologicalSorter()
    for event_id, cause_id in causes:
        sorter.add(event_id, cause_id)
    try:
        sorter.prepare()
    except graphlib.CycleError:
        raise Problem(CAUSES_CYCLE) from None


def _plan_beats(plan: Plan, spool: IO[bytes], limit: int) -> None:
    places: dict[uuid.UUID, set[int]] = {story_id: set() for story_id in plan.story_ids}
    links: Counter[uuid.UUID] = Counter()
    for at, story_id, beat in plan.beats_with_places(spool):
        plan.beat_count += 1
        check_limit(plan.beat_count, limit, "beats")
        taken = places[story_id]
        if beat["order_index"] in taken:
            text = "Another beat of the story has this place."
            raise invalid_fields(field_error(f"{at}/order_index", "duplicate", text))
        taken.add(beat["order_index"])
        check_limit(len(taken), BEATS_PER_STORY, "beats in a story")
        if beat["world_event_id"] is not None:
            links[beat["world_event_id"]] += 1
            check_limit(links[beat["world_event_id"]], BEATS_PER_EVENT, "beats on an event")


def _load(schema: Schema, at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid_fields(field_error(at, "invalid_type", "Expected an object."))
    try:
        loaded: dict[str, Any] = schema.load(value)
    except ValidationError as error:
        raise field_errors(error, at) from None
    return loaded


async def batches(rows: Iterator[T]) -> AsyncIterator[list[T]]:
    """Yield the rows, a few at a time. They are read on a thread."""
    while batch := await asyncio.to_thread(_take, rows):
        yield batch


def _take(rows: Iterator[Any]) -> list[Any]:
    batch: list[Any] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row[-1].values() if isinstance(value, str))
        if len(batch) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            break
    return batch
