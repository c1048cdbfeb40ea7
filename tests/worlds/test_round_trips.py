"""Whatever is accepted is returned as sent, in its order (property tests)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clients import Client
from tests.support.factories import Account
from tests.support.worlds import (
    NO_ONE,
    WORLDS,
    World,
    beat_at,
    beats_at,
    create_world,
    event_at,
    plain_document,
    story_at,
)

_char = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def text(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(_char, min_size=least, max_size=most)


def optional(most: int) -> st.SearchStrategy[str | None]:
    return st.none() | text(0, most)


def some(required: dict[str, Any], optional_: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional_)


_tags = st.lists(text(1, 30), max_size=20)
# Numbers that a 64-bit float holds exactly, however JSON writes them.
_times = (
    st.integers(-(2**53), 2**53)
    | st.floats(-(2.0**53), 2.0**53).map(lambda t: round(t, 6))
    | st.sampled_from([-0.0, 0, 1e-15, -1e-15, 0.1, 2.0**53, -(2.0**53)])
)
_laws = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("physics", "metaphysics", "social", "forbidden"), optional(50))
)
_worlds = some(
    {"name": text(1, 255)},
    {
        "description": optional(200),
        "tone": optional(500),
        "backdrop": optional(200),
        "laws": _laws,
        "chronology_mode": st.sampled_from(["linear", "fragmented", "timeless"]),
        "text_search": st.sampled_from(["simple", "english", "russian", "arabic"]),
    },
)
_events = some(
    {"t": _times, "type": text(1, 100), "summary": text(1, 200)},
    {
        "label_time": optional(255),
        "description": optional(200),
        "location": optional(255),
        "location_id": st.none() | st.just(NO_ONE) | st.uuids().map(str),
        "tags": _tags,
    },
)
_stories = some(
    {"title": text(1, 255)},
    {
        "synopsis": optional(200),
        "theme": optional(255),
        "status": st.sampled_from(["draft", "active", "completed", "archived"]),
        "mode": st.sampled_from(["autonomous", "collaborative", "manual"]),
        "pov_type": st.sampled_from(["first", "third", "omniscient"]),
        "tags": _tags,
    },
)
_beats = some(
    {"content": text(1, 300)},
    {
        "type": st.sampled_from(["scene", "summary", "note", "log", "memory", "dialogue"]),
        "generated_by": st.sampled_from(["ai", "user", "collaborative"]),
        "summary": optional(200),
        "local_time_label": optional(255),
        "generation_reasoning": optional(200),
    },
)


async def check_kept(world: World, path: str, sent: dict[str, Any]) -> None:
    """Assert that the row at the path has what was sent."""
    found = await world.get(path)
    expected = {**sent, "laws": {**found["laws"], **sent["laws"]}} if "laws" in sent else sent
    assert {name: found[name] for name in expected} == expected


@pytest.mark.property
@given(sent=_worlds, change=_worlds)
async def test_worlds_are_returned_as_sent(
    client: Client, account: Account, sent: dict[str, Any], change: dict[str, Any]
) -> None:
    world = await create_world(client, account, **sent)
    await check_kept(world, "", sent)
    del change["name"]
    change.pop("text_search", None)
    await world.change("", **change)
    await check_kept(world, "", {**sent, **change})
    await world.delete("")


@pytest.mark.property
@given(sent=_events, change=_events)
async def test_events_are_returned_as_sent(
    world: World, sent: dict[str, Any], change: dict[str, Any]
) -> None:
    event = await world.add_event(**sent)
    await check_kept(world, event_at(event), sent)
    await world.change(event_at(event), **change)
    await check_kept(world, event_at(event), {**sent, **change})


@pytest.mark.property
@given(sent=_stories, change=_stories)
async def test_stories_are_returned_as_sent(
    world: World, sent: dict[str, Any], change: dict[str, Any]
) -> None:
    story = await world.add_story(**sent)
    await check_kept(world, story_at(story), sent)
    await world.change(story_at(story), **change)
    await check_kept(world, story_at(story), {**sent, **change})


@pytest.mark.property
@given(sent=_beats, change=_beats)
async def test_beats_are_returned_as_sent(
    world: World, sent: dict[str, Any], change: dict[str, Any]
) -> None:
    story = await world.add_story()
    beat = await world.add_beat(story, **sent)
    await check_kept(world, beat_at(beat), sent)
    await world.change(beat_at(beat), **change)
    await check_kept(world, beat_at(beat), {**sent, **change})


@pytest.mark.property
@given(times=st.lists(_times, max_size=12))
async def test_events_are_listed_in_the_order_of_time(
    client: Client, account: Account, times: list[float]
) -> None:
    world = await create_world(client, account)
    for t in times:
        await world.add_event(t=t)
    expected = sorted(float(t) for t in times)
    assert [event["t"] for event in await world.get("events")] == expected
    assert [each["event"]["t"] for each in await world.get("timeline")] == expected
    found = []
    page = await world.send("GET", "events?limit=5")
    while True:
        found += [event["t"] for event in (await page.json())["events"]]
        if "next" not in page.links:
            break
        page = await world.send("GET", page.links["next"]["url"].path_qs)  # type: ignore[union-attr]
    assert found == expected
    await world.delete("")


# The order of beats, against a list.

_place = st.integers(0, 7)
_steps = st.lists(
    st.tuples(st.just("append"))
    | st.tuples(st.just("insert"), _place)
    | st.tuples(st.just("move"), _place, _place)
    | st.tuples(st.just("delete"), _place)
    | st.tuples(st.just("reorder"), st.randoms(use_true_random=False)),
    max_size=12,
)


class Model:
    """The beats of a story as a list of places and texts, in their order."""

    def __init__(self) -> None:
        self.beats: list[tuple[int, str]] = []

    def put(self, text: str, place: int) -> None:
        """Put a beat in a place. If that is taken, this one and those after it move on."""
        if any(taken == place for taken, _ in self.beats):
            self.beats = [(at + (at >= place), each) for at, each in self.beats]
        self.beats = sorted([*self.beats, (place, text)])

    def append(self, text: str) -> None:
        self.beats.append((max([0, *(at for at, _ in self.beats)]) + 1, text))

    def move(self, text: str, place: int) -> None:
        """The beat counts as taking its own place until it has moved."""
        if (place, text) in self.beats:
            return
        taken = any(at == place for at, _ in self.beats)
        rest = [(at + (taken and at >= place), each) for at, each in self.beats if each != text]
        self.beats = sorted([*rest, (place, text)])


@pytest.mark.property
@given(steps=_steps)
async def test_beats_keep_the_order_of_a_list(world: World, steps: list[Any]) -> None:
    story, model = await world.add_story(), Model()
    paths: dict[str, str] = {}
    for number, (step, *given_) in enumerate(steps):
        content = f"beat {number}"
        known = [text for _, text in model.beats]
        if step in ("append", "insert"):
            place = {"order_index": given_[0]} if given_ else {}
            beat = await world.add_beat(story, content=content, **place)
            paths[content] = beat_at(beat)
            model.put(content, given_[0]) if given_ else model.append(content)
        elif known and step == "move":
            chosen = known[given_[0] % len(known)]
            await world.change(paths[chosen], order_index=given_[1])
            model.move(chosen, given_[1])
        elif known and step == "delete":
            chosen = known[given_[0] % len(known)]
            await world.delete(paths[chosen])
            model.beats = [each for each in model.beats if each[1] != chosen]
        elif known and step == "reorder":
            given_[0].shuffle(known)
            ids = [paths[each].rpartition("/")[2] for each in known]
            response = await world.send("POST", f"{beats_at(story)}/reorder", {"beat_ids": ids})
            assert response.status == 200
            model.beats = [*enumerate(known, 1)]
        found = [
            (beat["order_index"], beat["content"]) for beat in await world.get(beats_at(story))
        ]
        assert found == model.beats, (step, given_)


# Whole worlds.


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a world with events that cause later ones, and stories whose beats are linked."""
    events = draw(st.lists(_events, max_size=5))
    for number, event in enumerate(events):
        event["id"] = NO_ONE[:-1] + str(number)
        earlier = [each["id"] for each in events[:number]]
        event["caused_by_ids"] = (
            draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        )
    stories = draw(st.lists(_stories, max_size=3))
    for story in stories:
        story["story_beats"] = draw(st.lists(_beats, max_size=4))
        places = draw(st.sets(st.integers(0, 99), min_size=4, max_size=4))
        for beat, place in zip(story["story_beats"], sorted(places), strict=False):
            beat["order_index"] = place
            if events:
                beat["world_event_id"] = draw(st.sampled_from([None, *(e["id"] for e in events)]))
    return {"version": "1.0", "world": draw(_worlds), "world_events": events, "stories": stories}


@pytest.mark.property
@given(document=documents(), ascii_only=st.booleans())
async def test_export_is_imported_as_it_was(
    world: World, document: dict[str, Any], ascii_only: bool
) -> None:
    headers = {**world.headers, "Content-Type": "application/json"}

    async def import_it(document: Any) -> World:
        data = json.dumps(document, ensure_ascii=ascii_only).encode()
        response = await world.client.post(f"{WORLDS}/import", headers=headers, data=data)
        assert response.status == 201, await response.text()
        return world._replace(body=await response.json())

    one = await import_it(document)
    first = await one.get("export")
    other = await import_it(first)
    second = await other.get("export")
    assert plain_document(first) == plain_document(second)
    assert len(first["world_events"]) == len(document["world_events"])
    for story, sent in zip(first["stories"], document["stories"], strict=True):
        assert story == {**story, **{name: sent[name] for name in sent if name != "story_beats"}}
        for beat, written in zip(story["story_beats"], sent["story_beats"], strict=True):
            link = {"world_event_id": beat["world_event_id"]}
            assert beat == {**beat, **written, **link}
    await one.delete("")
    await other.delete("")
