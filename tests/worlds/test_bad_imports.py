"""Invalid documents: refused with a pointer or a reason, and nothing is imported."""

import copy
import gzip
import io
import json
from typing import Any

import pytest

from service.worlds import plan
from tests.support.clients import StartApp
from tests.support.factories import assert_problem, pointers, register
from tests.support.worlds import NO_ONE, WORLDS, World, create_world

IMPORT = f"{WORLDS}/import"
ONE, TWO = "01890000-0000-7000-8000-000000000001", "01890000-0000-7000-8000-000000000002"
BELL = {"t": 1, "type": "minor", "summary": "A bell."}
DOCUMENT: dict[str, Any] = {
    "version": "1.0",
    "exported_at": "2026-01-01T00:00:00Z",
    "world": {"name": "Orrery"},
    "world_events": [{"id": ONE, **BELL}, {"id": TWO, **BELL, "caused_by_ids": [ONE]}],
    "stories": [
        {
            "title": "The Lamplighter",
            "story_beats": [
                {"content": "One.", "order_index": 1, "world_event_id": ONE},
                {"content": "Two.", "order_index": 2},
            ],
        }
    ],
}


def document_with(pointer: str, value: Any) -> dict[str, Any]:
    """Return the document with another value at the pointer."""
    document = copy.deepcopy(DOCUMENT)
    *path, last = [int(part) if part.isdigit() else part for part in pointer.split("/")[1:]]
    place: Any = document
    for part in path:
        place = place[part]
    place[last] = value
    return document


async def post(world: World, data: bytes, **headers: str) -> Any:
    sent = {**world.headers, "Content-Type": "application/json", **headers}
    return await world.client.post(IMPORT, headers=sent, data=io.BytesIO(data))


@pytest.fixture
async def importer(world: World, conn: Any) -> Any:
    """Return a function that imports, and asserts that a refusal left nothing behind."""

    async def refused(data: bytes, status: int, code: str, **headers: str) -> dict[str, Any]:
        response = await post(world, data, **headers)
        problem = await assert_problem(response, status, code)
        assert await conn.fetchval("select count(*) from worlds") == 1
        assert await conn.fetchval("select count(*) from world_events") == 0
        return problem

    return refused


async def test_document_is_valid(world: World) -> None:
    """So that the tests below change one thing each."""
    assert (await post(world, json.dumps(DOCUMENT).encode())).status == 201


FAULTS: list[tuple[str, Any, str]] = [
    ("#/surprise", 1, "unknown_field"),
    ("#/a~1b", 1, "unknown_field"),
    ("#/", 1, "unknown_field"),
    ("#/world", [], "invalid_type"),
    ("#/world", None, "invalid_type"),
    ("#/world/name", "", "too_short"),
    ("#/world/name", None, "null"),
    ("#/world/name", "nul\0", "invalid_characters"),
    ("#/world/surprise", 1, "unknown_field"),
    ("#/world/laws", [], "invalid_type"),
    ("#/world/backdrop", "x" * 50_001, "too_long"),
    ("#/world/text_search", "klingon", "invalid_choice"),
    ("#/world_events", {}, "invalid_type"),
    ("#/world_events", None, "invalid_type"),
    ("#/world_events/0", [], "invalid_type"),
    ("#/world_events/1/id", ONE, "duplicate"),
    ("#/world_events/1/id", "1", "invalid_uuid"),
    ("#/world_events/1/id", None, "null"),
    ("#/world_events/1/t", "1", "invalid_type"),
    ("#/world_events/1/t", True, "invalid_type"),
    ("#/world_events/1/t", 2**53 + 1, "invalid_number"),
    ("#/world_events/1/summary", [], "invalid_type"),
    ("#/world_events/1/summary", [[[[[[[[[[]]]]]]]]]], "too_deep"),
    ("#/world_events/1/tags", ["x"] * 21, "too_many"),
    ("#/world_events/1/tags", ["x"] * 101, "too_many"),
    ("#/world_events/1/surprise", {}, "unknown_field"),
    ("#/world_events/1/caused_by_ids/0", NO_ONE, "not_found"),
    ("#/world_events/1/caused_by_ids", [ONE, ONE], "duplicate"),
    ("#/stories", {}, "invalid_type"),
    ("#/stories/0", 1, "invalid_type"),
    ("#/stories/0/title", 1, "invalid_type"),
    ("#/stories/0/status", "gone", "invalid_choice"),
    ("#/stories/0/story_beats", {}, "invalid_type"),
    ("#/stories/0/story_beats", None, "invalid_type"),
    ("#/stories/0/story_beats/1", "x", "invalid_type"),
    ("#/stories/0/story_beats/1/content", "x" * 50_001, "too_long"),
    ("#/stories/0/story_beats/1/order_index", 1, "duplicate"),
    ("#/stories/0/story_beats/1/order_index", -1, "invalid_number"),
    ("#/stories/0/story_beats/1/order_index", 1.5, "invalid_number"),
    ("#/stories/0/story_beats/1/order_index", 2**31, "invalid_number"),
    ("#/stories/0/story_beats/1/world_event_id", NO_ONE, "not_found"),
    ("#/stories/0/story_beats/1/type", "song", "invalid_choice"),
    ("#/stories/0/story_beats/1/story_beats", [], "unknown_field"),
]


