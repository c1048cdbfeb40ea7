"""A world as one JSON document: written from the database, and read in bounded memory."""

import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import IO, Any, TypeAlias

import asyncpg
import ijson

from service.db.connection import Connection
from service.http.field_errors import escape_pointer, field_error
from service.http.fields import NUMBER_MAX_CHARS, read_float
from service.http.problems import MALFORMED_JSON, Problem, ProblemType, invalid_fields
from service.json_codec import encode
from service.worlds import export_queries, schemas

VERSION = "1.0"
UNKNOWN_VERSION = ProblemType(
    400, "unknown_version", f'This is not a document of version "{VERSION}".'
)
# Of a row: levels of nesting, and members of an object or elements of an array.
DEPTH_MAX = 8
MEMBERS_MAX = 100
# What the parser raises for text that is not JSON, for a surrogate as UTF-8, and for an exponent
# beyond what Decimal takes.
UNREADABLE = (ijson.JSONError, UnicodeDecodeError, InvalidOperation)
MEMBERS = ("version", "exported_at", "world", "world_events", "stories")
_EACH = None
# Yields the names of an object, without their values.
_NAMES = ""
_Event: TypeAlias = tuple[str, Any]
_DEPTHS = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}


async def write_document(conn: Connection, world: asyncpg.Record) -> AsyncIterator[bytes]:
    """Yield the document of a world, in a transaction that sees all of it at one moment."""
    yield b'{"version":"%s","exported_at":' % VERSION.encode()
    yield encode(datetime.now(UTC)) + b',"world":' + encode(schemas.WORLD.dump(world))
    yield b',"world_events":'
    separator = b"["
    async for event in export_queries.walk_events(conn, world["id"]):
        yield separator + encode(schemas.EVENT.dump(event))
        separator = b","
    yield b'],"stories":' if separator == b"," else b'[],"stories":'
    separator = b"["
    for story in await export_queries.list_all_stories(conn, world["id"]):
        yield separator + encode(schemas.STORY.dump(story))[:-1] + b',"story_beats":'
        separator, inner = b",", b"["
        async for beat in export_queries.walk_beats(conn, story["id"]):
            yield inner + encode(schemas.BEAT.dump(beat))
            inner = b","
        yield b"]}" if inner == b"," else b"[]}"
    yield b"]}" if separator == b"," else b"[]}"


def check_outline(file: IO[bytes]) -> None:
    """Raise a Problem unless the document is JSON, of this version, and has the right members.

    400 is for text that is not JSON (RFC 8259, RFC 7493) and for another version, 422 for others.
    """
    names = [name for name, _ in _walk(file, _NAMES)]
    # First, because another version may have other members.
    if "version" in names and read_value(file, "version") != VERSION:
        raise Problem(UNKNOWN_VERSION)
    for name in names:
        if name not in MEMBERS:
            raise invalid_fields(
                field_error(f"#/{escape_pointer(name)}", "unknown_field", "Unknown field.")
            )
    missing = [name for name in ("version", "world") if name not in names]
    if missing:
        text = "Missing data for required field."
        raise invalid_fields(*(field_error(f"#/{name}", "required", text) for name in missing))


def read_value(file: IO[bytes], name: str) -> Any:
    """Return a member of a document whose outline is checked."""
    return next(_walk(file, name))[1]


def read_events(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the events, each with its place as a JSON Pointer."""
    return _walk(file, "world_events", _EACH)


def read_stories(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the stories, without their beats, each with its place as a JSON Pointer."""
    return _walk(file, "stories", _EACH, without="story_beats")


def read_beats(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the beats, each with its place as a JSON Pointer."""
    return _walk(file, "stories", _EACH, "story_beats", _EACH)


def _walk(file: IO[bytes], *path: str | None, without: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values at a path of names and, with None, all elements of an array.

    Raises Problem 400 if the document is not JSON, or repeats a name (RFC 7493), and 422 if it has
    other types on the path, or unknown members. ``without`` is a member that objects are read
    without.
    """
    file.seek(0)
    events = ijson.basic_parse(file)
    try:
        yield from _descend(events, next(events), path, "#", without)
        for _ in events:  # so that the rest of the document is JSON, too
            pass
    except UNREADABLE:
        raise Problem(MALFORMED_JSON) from None


def _descend(
    events: Iterator[_Event], event: _Event, path: tuple[str | None, ...], at: str, without: str
) -> Iterator[tuple[str, Any]]:
    if not path:
        yield at, _build(events, event, at, 0, without)
    elif path[0] is _EACH:
        _expect(event, "start_array", at, "Expected an array.")
        number = 0
        while (event := next(events))[0] != "end_array":
            yield from _descend(events, event, path[1:], f"{at}/{number}", without)
            number += 1
    else:
        _expect(event, "start_map", at, "Expected an object.")
        names: set[str] = set()
        while (event := next(events))[0] != "end_map":
            name, event = event[1], next(events)
            if name in names or len(names) > MEMBERS_MAX:
                raise Problem(MALFORMED_JSON)
            names.add(name)
            if path[0] != _NAMES and name == path[0]:
                yield from _descend(events, event, path[1:], f"{at}/{name}", without)
            else:
                _skip(events, event)
                if path[0] == _NAMES:
                    yield name, None


def _expect(event: _Event, kind: str, at: str, text: str) -> None:
    if event[0] != kind:
        raise invalid_fields(field_error(at, "invalid_type", text))


def _build(events: Iterator[_Event], event: _Event, at: str, depth: int, without: str = "") -> Any:
    """Return the value that begins with this event."""
    kind, value = event
    if kind == "number":
        return value if isinstance(value, int) else _read_number(value)
    if kind not in ("start_map", "start_array"):
        return value
    if depth > DEPTH_MAX:
        raise invalid_fields(field_error(at, "too_deep", "Nested too deeply."))
    built: dict[str, Any] | list[Any] = {} if kind == "start_map" else []
    while (event := next(events))[0] not in ("end_map", "end_array"):
        if isinstance(built, list):
            built.append(_build(events, event, at, depth + 1))
        elif event[1] in built:
            raise Problem(MALFORMED_JSON)
        else:
            name, event = event[1], next(events)
            if name == without:
                _skip(events, event)
            else:
                built[name] = _build(events, event, at, depth + 1)
        if len(built) > MEMBERS_MAX:
            raise invalid_fields(field_error(at, "too_many", "Too many members or elements."))
    return built


def _read_number(value: Decimal) -> float:
    text = str(value)
    return read_float(text) if len(text) <= NUMBER_MAX_CHARS else math.inf


def _skip(events: Iterator[_Event], event: _Event) -> None:
    depth = 0
    while True:
        depth += _DEPTHS.get(event[0], 0)
        if not depth:
            return
        event = next(events)
