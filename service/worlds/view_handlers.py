"""Endpoints that show a world: the timeline, where stories meet, what causes what, and search."""

import secrets
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from operator import itemgetter
from typing import Any

import asyncpg
from aiohttp import web

from service.db.connection import Connection
from service.db.replica import read_replica
from service.db.transactions import read, snapshot
from service.http.descriptions import Success, describe
from service.http.problems import SEARCH_TOO_BROAD, Problem
from service.http.requests import json_response, read_query
from service.http.streaming import stream_json
from service.json_codec import encode
from service.worlds import event_queries, schemas, shapes, view_queries
from service.worlds.ids import uuids
from service.worlds.lists import LIST, Row, dump_with, list_of, respond_with_list
from service.worlds.rows import get_event, get_world
from service.worlds.spool import NO_ROOM
from service.worlds.words import read_search

# Rows of a view that are in memory at once. Each may have a thousand links.
SLICE = 20
# Characters of a snippet.
SNIPPET_LENGTH = 200
# Rows of the graph that are in memory at once.
NODES_AT_ONCE = 500


@describe(
    {200: Success("Beats, each with its story.", list_of(shapes.BEAT_WITH_STORY), ("Link",))},
    query=LIST,
    problems=(NO_ROOM,),
)
async def list_beats_of_event(request: web.Request) -> web.StreamResponse:
    """List the beats linked to an event, each with its story, without archived stories."""
    query = read_query(request, LIST)
    event = await read(request.app, get_event, request)

    async def list_beats_of_event(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[Row]:
        async with snapshot(conn):
            beats = await view_queries.list_beats_of_event(conn, event["id"], after, limit)
            story_ids = list({beat["story_id"] for beat in beats})
            found = await view_queries.list_stories_by_id(conn, story_ids)
        stories = {story["id"]: schemas.STORY.dump(story) for story in found}
        return [{**beat, "story": stories[beat["story_id"]]} for beat in beats]

    dump = dump_with(shapes.BEAT_WITH_STORY)
    return await respond_with_list(
        request, query, view_queries.IN_STORIES, list_beats_of_event, dump
    )


@describe(
    {200: Success("The timeline.", shapes.TIMELINE, ("Link",))}, query=LIST, problems=(NO_ROOM,)
)
async def read_timeline(request: web.Request) -> web.StreamResponse:
    """List the events of a world in the order of their time, each with the beats linked to it.

    `beats` are in the order of their stories, without their texts; `stories` are those that meet
    there. Archived stories are left out.
    """
    query = read_query(request, LIST)
    world = await read(request.app, get_world, request)

    async def read_timeline(conn: Connection, after: list[object] | None, limit: int) -> list[Row]:
        events = await event_queries.list_events(conn, world["id"], after, limit)
        links = defaultdict(list)
        for link in await view_queries.list_links(conn, [event["id"] for event in events]):
            links[link["world_event_id"]].append(link)
        return [_place(event, links[event["id"]]) for event in events]

    return await respond_with_list(
        request, query, event_queries.IN_TIME, read_timeline, _without_position, slice_=SLICE
    )


def _place(event: asyncpg.Record, links: list[asyncpg.Record]) -> Row:
    """Return an event with the beats linked to it, and its position in the list."""
    titles = {link["story_id"]: link["title"] for link in links}
    names = ("id", "story_id", "order_index", "type", "local_time_label")
    return {
        "t": event["t"],
        "id": event["id"],
        "shown": {
            "event": schemas.EVENT.dump(event),
            "stories": [{"id": story_id, "title": title} for story_id, title in titles.items()],
            "beats": [{name: link[name] for name in names} for link in links],
        },
    }


def _without_position(rows: Any) -> list[Any]:
    return [row["shown"] for row in rows]


@describe(
    {200: Success("Pairs of stories.", shapes.INTERSECTIONS, ("Link",))},
    query=LIST,
    problems=(NO_ROOM,),
)
async def list_intersections(request: web.Request) -> web.StreamResponse:
    """List the pairs of stories that share events, with these events in the order of their time.

    Two stories share an event if each has a beat linked to it. Archived stories are left out.
    """
    query = read_query(request, LIST)
    world = await read(request.app, get_world, request)

    async def list_intersections(
        conn: Connection, after: list[object] | None, limit: int
    ) -> list[Row]:
        pairs = await view_queries.list_meetings(conn, world["id"], after, limit)
        event_ids = {event_id for pair in pairs for event_id in pair["event_ids"]}
        events = await view_queries.list_event_labels(conn, uuids(event_ids))
        by_id = {str(event["id"]): event for event in events}
        return [_meet(pair, by_id) for pair in pairs]

    return await respond_with_list(
        request, query, view_queries.BY_PAIR, list_intersections, _without_position, slice_=SLICE
    )


def _meet(pair: asyncpg.Record, events: dict[str, asyncpg.Record]) -> Row:
    """Return a pair of stories with the events they share, and its position in the list."""
    shared = sorted((events[each] for each in pair["event_ids"]), key=itemgetter("t", "id"))
    return {
        "one_id": pair["one_id"],
        "other_id": pair["other_id"],
        "shown": {
            "stories": [
                {"id": pair["one_id"], "title": pair["one_title"]},
                {"id": pair["other_id"], "title": pair["other_title"]},
            ],
            "events": [dict(event) for event in shared],
        },
    }


@describe({200: Success("The graph.", shapes.GRAPH)})
async def read_dependency_graph(request: web.Request) -> web.StreamResponse:
    """Return the events of a world and what causes what, as the nodes and edges of a graph."""
    world = await read(request.app, get_world, request)
    return await stream_json(request, _draw(request.app, world["id"]), {})


async def _draw(app: web.Application, world_id: uuid.UUID) -> AsyncGenerator[bytes, None]:
    yield b'{"world_id":' + encode(world_id) + b',"nodes":['
    drawn: set[uuid.UUID] = set()
    separator, node = b"", None
    while nodes := await read_replica(app, view_queries.list_nodes, world_id, node, NODES_AT_ONCE):
        yield separator + encode([dict(each) for each in nodes])[1:-1]
        drawn.update(each["id"] for each in nodes)
        separator, node = b",", nodes[-1]["id"]
    yield b'],"edges":['
    separator, edge = b"", None
    while edges := await read_replica(app, view_queries.list_edges, world_id, edge, NODES_AT_ONCE):
        # Events may have been added since the nodes were read.
        between = [
            {"source": each["cause_id"], "target": each["event_id"], "type": "causes"}
            for each in edges
            if each["cause_id"] in drawn and each["event_id"] in drawn
        ]
        if between:
            yield separator + encode(between)[1:-1]
            separator = b","
        edge = edges[-1]["event_id"], edges[-1]["cause_id"]
    yield b"]}"


@describe(
    {200: Success("The best matches.", shapes.RESULTS)},
    query=schemas.SEARCH,
    problems=(SEARCH_TOO_BROAD,),
)
async def search_world(request: web.Request) -> web.Response:
    """Search the events, stories and beats of a world, best match first.

    `total` counts all matches. `snippet` is a part of the text, in pieces: those that match are
    marked. Archived stories are left out.
    """
    query = read_query(request, schemas.SEARCH)
    world = await read(request.app, get_world, request)
    found = await read_replica(request.app, _search, world, query["q"], query["limit"])
    return json_response(found)


async def _search(conn: Connection, world: asyncpg.Record, text: str, limit: int) -> dict[str, Any]:
    words = read_search(text)
    try:
        rows = await view_queries.search(conn, world["id"], world["text_search"], words, limit)
        snippets = await _make_snippets(conn, world["text_search"], words, rows)
    except asyncpg.QueryCanceledError as error:
        raise Problem(SEARCH_TOO_BROAD) from error
    names = ("kind", "id", "story_id", "rank")
    return {
        "total": rows[0]["total"] if rows else 0,
        "results": [
            {**{name: row[name] for name in names}, "snippet": snippets.get(row["id"], [])}
            for row in rows
        ],
    }


async def _make_snippets(
    conn: Connection, text_search: str, words: str, rows: list[asyncpg.Record]
) -> dict[uuid.UUID, list[dict[str, Any]]]:
    """Return a snippet of each row, by its id."""
    # Nobody can have written this in a text.
    mark = secrets.token_hex(16)
    snippets = {}
    for kind in view_queries.SOURCES:
        ids = [row["id"] for row in rows if row["kind"] == kind]
        if ids:
            matches = await view_queries.list_matches(conn, kind, ids, text_search, words, mark)
            for match in matches:
                snippets[match["id"]] = cut_snippet(match["text"], match["marked"], mark)
    return snippets


def cut_snippet(text: str, marked: str, mark: str) -> list[dict[str, Any]]:
    """Return the part of the text around its first match, in pieces.

    Each piece has its text, and whether it matches. ``marked`` is the same text with other
    punctuation, and a mark before and after each match.
    """
    pieces = marked.split(mark)
    if len("".join(pieces)) != len(text):
        # PostgreSQL leaves out words of more than 2047 bytes.
        return [{"text": text[:SNIPPET_LENGTH], "match": False}]
    start = max(0, len(pieces[0]) - SNIPPET_LENGTH // 2)
    end = start + SNIPPET_LENGTH
    cut, place = [], 0
    for number, piece in enumerate(pieces):
        shown = text[max(place, start) : min(place + len(piece), end)]
        if shown:
            cut.append({"text": shown, "match": number % 2 == 1})
        place += len(piece)
    return cut