async def test_fault_in_a_document_is_named(importer: Any) -> None:
    for pointer, value, code in FAULTS:
        name = pointer.replace("~1", "/") if pointer.startswith("#/a") else pointer
        document = {**DOCUMENT, name[2:]: value} if "~" in pointer else document_with(name, value)
        problem = await importer(json.dumps(document).encode(), 422, "invalid_fields")
        (error,) = problem["errors"]
        # If a value is too deep or has too many elements, the pointer may name its row.
        assert pointer.startswith(error["pointer"]), (pointer, error)
        assert error["pointer"].count("/") >= min(pointer.count("/"), 2)
        assert error["code"] == code, (pointer, error)


async def test_missing_members_are_named(importer: Any) -> None:
    for pointer in (
        "#/version",
        "#/world",
        "#/world/name",
        "#/world_events/0/id",
        "#/world_events/0/t",
        "#/world_events/0/type",
        "#/stories/0/title",
        "#/stories/0/story_beats/0/content",
    ):
        document = document_with(pointer, None)
        *path, last = [int(part) if part.isdigit() else part for part in pointer.split("/")[1:]]
        place: Any = document
        for part in path:
            place = place[part]
        del place[last]
        problem = await importer(json.dumps(document).encode(), 422, "invalid_fields")
        assert pointers(problem) == {pointer}
        assert problem["errors"][0]["code"] == "required"
    assert pointers(await importer(b"{}", 422, "invalid_fields")) == {"#/version", "#/world"}


@pytest.mark.parametrize("version", ["1.1", "1", 1.0, None, "", ["1.0"], "1.0 "])
async def test_document_of_another_version_is_refused(importer: Any, version: Any) -> None:
    """Whatever else it has, which this version may not know."""
    document = json.dumps({"characters": [], **DOCUMENT, "version": version}).encode()
    await importer(document, 400, "unknown_version")


async def test_causes_that_close_a_cycle_are_refused(importer: Any) -> None:
    document = document_with("#/world_events/0/caused_by_ids", [TWO])
    await importer(json.dumps(document).encode(), 422, "causes_cycle")
    itself = document_with("#/world_events/0/caused_by_ids", [ONE])
    await importer(json.dumps(itself).encode(), 422, "causes_cycle")


def replaced(old: str, new: str) -> bytes:
    text = json.dumps(DOCUMENT)
    assert old in text
    return text.replace(old, new, 1).encode()


VALID = json.dumps(DOCUMENT).encode()
NOT_JSON = {
    "truncated": VALID[:-1],
    "truncated within a text": VALID[: VALID.index(b"Lamplighter") + 3],
    "one more brace": VALID + b"}",
    "two documents": VALID + b"\n" + VALID,
    "a byte order mark": b"\xef\xbb\xbf" + VALID,
    "UTF-16": VALID.decode().encode("utf-16"),
    "no UTF-8": replaced("Orrery", "Orr\N{LATIN SMALL LETTER E WITH ACUTE}ry").replace(
        "é".encode(), b"\xff"
    ),
    "white space": b" \n",
    "NaN": replaced('"t": 1', '"t": NaN'),
    "a comment": b"// a world\n" + VALID,
    "single quotes": VALID.replace(b'"', b"'"),
    "a line break in a text": replaced("Orrery", "Orr\nery"),
    "a leading zero": replaced('"t": 1', '"t": 01'),
    "brackets": b'{"exported_at": ' + b"[" * 60_000,
    "a lone high surrogate": replaced("Orrery", "\\ud800"),
    "a lone high surrogate before a letter": replaced("Orrery", "\\ud800\\u0041"),
    "a lone low surrogate": replaced("Orrery", "\\udc00"),
    "surrogates the wrong way round": replaced("Orrery", "\\ude00\\ud83d"),
    "a lone surrogate in a name": replaced('"Orrery"', '"Orrery", "\\ud800": 1'),
    "a surrogate as UTF-8": VALID.replace(b"Orrery", b"Orr\xed\xa0\x80ry"),
    "a surrogate as UTF-8 in a name": VALID.replace(b'"name"', b'"\xed\xa0\x80"'),
    "an exponent beyond all": replaced('"t": 1', '"t": 1e9999999999999999999'),
    "a negative one": replaced('"t": 1', '"t": -0e-9999999999999999999'),
    "too many digits": replaced('"t": 1', '"t": ' + "9" * 60_000),
    "the same name twice": replaced('"world":', '"world": {"name": "x"}, "world":'),
    "the same version twice": replaced('"version":', '"version": "1.0", "version":'),
    "the same name twice, unused": replaced('"exported_at":', '"exported_at": 1, "exported_at":'),
    "the same name twice in a world": replaced('"name"', '"name": "x", "name"'),
    "the same name twice in an event": replaced('"type"', '"type": "x", "type"'),
    "the same name twice in a story": replaced('"title"', '"title": "x", "title"'),
    "beats twice": replaced('"story_beats"', '"story_beats": [], "story_beats"'),
    "the same name twice in a beat": replaced('"content"', '"content": "x", "content"'),
}


@pytest.mark.parametrize("fault", NOT_JSON)
async def test_document_that_is_not_json_is_refused(importer: Any, fault: str) -> None:
    await importer(NOT_JSON[fault], 400, "malformed_json")


async def test_text_that_resembles_a_lone_surrogate_is_kept(world: World) -> None:
    """A pair is none, and an escaped backslash begins no escape."""
    for text in ("\\ud83d\\ude00", "\\\\ud800", "x\\\\\\\\ud800"):
        response = await post(world, replaced("Orrery", "a" * 50 + text))
        assert (await response.json())["name"] == json.loads(f'"{"a" * 50}{text}"')


@pytest.mark.parametrize("number", ["1e400", "-1e400", "0.12345678901234567", "9" * 300])
async def test_number_beyond_a_float_is_named(importer: Any, number: str) -> None:
    problem = await importer(replaced('"t": 1', f'"t": {number}'), 422, "invalid_fields")
    assert pointers(problem) == {"#/world_events/0/t"}
    place = replaced('"order_index": 1', f'"order_index": {number}')
    problem = await importer(place, 422, "invalid_fields")
    assert pointers(problem) == {"#/stories/0/story_beats/0/order_index"}


@pytest.mark.parametrize("document", [b"[]", b'"text"', b"7", b"null", b"true"])
async def test_document_that_is_no_object_is_refused(importer: Any, document: bytes) -> None:
    assert pointers(await importer(document, 422, "invalid_fields")) == {"#"}


async def test_empty_body_is_refused(importer: Any) -> None:
    await importer(b"", 400, "empty_body")


CONTENT_TYPES = ["text/plain", "multipart/form-data; boundary=x", "application/jsonp", ""]
CONTENT_TYPES += ["application/json; charset=utf-16", "application/merge-patch+json", "nonsense"]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
async def test_other_content_type_is_refused(importer: Any, content_type: str) -> None:
    await importer(VALID, 415, "unsupported_media_type", **{"Content-Type": content_type})


async def test_unknown_content_encoding_is_refused(importer: Any) -> None:
    for coding in ("foo", "gzip, gzip", "br"):
        headers = {"Content-Encoding": coding}
        await importer(VALID, 415, "unsupported_content_encoding", **headers)


async def test_broken_compression_is_refused(importer: Any) -> None:
    whole = gzip.compress(VALID)
    for data in (VALID, whole[:-9], whole[:20], whole + b"x"):
        await importer(data, 400, "malformed_body", **{"Content-Encoding": "gzip"})


async def test_document_beyond_the_limit_is_refused(start_app: StartApp) -> None:
    client = await start_app(world_import_max_bytes=len(VALID))
    world = await create_world(client, await register(client))
    assert (await post(world, VALID)).status == 201
    await assert_problem(await post(world, VALID + b" "), 413, "content_too_large")
    zipped = gzip.compress(VALID + b" ")
    response = await post(world, zipped, **{"Content-Encoding": "gzip"})
    await assert_problem(response, 413, "content_too_large")
    assert len(await world.get(WORLDS)) == 2


async def test_document_that_unfolds_too_much_is_refused(importer: Any) -> None:
    bomb = gzip.compress(b" " * 5_000_000 + VALID)
    assert len(bomb) < 10_000
    await importer(bomb, 413, "content_too_large", **{"Content-Encoding": "gzip"})


async def test_document_larger_than_other_bodies_is_imported(world: World) -> None:
    """Also in more chunks than one, and with a file behind it."""
    beats = [{"content": "🜁" * 50_000} for _ in range(12)]
    document = document_with("#/stories/0/story_beats", beats)
    data = json.dumps(document, ensure_ascii=False).encode()
    assert len(data) > 2 * 1024 * 1024
    assert (await post(world, data)).status == 201


async def test_rows_are_read_in_batches_of_any_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [{"id": NO_ONE[:-2] + f"{n:02}", **BELL} for n in range(7)]
    document = document_with("#/world_events", [*DOCUMENT["world_events"], *events[3:]])
    for size in (1, 2, 3, 6, 7):
        monkeypatch.setattr(plan, "ROWS_AT_ONCE", size)
        response = await post(world, json.dumps(document).encode())
        copied = world._replace(body=await response.json())
        assert len(await copied.get("events")) == 6


async def test_huge_array_in_a_row_is_refused_before_it_is_read(importer: Any) -> None:
    document = replaced('"t": 1', '"t": 1, "tags": [' + '"x",' * 300_000 + '"x"]')
    problem = await importer(document, 422, "invalid_fields")
    assert problem["errors"][0]["code"] == "too_many"


async def test_key_of_a_refused_document_may_be_used_again(world: World) -> None:
    headers = {"Idempotency-Key": "once"}
    assert (await post(world, VALID[:-1], **headers)).status == 400
    assert (await post(world, VALID, **headers)).status == 201
